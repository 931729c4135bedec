//! Who may call which route.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, header};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::credentials::keys::{X_API_KEY, bearer};

/// Lets a request with an API key pass; an admin key is one, too.
pub(crate) async fn require_key(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let config = &app.config;
    let admitted = match &config.api_keys {
        None => true,
        Some(keys) => {
            [Some(keys), config.admin_keys.as_ref()].into_iter().flatten().any(|k| k.admits(request.headers()))
        }
    };
    if admitted { next.run(request).await } else { unauthorized(request.headers(), "an API key") }
}

/// Lets a request with an admin key pass. Where there are no keys at all, whoever `origin` admits passes: this machine, and
/// the server's own page.
pub(crate) async fn require_admin_key(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let config = &app.config;
    let refused = match (&config.admin_keys, &config.api_keys) {
        (Some(keys), _) if keys.admits(request.headers()) => None,
        (Some(_), _) => Some(unauthorized(request.headers(), "an admin key")),
        (None, Some(_)) => Some(
            ApiError::forbidden("this route needs an admin key, and the server has none (--admin-key-file)")
                .into_response(),
        ),
        (None, None) => None,
    };
    match refused {
        Some(refused) => refused,
        None => next.run(request).await,
    }
}

fn unauthorized(headers: &HeaderMap, needed: &str) -> Response {
    let sent = bearer(headers).or_else(|| headers.get(X_API_KEY).and_then(|key| key.to_str().ok()));
    let how = "send \"Authorization: Bearer KEY\" or \"x-api-key: KEY\"";
    let message = match (sent, headers.contains_key(header::AUTHORIZATION)) {
        (Some(key), _) if !key.is_empty() => format!("the key that was sent is not {needed} of this server"),
        (_, true) => format!("this route needs {needed}, and the header \"Authorization\" has none: {how}"),
        (_, false) => format!("this route needs {needed}: {how}"),
    };
    let mut response = ApiError::unauthorized(message).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"arle\""));
    response
}
