//! `POST /v1/responses`: the same turn of an assistant as chat's, in OpenAI's newer form. Nothing is stored.

mod describe;
mod input;
mod input_tokens;
mod object;
mod output;
mod question;
mod request;
mod stream;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::chat_request::Ready;
use super::envelope::{Envelope, Usage};
use crate::api_error::ApiError;
use crate::app::Shared;
use crate::fields::Fields;
use crate::generation::Running;
use crate::sse;
pub(crate) use describe::describe;
pub(crate) use input_tokens::{count_input, describe_count};
use object::Head;
use output::Output;
use request::Request;
use stream::{Stream, whole};

/// Answers once.
pub(crate) async fn create(State(app): State<Shared>, mut fields: Fields) -> Result<Response, ApiError> {
    let name: Option<String> = fields.take("model")?;
    let model = app.models.find(name.as_deref())?;
    let Request { turn, streams, logprobs, echo } = Request::take(fields, &model, &app)?;
    let Ready { prompt, reading, job } = turn.prepare(&app).await?;
    let usage = Usage { prompt: prompt.len(), ..Usage::default() };
    let head = Head { envelope: Envelope::new("resp_", &app, &model, name), echo };
    let output = Output::new(reading, logprobs);
    let running = Running::start(&app, job)?;
    if streams {
        return Ok(sse::respond(running, Stream::new(head, output, usage)));
    }
    let mut finished = running.collect().await?;
    // One answer was asked for.
    let one = finished.remove(0);
    Ok(Json(whole(head, output, usage, one)).into_response())
}
