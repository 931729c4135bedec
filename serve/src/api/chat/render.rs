//! `POST /v1/chat/completions/render`: what a conversation would be asked as, in the form of `/inference/v1/generate`.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::{Chat, describe};
use crate::api::chat_request::Ready;
use crate::api::generate::sampling_params;
use crate::api_error::ApiError;
use crate::app::Shared;
use crate::fields::Fields;
use crate::ids;
use crate::openapi::Operation;
use crate::openapi::schema::{Members, any, boolean, list, map, null, text, token_id};

/// Renders, and computes nothing.
pub(crate) async fn render(State(app): State<Shared>, fields: Fields) -> Result<Json<Value>, ApiError> {
    let Chat { name, model, turn, streaming, .. } = Chat::take(&app, fields)?;
    let copies = turn.copies;
    let Ready { prompt, job, .. } = turn.prepare(&app).await?;
    if job.guide.is_some() {
        let message = "a form of the answer is not part of what is rendered; send it to /inference/v1/generate";
        return Err(ApiError::unsupported("response_format", message));
    }
    let params = job.prompts.first().and_then(|(_, params)| params.as_ref());
    Ok(Json(json!({
        "request_id": ids::fresh("chatcmpl-"),
        "model": name.unwrap_or_else(|| model.name().to_owned()),
        "token_ids": prompt,
        "features": null,
        "sampling_params": params.map_or_else(|| json!({"max_tokens": 0}), |params| sampling_params(params, copies)),
        "stream": streaming.is_some(),
    })))
}

pub(crate) fn describe_render() -> Operation {
    let answer = Members::new()
        .always("request_id", text(), "")
        .always("model", text(), "")
        .always("token_ids", list(token_id()), "The prompt.")
        .always("features", null(), "Of images; there are none.")
        .always("sampling_params", map(any()), "With the defaults of this server.")
        .always("stream", boolean(), "");
    Operation::new("renderChatCompletion", "The prompt of a conversation as token ids; nothing is computed")
        .reads(describe::body())
        .finds_model()
        .answers(answer.closed())
}
