//! The fields of a request for a response.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::chat_request::ChatRequest;
use super::super::score::alternatives;
use super::question;
use crate::api_error::ApiError;
use crate::app::App;
use crate::fields::{Fields, NO_EFFECT};
use crate::logprobs::Names;
use crate::models::Model;
use crate::sampling::Sampling;

/// The name of the length of a response.
const LENGTH: &[&str] = &["max_output_tokens"];
/// What `include` may ask for: the first is honoured; the others are about what no item has here.
pub(super) const LOGPROBS: &str = "message.output_text.logprobs";
pub(super) const OF_OTHER_ITEMS: &[&str] = &[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
];

/// What is asked for.
pub(super) struct Request {
    pub(super) turn: ChatRequest,
    pub(super) streams: bool,
    /// What spells the tokens, where their log-probabilities are shown.
    pub(super) logprobs: Option<Names>,
    /// What the answer repeats of the request.
    pub(super) echo: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    /// Asks for padding against observers of an encrypted connection's lengths. It changes no result.
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

impl Request {
    pub(super) fn take(mut fields: Fields, model: &Arc<Model>, app: &App) -> Result<Self, ApiError> {
        unsupported(&mut fields)?;
        let (question, mut echo) = question::take(&mut fields, model)?;
        let mut sampling = Sampling::take(&mut fields, model, app.config.sampling_defaults, LENGTH)?;
        let top = alternatives(fields.take("top_logprobs")?, "top_logprobs")?;
        let logprobs = includes_logprobs(&mut fields)?;
        if top.is_some_and(|top| top > 0) && !logprobs {
            let message = format!("`top_logprobs` needs `include`: [\"{LOGPROBS}\"]");
            return Err(ApiError::invalid("top_logprobs", message));
        }
        sampling.report(top);
        if logprobs {
            sampling.check_logprobs(app.config.logprobs_mode)?;
        }
        let metadata: BTreeMap<String, String> = fields.take("metadata")?.unwrap_or_default();
        let streams = streams(&mut fields)?;
        fields.accept(NO_EFFECT);
        fields.finish()?;
        let more = [
            ("max_output_tokens", json!(sampling.max_tokens())),
            ("metadata", json!(metadata)),
            ("temperature", shortest(sampling.temperature())),
            ("top_logprobs", json!(top.unwrap_or(0))),
            ("top_p", shortest(sampling.top_p())),
        ];
        echo.extend(more.map(|(field, value)| (field.to_owned(), value)));
        let names = Names { tokenizer: Arc::clone(model.tokenizer()?), as_ids: false };
        let turn = ChatRequest { question, sampling, copies: 1 };
        Ok(Self { turn, streams, logprobs: logprobs.then_some(names), echo })
    }
}

/// Fields that OpenAI has, with the values that mean what happens here anyway.
fn unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.only("prompt", &[], "prompts are not stored; send `instructions` and `input`")?;
    fields.only("background", &[json!(false)], "responses are not stored, so they could not be fetched later")?;
    fields.only("background_options", &[], "there is no background")?;
    fields.only("context_management", &[], "nothing is left out of a conversation")?;
    fields.only("moderation", &[], "there is no moderation")?;
    fields.only("image", &[], "only text is read")?;
    fields.only("access_programs", &[], "there are none")?;
    // It limits tools that run on the server, of which there are none.
    fields.take::<i64>("max_tool_calls").map(drop)
}

/// Whether `include` asks for log-probabilities.
fn includes_logprobs(fields: &mut Fields) -> Result<bool, ApiError> {
    let include: Vec<String> = fields.take("include")?.unwrap_or_default();
    for one in &include {
        if one != LOGPROBS && !OF_OTHER_ITEMS.contains(&one.as_str()) {
            let message = format!("`include`: \"{one}\" is not supported; \"{LOGPROBS}\" is");
            return Err(ApiError::unsupported("include", message));
        }
    }
    Ok(include.iter().any(|one| one == LOGPROBS))
}

fn streams(fields: &mut Fields) -> Result<bool, ApiError> {
    let stream = fields.take("stream")?.unwrap_or(false);
    match fields.take::<StreamOptions>("stream_options")? {
        Some(_) if !stream => Err(ApiError::invalid("stream_options", "`stream_options` needs `stream`: true")),
        _ => Ok(stream),
    }
}

/// The shortest decimal number of this value.
fn shortest(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}
