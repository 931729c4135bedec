//! Which path leads where, and who may go there.

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::{get, post};
use http::{HeaderValue, Method, Uri, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::api;
use crate::api_error::ApiError;
use crate::app::Shared;
use crate::{Error, Result, access, request_id};

/// All routes of a server.
pub(crate) fn router(app: &Shared) -> Result<Router> {
    let open = Router::new().route("/health", get(api::health::health)).route("/ready", get(api::health::ready));
    let keyed = Router::new()
        .route("/v1/models", get(api::models::list))
        .route("/v1/models/{*model}", get(api::models::retrieve))
        .route("/v1/chat/completions", post(api::chat::create))
        .route("/v1/completions", post(api::completions::create))
        .route("/v1/responses", post(api::responses::create))
        .route("/v1/embeddings", post(api::embeddings::create))
        .route("/v1/score", post(api::score::create))
        .route("/tokenize", post(api::tokenize::tokenize))
        .route("/detokenize", post(api::tokenize::detokenize))
        .route("/tokenizer_info", get(api::tokenize::info))
        .route("/v1/train/status", get(api::train::status))
        .route("/v1/train/events", get(api::train::events))
        .route("/metrics", get(api::stats::metrics))
        .route("/v1/stats", get(api::stats::stats))
        .route_layer(from_fn_with_state(Arc::clone(app), access::require_key));
    let admin = Router::new()
        .route("/v1/load_lora_adapter", post(api::adapters::load))
        .route("/v1/unload_lora_adapter", post(api::adapters::unload))
        .route("/v1/train/stop", post(api::train::stop))
        .route("/v1/train/save", post(api::train::save))
        .route("/v1/train/pause", post(api::train::pause))
        .route("/v1/train/resume", post(api::train::resume))
        .route_layer(from_fn_with_state(Arc::clone(app), access::require_admin_key));
    let router = open
        .merge(keyed)
        .merge(admin)
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(map_response(no_sniffing))
        .layer(from_fn_with_state(Arc::clone(app), request_id::name));
    let router = match cors(&app.config.cors_origins)? {
        Some(layer) => router.layer(layer),
        None => router,
    };
    Ok(router.with_state(Arc::clone(app)))
}

async fn no_route(uri: Uri) -> ApiError {
    ApiError::route_not_found(uri.path())
}

async fn no_method(method: Method, uri: Uri) -> ApiError {
    ApiError::method_not_allowed(method.as_str(), uri.path())
}

/// What is sent is what its type says: a browser must not guess.
async fn no_sniffing(mut response: Response) -> Response {
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Browsers may call from these origins; from none when there are none.
fn cors(origins: &[String]) -> Result<Option<CorsLayer>> {
    if origins.is_empty() {
        return Ok(None);
    }
    let origin = |origin: &String| {
        let value = HeaderValue::try_from(origin).ok().filter(|_| origin == "*" || origin.contains("://"));
        value.ok_or_else(|| Error::Origin(origin.clone()))
    };
    let values = origins.iter().map(origin).collect::<Result<Vec<_>>>()?;
    let any = values.iter().any(|value| value == "*");
    let allowed = if any { AllowOrigin::any() } else { AllowOrigin::list(values) };
    let headers = [header::AUTHORIZATION, header::CONTENT_TYPE];
    Ok(Some(CorsLayer::new().allow_origin(allowed).allow_methods([Method::GET, Method::POST]).allow_headers(headers)))
}
