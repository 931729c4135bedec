//! `POST /v1/messages` and `/v1/messages/count_tokens`: the same turn of an assistant as chat's, in Anthropic's form.

mod blocks;
mod describe;
mod errors;
mod input;
mod object;
mod partial;
mod question;
mod request;
mod stream;
mod tools;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use serde_json::{Value, json};

use super::chat_request::Ready;
use super::envelope::{Envelope, Usage};
use crate::api_error::ApiError;
use crate::app::Shared;
use crate::fields::Fields;
use crate::generation::Running;
use crate::sse;
use blocks::Blocks;
pub(crate) use describe::{describe, describe_count};
pub(crate) use errors::shape;
use object::Head;
use request::Request;
use stream::{Stream, whole};

/// The versions of the API whose form this is; clients send theirs with every request.
const VERSIONS: [&str; 2] = ["2023-06-01", "2026-10-21"];

/// Answers once.
pub(crate) async fn create(
    State(app): State<Shared>,
    headers: HeaderMap,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    check_version(&headers)?;
    let name: String = fields.need("model")?;
    let model = app.models.find(Some(&name))?;
    let Request { turn, streams, stops, asked } = Request::take(fields, &model, &app)?;
    let Ready { prompt, reading, job } = turn.prepare(&app).await?;
    let usage = Usage { prompt: prompt.len(), ..Usage::default() };
    let limit = job.prompts.iter().find_map(|(_, params)| params.as_ref()).map_or(0, |params| params.max_tokens);
    let shortened = limit < asked;
    let head = Head { envelope: Envelope::new("msg_", &app, &model, Some(name)), stops, limit, shortened };
    let blocks = Blocks::new(reading);
    let running = Running::start(&app, job)?;
    if streams {
        return Ok(sse::respond(running, Stream::new(head, blocks, usage)));
    }
    let mut finished = running.collect().await?;
    // One answer was asked for.
    let one = finished.remove(0);
    Ok(Json(whole(head, blocks, usage, one)).into_response())
}

/// Counts the prompt of a message with the same fields. Nothing is computed.
pub(crate) async fn count(
    State(app): State<Shared>,
    headers: HeaderMap,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    check_version(&headers)?;
    let model = app.models.find(Some(&fields.need::<String>("model")?))?;
    let question = question::take(&mut fields, &model)?;
    request::no_effect(&mut fields)?;
    fields.finish()?;
    Ok(Json(json!({"input_tokens": question.ask().await?.prompt.len()})))
}

fn check_version(headers: &HeaderMap) -> Result<(), ApiError> {
    match headers.get("anthropic-version") {
        Some(version) if !VERSIONS.iter().any(|known| version == known) => {
            let known = VERSIONS.join(" and ");
            let message = format!("the header `anthropic-version` is {version:?}; {known} are spoken here");
            Err(ApiError::invalid("anthropic-version", message))
        }
        _ => Ok(()),
    }
}
