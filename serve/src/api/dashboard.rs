//! `GET /`: a page to look at. It asks `/v1/stats` and `/v1/train` itself, with the keys that its reader types in.

use std::sync::LazyLock;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header;
use sha2::{Digest, Sha256};

use crate::app::Shared;
use crate::openapi::Operation;
use crate::openapi::schema::text;

const PAGE: &str = include_str!("../dashboard/page.html");
const STYLE: &str = include_str!("../dashboard/style.css");
const SCRIPT: &str = include_str!("../dashboard/script.js");

/// Nothing but what is in the page runs, and it talks to nobody but this server.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
    let (script, style) = (hash(SCRIPT), hash(STYLE));
    format!(
        "default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'"
    )
});

/// The page, as one file. It holds no data, so it needs no key.
pub(crate) async fn page(State(app): State<Shared>) -> Response {
    let training = if app.training.is_some() || app.train_proxy.is_some() { "there" } else { "none" };
    let page = PAGE.replacen("TRAINING", training, 1).replacen("STYLE", STYLE, 1).replacen("SCRIPT", SCRIPT, 1);
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
    ];
    (headers, page).into_response()
}

pub(crate) fn describe() -> Operation {
    Operation::new("getPage", "A page to look at").answers_with("text/html", text())
}
