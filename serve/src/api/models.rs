//! `/v1/models`

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::app::{App, Shared};
use crate::models::Model;
use crate::openapi::Operation;
use crate::openapi::schema::{self, Members, Schema, count, named, one_of, text};

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
pub(crate) async fn retrieve(
    State(app): State<Shared>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Path(name) = name?;
    let model = app.models.find(Some(&name))?;
    Ok(Json(describe(&app, &model, &name)))
}

/// What [`describe`] answers.
fn model() -> Schema {
    let model = Members::new()
        .always("id", text(), "One of its names.")
        .always("object", one_of(&["model"]), "")
        .always("created", count(), "Seconds since 1970 when the server started.")
        .always("owned_by", text(), "")
        .always("max_model_len", count(), "Tokens of prompt and answer together.")
        .always("weights_version", count(), "Counts the updates of its weights.");
    model.closed()
}

pub(crate) fn describe_list() -> Operation {
    let list = Members::new().always("object", one_of(&["list"]), "").always("data", schema::list(named("Model")), "");
    let summary = "Every name of every model, adapter and teacher";
    Operation::new("listModels", summary).answers(list.closed()).defines("Model", model())
}

pub(crate) fn describe_retrieve() -> Operation {
    Operation::new("retrieveModel", "One of them")
        .path("model", "Its name; slashes may be written as they are.")
        .refuses(400, "The name is not UTF-8.")
        .finds_model()
        .answers(named("Model"))
}
