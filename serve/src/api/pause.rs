//! What vLLM's clients do to the engine around an update of its weights: stop generating, go on, forget cached prefixes.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use runtime::request::PauseMode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::app::{App, Shared};
use crate::limits::blocking_pool::run_blocking;
use crate::openapi::Operation;
use crate::openapi::schema::{Members, boolean, one_of};

/// What becomes of requests that run.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Abort,
    Wait,
    Keep,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    mode: Option<Mode>,
    clear_cache: Option<bool>,
}

/// `POST /pause`: answers when no step runs any more.
pub(crate) async fn pause(
    State(app): State<Shared>,
    settings: Result<Query<Settings>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(Settings { mode, clear_cache }) = settings?;
    let running = match mode.unwrap_or(Mode::Abort) {
        Mode::Abort => PauseMode::Abort,
        Mode::Keep => PauseMode::Keep,
        Mode::Wait => {
            let message = "mode = \"wait\" is not supported; send \"keep\", after which requests go on, or \"abort\"";
            return Err(ApiError::unsupported("mode", message));
        }
    };
    not_in_training(&app)?;
    run_blocking(move || {
        app.runtime.pause(running)?;
        app.paused.store(true, Ordering::Relaxed);
        if clear_cache.unwrap_or(running == PauseMode::Abort) {
            app.runtime.reset_prefix_cache()?;
        }
        Ok(Json(json!({"status": "paused"})))
    })
    .await
}

/// `POST /resume`
pub(crate) async fn resume(State(app): State<Shared>) -> Result<Json<Value>, ApiError> {
    not_in_training(&app)?;
    run_blocking(move || {
        app.runtime.resume()?;
        app.paused.store(false, Ordering::Relaxed);
        Ok(Json(json!({"status": "resumed"})))
    })
    .await
}

/// `GET /is_paused`
pub(crate) async fn is_paused(State(app): State<Shared>) -> Json<Value> {
    Json(json!({"is_paused": app.paused.load(Ordering::Relaxed)}))
}

/// `POST /reset_prefix_cache`
pub(crate) async fn reset_prefix_cache(State(app): State<Shared>) -> Result<Json<Value>, ApiError> {
    run_blocking(move || {
        app.runtime.reset_prefix_cache()?;
        Ok(Json(json!({"success": true})))
    })
    .await
}

/// A run whose rollouts stop would wait for ever.
fn not_in_training(app: &App) -> Result<(), ApiError> {
    match app.training {
        None => Ok(()),
        Some(_) => Err(ApiError::conflict(
            "this server generates the rollouts of a training run; pause the run with POST /v1/train/pause",
        )),
    }
}

fn control(id: &'static str, summary: &'static str) -> Operation {
    Operation::new(id, summary).refuses(500, "A defect of the server.").refuses(503, "The device is gone.")
}

fn status(value: &str) -> Members {
    Members::new().always("status", one_of(&[value]), "")
}

pub(crate) fn describe_pause() -> Operation {
    control("pauseGeneration", "Stops generating; requests that come meanwhile wait")
        .query(
            "mode",
            one_of(&["abort", "keep"]),
            "What becomes of those that run: they end (default), or go on afterwards.",
        )
        .query("clear_cache", boolean(), "Forgets cached prefixes; true with `abort` when it is left out, else false.")
        .refuses(400, "A parameter is unknown or out of range.")
        .refuses(409, "The server generates the rollouts of a training run.")
        .answers(status("paused").closed())
}

pub(crate) fn describe_resume() -> Operation {
    control("resumeGeneration", "Goes on generating")
        .refuses(409, "The server generates the rollouts of a training run.")
        .answers(status("resumed").closed())
}

pub(crate) fn describe_is_paused() -> Operation {
    Operation::new("isPaused", "Whether generating is stopped")
        .answers(Members::new().always("is_paused", boolean(), "").closed())
}

pub(crate) fn describe_reset() -> Operation {
    control("resetPrefixCache", "Forgets all cached prefixes")
        .answers(Members::new().always("success", boolean(), "").closed())
}
