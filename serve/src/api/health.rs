//! Whether the server lives, and whether it should be sent requests.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Value, json};

use crate::app::{Phase, Shared};
use crate::openapi::Operation;
use crate::openapi::schema::{Members, Schema, one_of};

/// `GET /health`: the process answers.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// `GET /ready`: 200 from the end of the warm-up until the server is asked to stop.
pub(crate) async fn ready(State(app): State<Shared>) -> Response {
    let (status, text) = match app.phase() {
        Phase::WarmingUp => (StatusCode::SERVICE_UNAVAILABLE, "warming up"),
        Phase::Ready => (StatusCode::OK, "ready"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    (status, Json(json!({"status": text}))).into_response()
}

fn status(values: &[&str]) -> Schema {
    Members::new().always("status", one_of(values), "").closed()
}

pub(crate) fn describe_health() -> Operation {
    Operation::new("getHealth", "Whether the process answers").answers(status(&["ok"]))
}

pub(crate) fn describe_ready() -> Operation {
    Operation::new("getReady", "Whether requests should be sent here").answers(status(&["ready"])).answers_otherwise(
        503,
        "It warms up, or it stops.",
        status(&["warming up", "draining"]),
    )
}
