//! Which path leads where, and who may go there.

use std::sync::Arc;

use axum::extract::Request;
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use http::{HeaderName, HeaderValue, Method, Uri, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::api;
use crate::api_error::ApiError;
use crate::app::Shared;
use crate::credentials::keys::X_API_KEY;
use crate::limits::memory;
use crate::middleware::access;
use crate::middleware::cross_origin;
use crate::middleware::request_id;
use crate::openapi::{self, Access, Document, KeysFor, Route};
use crate::{Error, Result};

/// Every route, with its description.
pub(crate) fn routes() -> Vec<Route<Shared>> {
    use Access::{Admin, Key, Open};
    use api::{
        adapters, chat, completions, dashboard, embeddings, generate, health, messages, models, pause, responses, rows,
        score, server_info, stats, tokenize, train, weight_transfer,
    };
    vec![
        Route::get(Open, "/", dashboard::page, dashboard::describe()),
        Route::get(Open, "/health", health::health, health::describe_health()),
        Route::get(Open, "/ready", health::ready, health::describe_ready()),
        Route::get(Open, "/version", server_info::version, server_info::describe_version()),
        Route::get(Open, "/openapi.json", openapi::show, openapi::describe()),
        Route::get(Key, "/v1/models", models::list, models::describe_list()),
        Route::get(Key, "/v1/models/{*model}", models::retrieve, models::describe_retrieve()),
        Route::post(Key, "/v1/chat/completions", chat::create, chat::describe()),
        Route::post(Key, "/v1/chat/completions/render", chat::render, chat::describe_render()),
        Route::post(Key, "/inference/v1/generate", generate::create, generate::describe()),
        Route::post(Key, "/v1/responses", responses::create, responses::describe()),
        Route::post(Key, "/v1/responses/input_tokens", responses::count_input, responses::describe_count()),
        Route::post(Key, "/v1/messages", messages::create, messages::describe()),
        Route::post(Key, "/v1/messages/count_tokens", messages::count, messages::describe_count()),
        Route::post(Key, "/v1/completions", completions::create, completions::describe()),
        Route::post(Key, "/v1/embeddings", embeddings::create, embeddings::describe()),
        Route::post(Key, "/v1/score", score::create, score::describe()),
        Route::post(Key, "/v1/raw_logits", rows::raw_logits, rows::describe()),
        Route::post(Key, "/tokenize", tokenize::tokenize, tokenize::describe_tokenize()),
        Route::post(Key, "/detokenize", tokenize::detokenize, tokenize::describe_detokenize()),
        Route::get(Key, "/tokenizer_info", tokenize::info, tokenize::describe_info()),
        Route::get(Key, "/v1/train/status", train::status, train::describe_status()),
        Route::get(Key, "/v1/train/events", train::events, train::describe_events()),
        Route::get(Key, "/metrics", stats::metrics, stats::describe_metrics()),
        Route::get(Key, "/v1/stats", stats::stats, stats::describe_stats()),
        Route::get(Key, "/server_info", server_info::info, server_info::describe_info()),
        Route::get(Key, "/get_world_size", server_info::world_size, server_info::describe_world_size()),
        Route::get(Key, "/is_paused", pause::is_paused, pause::describe_is_paused()),
        Route::post(Admin, "/pause", pause::pause, pause::describe_pause()),
        Route::post(Admin, "/resume", pause::resume, pause::describe_resume()),
        Route::post(Admin, "/reset_prefix_cache", pause::reset_prefix_cache, pause::describe_reset()),
        Route::post(Admin, "/init_weight_transfer_engine", weight_transfer::refuse, weight_transfer::describe_init()),
        Route::post(Admin, "/start_weight_update", weight_transfer::refuse, weight_transfer::describe_start()),
        Route::post(Admin, "/update_weights", weight_transfer::refuse, weight_transfer::describe_update()),
        Route::post(Admin, "/finish_weight_update", weight_transfer::refuse, weight_transfer::describe_finish()),
        Route::post(Admin, "/v1/load_lora_adapter", adapters::load, adapters::describe_load()),
        Route::post(Admin, "/v1/unload_lora_adapter", adapters::unload, adapters::describe_unload()),
        Route::post(Admin, "/v1/train/stop", train::stop, train::describe_stop()),
        Route::post(Admin, "/v1/train/save", train::save, train::describe_save()),
        Route::post(Admin, "/v1/train/pause", train::pause, train::describe_pause()),
        Route::post(Admin, "/v1/train/resume", train::resume, train::describe_resume()),
        Route::post(Admin, "/v1/train/lr", train::lr, train::describe_lr()),
    ]
}

/// The routes that these may call.
fn group(routes: &[Route<Shared>], access: Access) -> Router<Shared> {
    let routes = routes.iter().filter(|route| route.access == access);
    routes.fold(Router::new(), |router, route| router.route(route.path, route.code.clone()))
}

/// All routes of a server.
pub(crate) fn router(app: &Shared) -> Result<Router> {
    let routes = routes();
    let keys = KeysFor { api: app.config.api_keys.is_some(), admin: app.config.admin_keys.is_some() };
    let elsewhere = || from_fn_with_state(Arc::clone(app), api::train::elsewhere);
    let keyed = group(&routes, Access::Key)
        .route_layer(elsewhere())
        .route_layer(from_fn_with_state(Arc::clone(app), access::require_key));
    let admin = group(&routes, Access::Admin)
        .route_layer(elsewhere())
        .route_layer(from_fn_with_state(Arc::clone(app), access::require_admin_key));
    let router = group(&routes, Access::Open)
        .merge(keyed)
        .merge(admin)
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(Extension(Document::new(routes, keys)))
        .layer(from_fn_with_state(Arc::clone(&app.budget), memory::account))
        .layer(from_fn_with_state(Arc::clone(app), cross_origin::check))
        .layer(map_response(no_sniffing))
        .layer(from_fn_with_state(Arc::clone(app), request_id::name))
        .layer(from_fn(api::messages::shape));
    let router = match cors(&app.config.cors_origins)? {
        Some(layer) => router.layer(layer),
        None => router,
    };
    Ok(router.with_state(Arc::clone(app)))
}

/// The routes of a server that stops: it says what it did and what it does, and takes no new work.
pub(crate) fn stopping(routes: Router) -> Router {
    routes.layer(from_fn(nothing_new))
}

async fn nothing_new(request: Request, next: Next) -> Response {
    if request.method() == Method::GET {
        return next.run(request).await;
    }
    ApiError::unavailable("the server is stopping and takes no new work; send it to another one").into_response()
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
    let anthropic = ["anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access"];
    let headers = [header::AUTHORIZATION, header::CONTENT_TYPE, X_API_KEY].into_iter();
    let headers: Vec<HeaderName> = headers.chain(anthropic.map(HeaderName::from_static)).collect();
    Ok(Some(CorsLayer::new().allow_origin(allowed).allow_methods([Method::GET, Method::POST]).allow_headers(headers)))
}
