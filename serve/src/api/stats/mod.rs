//! Two renderings of the same counters.

mod families;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;
use serde_json::Value;

use crate::app::Shared;
use crate::openapi::Operation;
use crate::openapi::schema::{any_of, described, list, map, null, number, text};

/// `GET /metrics`: Prometheus' text.
pub(crate) async fn metrics(State(app): State<Shared>) -> Response {
    let text = families::text(&families::families(&app), app.config.metric_names);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// `GET /v1/stats`: the same as JSON.
pub(crate) async fn stats(State(app): State<Shared>) -> Json<Value> {
    Json(families::json(&families::families(&app)))
}

pub(crate) fn describe_metrics() -> Operation {
    Operation::new("getMetrics", "Counters for Prometheus").answers_with("text/plain", text())
}

pub(crate) fn describe_stats() -> Operation {
    let sample = map(any_of([number(None, None), text(), null()]));
    let samples = described(
        list(sample),
        "One for each set of labels: `value`, or a histogram's `count`, `sum`, `mean`, `p50`, `p95`.",
    );
    Operation::new("getStats", "The same counters as JSON, by name").answers(map(samples))
}
