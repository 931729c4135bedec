//! The fields of a request for a response.

use std::collections::BTreeMap;
use std::sync::Arc;

use runtime::text::Tokenizer;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::score::alternatives;
use super::super::turn::Turn;
use super::input;
use crate::api_error::ApiError;
use crate::app::App;
use crate::fields::{Fields, NO_EFFECT};
use crate::grammar::Form;
use crate::models::Model;
use crate::prompt;
use crate::sampling::Sampling;
use crate::thinking::Thinking;
use crate::tools::{Given, Tools};

/// The name of the length of a response.
const LENGTH: &[&str] = &["max_output_tokens"];
/// What `include` may ask for: the first is honoured; the others are about items that there are none of here.
pub(super) const LOGPROBS: &str = "message.output_text.logprobs";
pub(super) const OF_OTHER_ITEMS: &[&str] = &[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
];

/// What is asked for.
pub(super) struct Request {
    pub(super) turn: Turn,
    pub(super) streams: bool,
    /// What spells the tokens, where their log-probabilities are shown.
    pub(super) logprobs: Option<Arc<Tokenizer>>,
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
        let instructions: Option<String> = fields.take("instructions")?;
        let messages = input::messages(instructions.as_deref(), fields.take("input")?)?;
        let given: Vec<Value> = fields.take("tools")?.unwrap_or_default();
        let choice: Option<Value> = fields.take("tool_choice")?;
        let parallel: Option<bool> = fields.take("parallel_tool_calls")?;
        let (text, form) = form(&mut fields)?;
        let mut thinking = Thinking::take(&mut fields, model)?;
        let reasoning = reasoning(&mut fields, model, &mut thinking)?;
        let mut sampling = Sampling::take(&mut fields, model, app.config.sampling_defaults, LENGTH)?;
        let top = alternatives(fields.take("top_logprobs")?, "top_logprobs")?;
        let logprobs = includes_logprobs(&mut fields)?;
        if top.is_some_and(|top| top > 0) && !logprobs {
            let message = format!("`top_logprobs` needs `include`: [\"{LOGPROBS}\"]");
            return Err(ApiError::invalid("top_logprobs", message));
        }
        sampling.report(top);
        let metadata: BTreeMap<String, String> = fields.take("metadata")?.unwrap_or_default();
        let streams = streams(&mut fields)?;
        let echo = json!({
            "instructions": instructions,
            "max_output_tokens": sampling.max_tokens(),
            "metadata": metadata,
            "parallel_tool_calls": parallel.unwrap_or(true),
            "reasoning": reasoning,
            "temperature": shortest(sampling.temperature()),
            "text": text,
            "tool_choice": choice.clone().unwrap_or_else(|| json!("auto")),
            "tools": given.iter().map(echoed).collect::<Vec<_>>(),
            "top_logprobs": top.unwrap_or(0),
            "top_p": shortest(sampling.top_p()),
        });
        let Value::Object(echo) = echo else { unreachable!("it is written as an object") };
        fields.accept(NO_EFFECT);
        fields.finish()?;
        let tools = given.iter().enumerate().map(|(index, tool)| nested(index, tool)).collect::<Result<_, _>>()?;
        let tools = Tools::new(Given { tools, choice: choice.map(nested_choice), parallel, place: "" }, model)?;
        let turn = Turn {
            model: Arc::clone(model),
            messages: prompt::conversation(messages).map_err(|error| error.about("input"))?,
            field: "input",
            tools,
            form: form.map(|form| (form, "text")),
            thinking,
            sampling,
            copies: 1,
        };
        let tokenizer = Arc::clone(model.tokenizer()?);
        Ok(Self { turn, streams, logprobs: logprobs.then_some(tokenizer), echo })
    }
}

/// Fields that OpenAI has, with the values that mean what happens here anyway.
fn unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.only("previous_response_id", &[], "responses are not stored; send the whole conversation in `input`")?;
    fields.only("conversation", &[], "conversations are not stored; send the whole conversation in `input`")?;
    fields.only("prompt", &[], "prompts are not stored; send `instructions` and `input`")?;
    fields.only("background", &[json!(false)], "responses are not stored, so they could not be fetched later")?;
    fields.only("background_options", &[], "there is no background")?;
    fields.only("truncation", &[json!("disabled")], "nothing is left out of a conversation")?;
    fields.only("context_management", &[json!([])], "nothing is left out of a conversation")?;
    fields.only("moderation", &[], "there is no moderation")?;
    fields.only("image", &[], "only text is read")?;
    fields.only("access_programs", &[], "there are none")?;
    // It limits tools that run on the server, of which there are none.
    fields.accept(&["max_tool_calls"]);
    Ok(())
}

/// `text`: as the answer repeats it, and the form that it asks for.
fn form(fields: &mut Fields) -> Result<(Value, Option<Form>), ApiError> {
    let mut text = fields.take::<Fields>("text")?.unwrap_or_default();
    text.only("verbosity", &[], "models here have no such setting").map_err(|error| error.below("text"))?;
    let format = text.take("format")?.unwrap_or_else(|| json!({"type": "text"}));
    text.finish().map_err(|error| error.below("text"))?;
    let form = Form::of_format(&format, &format, "text.format", "schema")?;
    Ok((json!({"format": format}), form))
}

/// `reasoning`: as the answer repeats it.
fn reasoning(fields: &mut Fields, model: &Model, thinking: &mut Thinking) -> Result<Value, ApiError> {
    let mut reasoning = fields.take::<Fields>("reasoning")?.unwrap_or_default();
    let effort: Option<String> = reasoning.take("effort").map_err(|error| error.below("reasoning"))?;
    thinking.effort(effort.as_deref(), "reasoning.effort", model)?;
    for field in ["summary", "generate_summary"] {
        let why = "reasoning is given as it is, in the content of its item";
        reasoning.only(field, &[], why).map_err(|error| error.below("reasoning"))?;
    }
    reasoning.finish().map_err(|error| error.below("reasoning"))?;
    Ok(json!({"effort": effort, "summary": null}))
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

/// A function as chat has it. What a tool has besides is refused by name.
fn nested(index: usize, tool: &Value) -> Result<Value, ApiError> {
    let Value::Object(mut function) = tool.clone() else {
        let place = format!("tools[{index}]");
        return Err(ApiError::invalid(place.clone(), format!("`{place}`: an object is needed")));
    };
    function.retain(|_, value| !value.is_null());
    let kind = function.shift_remove("type");
    if kind.as_ref().is_some_and(|kind| kind == "function") {
        let known = ["name", "description", "parameters", "strict"];
        if let Some(key) = function.keys().find(|key| !known.contains(&key.as_str())) {
            let place = format!("tools[{index}].{key}");
            return Err(ApiError::unsupported(place.clone(), format!("`{place}` is not supported; remove it")));
        }
    }
    Ok(json!({"type": kind, "function": function}))
}

/// A named function as chat has it.
fn nested_choice(choice: Value) -> Value {
    match &choice["name"] {
        Value::Null => choice,
        name => json!({"type": choice["type"], "function": {"name": name}}),
    }
}

/// A function as the answer repeats it: what is left out is there as `null`.
fn echoed(tool: &Value) -> Value {
    let mut tool = tool.clone();
    if let Some(fields) = tool.as_object_mut() {
        for field in ["description", "parameters"] {
            fields.entry(field).or_insert(Value::Null);
        }
        fields.entry("strict").or_insert(json!(false));
    }
    tool
}

/// The shortest decimal number of this value.
fn shortest(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}
