//! Adapters at run time, under the names that vLLM gave the routes.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use runtime::ErrorKind;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::fields::Fields;
use crate::limits::blocking_pool::run_blocking;
use crate::models::{Model, ServedModel};
use crate::openapi::Operation;
use crate::openapi::schema::{Members, boolean, count, text};

/// `POST /v1/load_lora_adapter`: the PEFT adapter in the folder `lora_path` of this machine answers as `lora_name`. With
/// `load_inplace` it takes the place of the adapter of that name.
pub(crate) async fn load(State(app): State<Shared>, mut fields: Fields) -> Result<Json<Value>, ApiError> {
    let name: String = fields.need("lora_name")?;
    let folder: PathBuf = fields.need("lora_path")?;
    let in_place: bool = fields.take("load_inplace")?.unwrap_or(false);
    fields.finish()?;
    if let Some(id) = app.models.adapter(&name).filter(|_| in_place) {
        return run_blocking(move || {
            let version = app.runtime.replace_adapter(id, &folder).map_err(refused)?;
            Ok(Json(json!({"loaded": name, "weights_version": version})))
        })
        .await;
    }
    let (models, limit) = (app.models.list(), app.config.max_adapters);
    let loaded = models.iter().filter(|model| model.is_adapter()).count();
    if loaded >= limit {
        let message = format!("{loaded} adapters are loaded of at most {limit} (--max-adapters); unload one");
        return Err(ApiError::invalid("lora_name", message));
    }
    // Adapters stand on the first model and share its files.
    let (base, files) = (models[0].id(), Arc::clone(models[0].shared_files()));
    run_blocking(move || {
        let id = app.runtime.add_adapter(base, &folder).map_err(refused)?;
        let added = app.models.add(Arc::new(Model::new(ServedModel {
            names: vec![name.clone()],
            id,
            base: Some(base),
            files,
        })));
        if let Err(error) = added {
            app.runtime.remove_adapter(id)?;
            return Err(error);
        }
        Ok(Json(json!({"loaded": name, "weights_version": 0})))
    })
    .await
}

/// Files that cannot be read are those that the request names.
fn refused(error: runtime::Error) -> ApiError {
    match error.kind() {
        ErrorKind::Internal | ErrorKind::Invalid => ApiError::invalid("lora_path", error.to_string()),
        _ => ApiError::from(error),
    }
}

/// `POST /v1/unload_lora_adapter`: frees the adapter `lora_name` when nobody uses it.
pub(crate) async fn unload(State(app): State<Shared>, mut fields: Fields) -> Result<Json<Value>, ApiError> {
    let name: String = fields.need("lora_name")?;
    fields.finish()?;
    run_blocking(move || {
        let model = app.models.take_adapter(&name)?;
        if let Err(error) = app.runtime.remove_adapter(model.id()) {
            app.models.add(model)?;
            return Err(error.into());
        }
        Ok(Json(json!({"unloaded": name})))
    })
    .await
}

fn name() -> Members {
    Members::new().always("lora_name", text(), "What requests call it.")
}

pub(crate) fn describe_load() -> Operation {
    Operation::new("loadAdapter", "A PEFT adapter of this machine answers")
        .reads(name().always("lora_path", text(), "Its folder.").maybe(
            "load_inplace",
            boolean(),
            "It takes the place of the adapter of this name, whose requests go on with it.",
        ))
        .refuses(500, "A defect of the server.")
        .answers(
            Members::new()
                .always("loaded", text(), "Its name.")
                .always("weights_version", count(), "The version of its weights, from 0.")
                .closed(),
        )
}

pub(crate) fn describe_unload() -> Operation {
    Operation::new("unloadAdapter", "An adapter goes")
        .reads(name())
        .refuses(404, "There is no adapter of this name.")
        .refuses(409, "It is in use.")
        .refuses(500, "A defect of the server.")
        .answers(Members::new().always("unloaded", text(), "Its name.").closed())
}
