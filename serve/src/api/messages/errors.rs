//! Errors in Anthropic's form.

use axum::Json;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, StatusCode, header};
use serde_json::{Value, json};

use crate::api_error::ApiError;

/// Below it errors have this form, whoever found them.
const BELOW: &str = "/v1/messages";
/// Anthropic's name for what `x-request-id` says.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Anthropic's class of errors.
fn kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        408 | 504 => "timeout_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}

/// The error as an object, which is also the last event of a stream that fails.
pub(super) fn body(error: &ApiError) -> Value {
    json!({"type": "error", "error": {"type": kind(error.status), "message": error.message}})
}

/// Names answers as Anthropic's clients expect it, and gives errors their form.
pub(crate) async fn shape(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let below = path.strip_prefix(BELOW).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let mut response = next.run(request).await;
    if !below {
        return response;
    }
    let id = response.headers().get("x-request-id").cloned();
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        let mut body = body(&error);
        body["request_id"] = json!(id.as_ref().and_then(|id| id.to_str().ok()));
        let (mut parts, _) = response.into_parts();
        let (json, body) = Json(body).into_response().into_parts();
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.extend(json.headers);
        response = Response::from_parts(parts, body);
    }
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
