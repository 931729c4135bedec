//! `/v1/models`

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::app::{App, Shared};
use crate::models::Model;

/// Under which of its names a model is described.
fn describe(app: &App, model: &Model, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": app.created,
        "owned_by": "arle",
        "max_model_len": model.context(),
        "weights_version": model.of(&app.runtime.snapshot()).version,
    })
}

/// `GET /v1/models`: every name of every model.
pub(crate) async fn list(State(app): State<Shared>) -> Json<Value> {
    let models = app.models.list();
    let names = models.iter().flat_map(|model| model.names().iter().map(move |name| (model, name)));
    let data: Vec<Value> = names.map(|(model, name)| describe(&app, model, name)).collect();
    Json(json!({"object": "list", "data": data}))
}

/// `GET /v1/models/NAME`
pub(crate) async fn retrieve(State(app): State<Shared>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    let model = app.models.find(Some(&name))?;
    Ok(Json(describe(&app, &model, &name)))
}
