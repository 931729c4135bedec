//! `GET /`: a page to look at. It asks `/v1/stats` and `/v1/train` itself, with the keys that its reader types in.

use std::sync::LazyLock;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header;
use sha2::{Digest, Sha256};

use crate::app::Shared;

const PAGE: &str = include_str!("../dashboard.html");

/// Nothing but what is in the page runs, and it talks to nobody but this server.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |tag: &str| {
        let (_, rest) = PAGE.split_once(&format!("<{tag}>")).expect("the page has it");
        let (text, _) = rest.split_once(&format!("</{tag}>")).expect("it ends");
        format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)))
    };
    let (script, style) = (hash("script"), hash("style"));
    format!(
        "default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'"
    )
});

/// The page. It holds no data, so it needs no key.
pub(crate) async fn page(State(app): State<Shared>) -> Response {
    let training = if app.training.is_some() || app.train_proxy.is_some() { "there" } else { "none" };
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
    ];
    (headers, PAGE.replacen("TRAINING", training, 1)).into_response()
}
