//! The body of a request: as long as is allowed, as fast as is reasonable, and a JSON object.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, Request};
use futures_util::StreamExt;
use http::{HeaderValue, header};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::fields::Fields;
use crate::limits::blocking_pool::{SHORT, run_blocking};
use crate::limits::json_text;
use crate::limits::memory::{self, Share};
use crate::openapi::Known;

/// A body that arrives more slowly is not waited for.
const TIMEOUT: Duration = Duration::from_secs(60);

impl FromRequest<Shared> for Fields {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, ApiError> {
        let limit = app.config.max_body_bytes;
        let Some(Known(known)) = request.extensions().get::<Known>().cloned() else {
            return Err(ApiError::internal("the description of this route has no body (Operation::reads)"));
        };
        // Compressed bytes are no JSON, and what they would grow to is not known before it is there.
        let coding = request.headers().get(header::CONTENT_ENCODING);
        if let Some(coding) = coding.filter(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(ApiError::compressed(&String::from_utf8_lossy(coding.as_bytes())));
        }
        // Whoever announces too much is told before it is sent.
        let announced =
            request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: usize| length > limit) {
            return Err(ApiError::body_too_large(limit));
        }
        let kind = request.headers().get(header::CONTENT_TYPE);
        if !request.body().is_end_stream() && !kind.is_some_and(is_json) {
            return Err(ApiError::no_json(kind));
        }
        let mut share = app.budget.share();
        let reading = tokio::time::timeout(TIMEOUT, read(request.into_body(), announced, limit, &mut share)).await;
        let body = reading.map_err(|_| ApiError::slow_body(TIMEOUT.as_secs()))??;
        let outline = json_text::outline(&body);
        json_text::check_depth(outline, "the body")?;
        share.grow(outline.bytes, "the body's JSON")?;
        let fields =
            if body.len() <= SHORT { Self::parse(&body)? } else { run_blocking(move || Self::parse(&body)).await? };
        share.shrink(outline.bytes);
        memory::hold_input(share);
        fields.check(&known)?;
        Ok(fields)
    }
}

/// `application/json` and its relatives, with whatever parameters.
fn is_json(kind: &HeaderValue) -> bool {
    let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// Takes memory for what arrives, as it arrives.
async fn read(body: Body, announced: Option<usize>, limit: usize, share: &mut Share) -> Result<Vec<u8>, ApiError> {
    // Pages that nothing was written to take no memory.
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0));
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| ApiError::invalid_json(format!("the body did not arrive whole: {error}")))?;
        if bytes.len() + piece.len() > limit {
            return Err(ApiError::body_too_large(limit));
        }
        let arrived = if announced.is_some() { piece.len() } else { 2 * piece.len() };
        share.grow(arrived as u64, "the body")?;
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}
