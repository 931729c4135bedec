//! The fields of a request for a message.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::chat_request::ChatRequest;
use super::question;
use crate::api_error::ApiError;
use crate::app::App;
use crate::fields::Fields;
use crate::models::Model;
use crate::sampling::Sampling;

/// The name of the length of a message.
const LENGTH: &[&str] = &["max_tokens"];
/// Fields that cannot change an answer here: who asks, how it is billed, cached and where it is computed.
pub(super) const NO_EFFECT: &[&str] =
    &["metadata", "service_tier", "cache_control", "inference_geo", "diagnostics", "user_profile_id", "workspace_id"];

/// What is asked for.
pub(super) struct Request {
    pub(super) turn: ChatRequest,
    pub(super) streams: bool,
    pub(super) stops: Vec<String>,
    /// Tokens of the answer, at most.
    pub(super) asked: usize,
}

impl Request {
    pub(super) fn take(mut fields: Fields, model: &Arc<Model>, app: &App) -> Result<Self, ApiError> {
        let question = question::take(&mut fields, model)?;
        let stops: Vec<String> = fields.take("stop_sequences")?.unwrap_or_default();
        let mut sampling = Sampling::take(&mut fields, model, app.config.sampling_defaults, LENGTH)?;
        sampling.stop_at(&stops, "stop_sequences")?;
        // Where the context ends earlier, the answer says so.
        let Some(asked) = sampling.shorten_to_room() else {
            return Err(ApiError::invalid("max_tokens", "`max_tokens` is missing"));
        };
        if question.thinking.budget.is_some_and(|budget| budget >= asked) {
            let message = format!("`thinking.budget_tokens` must be less than `max_tokens`, which is {asked}");
            return Err(ApiError::invalid("thinking", message));
        }
        let streams = fields.take("stream")?.unwrap_or(false);
        no_effect(&mut fields)?;
        fields.finish()?;
        Ok(Self { turn: ChatRequest { question, sampling, copies: 1 }, streams, stops, asked })
    }
}

/// Fields that Anthropic has, with the values that mean what happens here anyway.
pub(super) fn no_effect(fields: &mut Fields) -> Result<(), ApiError> {
    fields.accept(NO_EFFECT);
    fields.only("speed", &[json!("standard")], "there is one")?;
    fields.only("container", &[], "nothing runs on this server")?;
    fields.only("mcp_servers", &[json!([])], "this server calls no others; let the client offer their tools")?;
    let Some(mut management) = fields.take::<Fields>("context_management")? else { return Ok(()) };
    let below = |error: ApiError| error.below("context_management");
    let edits: Vec<Value> = management.take("edits").map_err(below)?.unwrap_or_default();
    if let Some(edit) = edits.iter().find(|edit| **edit != json!({"type": "clear_thinking_20251015", "keep": "all"})) {
        let message =
            format!("`context_management.edits`: {edit} is not supported: nothing is left out of a conversation");
        return Err(ApiError::unsupported("context_management.edits", message));
    }
    management.finish().map_err(below)
}
