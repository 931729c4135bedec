//! Errors as clients see them: OpenAI's envelope, always with its four keys.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use runtime::ErrorKind;
use runtime::sampler::SamplingError;
use runtime::scheduler::SubmitError;
use serde_json::{Value, json};

/// Why a request was not answered. It goes with its response, for those who give it another form.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// OpenAI's class of errors.
    kind: &'static str,
    pub(crate) message: String,
    /// The field that is to blame.
    pub(crate) param: Option<Cow<'static, str>>,
    pub(crate) code: Option<&'static str>,
    /// Seconds.
    pub(crate) retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, code, retry_after: None }
    }

    fn request(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", Some(code), message)
    }

    /// A field with a value that is not allowed.
    pub(crate) fn invalid(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::request(StatusCode::BAD_REQUEST, "invalid_parameter", message) }
    }

    /// A field that exists elsewhere and is not honoured here.
    pub(crate) fn unsupported(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::request(StatusCode::BAD_REQUEST, "unsupported_parameter", message) }
    }

    /// A field that no one knows.
    pub(crate) fn unknown(param: String) -> Self {
        let message = format!("unknown field `{param}`; remove it");
        Self { param: Some(param.into()), ..Self::request(StatusCode::BAD_REQUEST, "unknown_parameter", message) }
    }

    /// A body that is no JSON object.
    pub(crate) fn invalid_json(message: impl Into<String>) -> Self {
        Self::request(StatusCode::BAD_REQUEST, "invalid_json", message)
    }

    /// A prompt that leaves no room.
    pub(crate) fn too_long(message: impl Into<String>) -> Self {
        Self::request(StatusCode::BAD_REQUEST, "context_length_exceeded", message)
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", Some("invalid_api_key"), message)
    }

    pub(crate) fn model_not_found(name: &str, known: &str) -> Self {
        let message = format!("the model `{name}` does not exist; there are: {known}");
        let error = Self::request(StatusCode::NOT_FOUND, "model_not_found", message);
        Self { param: Some("model".into()), ..error }
    }

    pub(crate) fn route_not_found(path: &str) -> Self {
        Self::request(StatusCode::NOT_FOUND, "route_not_found", format!("there is no route {path}"))
    }

    pub(crate) fn no_training() -> Self {
        let message = "this server is in no training run (arle-train RECIPE --serve HOST:PORT) and knows of none \
                       (arle serve --train-control-url URL)";
        Self::request(StatusCode::NOT_FOUND, "train_control_unconfigured", message)
    }

    pub(crate) fn no_weight_transfer() -> Self {
        let message = "this server has no weight-transfer engine (NCCL): give it adapters with POST /v1/load_lora_adapter \
                       (--max-adapters), or train with arle-train, whose --serve answers with the newest weights";
        Self::request(StatusCode::BAD_REQUEST, "weight_transfer_unsupported", message)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", Some("forbidden"), message)
    }

    /// A request that does not say which host it is for.
    pub(crate) fn invalid_host(message: impl Into<String>) -> Self {
        Self::request(StatusCode::BAD_REQUEST, "invalid_host", message)
    }

    /// A body that does not say that it is JSON.
    pub(crate) fn no_json(given: Option<&HeaderValue>) -> Self {
        let given = given
            .map_or_else(|| "there is no content-type".to_owned(), |given| format!("the content-type is {given:?}"));
        let message = format!("{given}; send the body as JSON with the header \"content-type: application/json\"");
        Self::request(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::request(StatusCode::CONFLICT, "conflict", message)
    }

    pub(crate) fn method_not_allowed(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}; the header Allow says what it takes");
        Self::request(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    pub(crate) fn body_too_large(limit: usize) -> Self {
        let message = format!("the body exceeds {limit} bytes (--max-body-bytes)");
        Self::request(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", message)
    }

    pub(crate) fn slow_head(seconds: u64) -> Self {
        let message = format!("the head of the request did not arrive within {seconds} s");
        Self::request(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
    }

    /// What takes more memory than requests may have.
    pub(crate) fn needs_too_much(message: impl Into<String>) -> Self {
        Self::request(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", message)
    }

    /// An answer of rows of numbers that would be too long.
    pub(crate) fn answer_too_large(rows: usize, row: usize, limit: usize) -> Self {
        let message = format!(
            "an answer of {rows} rows of {row} bytes exceeds {limit} bytes (--max-score-bytes); ask for fewer positions or \
             sequences at a time"
        );
        Self::answer_too_long(message)
    }

    /// An answer that would be too long; `message` says what it would have.
    pub(crate) fn answer_too_long(message: impl Into<String>) -> Self {
        Self::request(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", message)
    }

    /// A body in a coding that is not read.
    pub(crate) fn compressed(coding: &str) -> Self {
        let message = format!("content-encoding: {coding:?} is not read here; send the body as it is, uncompressed");
        Self::request(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_encoding", message)
    }

    pub(crate) fn slow_body(seconds: u64) -> Self {
        let message = format!("the body did not arrive within {seconds} s");
        Self::request(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
    }

    pub(crate) fn busy(message: impl Into<String>, retry_after: u64) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("server_busy"), message);
        Self { retry_after: Some(retry_after), ..error }
    }

    pub(crate) fn timeout(seconds: u64) -> Self {
        let message = format!("the request took longer than {seconds} s (--request-timeout)");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "api_error", Some("timeout"), message)
    }

    /// The process of the training run cannot be reached.
    pub(crate) fn no_answer(url: &str, what: &str) -> Self {
        let message = format!("the training run at {url} does not answer: {what}");
        Self::new(StatusCode::BAD_GATEWAY, "api_error", Some("train_control_unreachable"), message)
    }

    /// The process of the training run takes too long.
    pub(crate) fn slow_answer(url: &str, patience: Duration) -> Self {
        let message = format!("the training run at {url} did not answer within {} s", patience.as_secs());
        Self::new(StatusCode::GATEWAY_TIMEOUT, "api_error", Some("timeout"), message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "api_error", Some("service_unavailable"), message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "api_error", Some("internal_error"), message)
    }

    /// The same error, blamed on another field.
    pub(crate) fn about(self, param: &'static str) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// The same error, about a field of the object that is this field.
    pub(crate) fn below(mut self, field: &'static str) -> Self {
        self.param = self.param.map(|param| format!("{field}.{param}").into());
        self
    }

    /// The envelope.
    pub(crate) fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl From<runtime::Error> for ApiError {
    fn from(error: runtime::Error) -> Self {
        use runtime::Error;
        let message = error.to_string();
        match (error.kind(), error) {
            (ErrorKind::Busy, _) => Self::busy(format!("server is busy: {message}"), 1),
            (ErrorKind::TooLong, _) => Self::too_long(message),
            (ErrorKind::NotFound, _) => Self::request(StatusCode::NOT_FOUND, "model_not_found", message),
            (ErrorKind::Conflict, _) => Self::conflict(message),
            (ErrorKind::Unavailable, _) => Self::unavailable(message),
            (ErrorKind::OutOfMemory | ErrorKind::Internal, _) => Self::internal(message),
            (ErrorKind::Invalid, Error::Submit(SubmitError::EmptyPrompt)) => Self::invalid("prompt", message),
            (ErrorKind::Invalid, Error::Sampling(SamplingError::OutOfRange { field, .. })) => {
                Self::invalid(field, message)
            }
            (ErrorKind::Invalid, Error::Sampling(SamplingError::NoCandidate { .. })) => {
                Self::request(StatusCode::BAD_REQUEST, "no_token_possible", message)
            }
            (ErrorKind::Invalid, Error::ChatTemplate(_)) => Self::invalid("messages", message),
            (ErrorKind::Invalid, _) => Self::request(StatusCode::BAD_REQUEST, "invalid_parameter", message),
        }
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::request(StatusCode::BAD_REQUEST, "invalid_parameter", rejection.body_text())
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::request(StatusCode::BAD_REQUEST, "invalid_parameter", rejection.body_text())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::error!(status = self.status.as_u16(), "{}", self.message);
        }
        let mut response = (self.status, Json(self.body())).into_response();
        if self.status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use runtime::Error;
    use runtime::request::{ModelId, RequestError};

    use super::*;

    #[test]
    fn an_error_of_the_runtime_has_the_status_of_its_kind() {
        let model = ModelId(9);
        let cases: [(Error, u16); 8] = [
            (RequestError::NoModel { model }.into(), 404),
            (RequestError::AdapterInUse { model }.into(), 409),
            (RequestError::SequenceTooLong { sequence: 0, tokens: 9, max: 8 }.into(), 400),
            (RequestError::Top { top: 9, vocab_size: 8 }.into(), 400),
            (RequestError::NonFiniteLogits { sequence: 0, position: 1 }.into(), 500),
            (SubmitError::QueueFull { max_waiting: 3 }.into(), 429),
            (SubmitError::EmptyPrompt.into(), 400),
            (Error::Stopped("it panicked".to_owned()), 503),
        ];
        for (error, status) in cases {
            let message = error.to_string();
            let answer = ApiError::from(error);
            assert_eq!(answer.status.as_u16(), status, "{message}");
            assert!(answer.message.contains(&message), "{}", answer.message);
        }
    }
}
