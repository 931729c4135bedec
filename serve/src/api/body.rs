//! The body of a request: as long as is allowed, as fast as is reasonable, and a JSON object.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use futures_util::StreamExt;
use http::header;

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::fields::Fields;
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
        let reading = tokio::time::timeout(TIMEOUT, read(request.into_body(), limit)).await;
        let fields = Self::parse(&reading.map_err(|_| ApiError::slow_body(TIMEOUT.as_secs()))??)?;
        fields.check(&known)?;
        Ok(fields)
    }
}

async fn read(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| ApiError::invalid_json(format!("the body did not arrive whole: {error}")))?;
        if bytes.len() + piece.len() > limit {
            return Err(ApiError::body_too_large(limit));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}
