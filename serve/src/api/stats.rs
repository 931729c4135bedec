//! Two renderings of the same counters.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;
use serde_json::Value;

use crate::app::Shared;
use crate::metrics;

/// `GET /metrics`: Prometheus' text.
pub(crate) async fn metrics(State(app): State<Shared>) -> Response {
    let text = metrics::text(&metrics::families(&app));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// `GET /v1/stats`: the same as JSON.
pub(crate) async fn stats(State(app): State<Shared>) -> Json<Value> {
    Json(metrics::json(&metrics::families(&app)))
}
