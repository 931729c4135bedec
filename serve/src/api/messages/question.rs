//! The fields of a message that its prompt depends on.

use std::sync::Arc;

use runtime::text::Ending;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::chat_request::Question;
use super::{input, tools};
use crate::api_error::ApiError;
use crate::fields::Fields;
use crate::models::Model;
use crate::prompt::{self, PromptEncoding};
use crate::reasoning::Reasoning;
use crate::structured::grammar::ResponseFormat;

/// The effort that Anthropic's models make unless they are told otherwise.
pub(super) const USUAL_EFFORT: &str = "high";

/// Whether to reason before the answer.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Reason {
    /// For so many tokens at most.
    Enabled {
        budget_tokens: usize,
        display: Option<Display>,
    },
    /// As long as the model likes.
    Adaptive {
        display: Option<Display>,
    },
    Disabled {},
}

/// How reasoning is shown: what Anthropic sums up is here as it is.
#[derive(Deserialize, PartialEq, Eq, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum Display {
    Summarized,
    Omitted,
}

pub(super) fn take(fields: &mut Fields, model: &Arc<Model>) -> Result<Question, ApiError> {
    let messages = input::messages(fields.take("system")?, fields.need("messages")?)?;
    let mut thinking = thinking(fields, model)?;
    let mut config = fields.take::<Fields>("output_config")?.unwrap_or_default();
    let below = |error: ApiError| error.below("output_config");
    let effort: Option<String> = config.take("effort").map_err(below)?;
    thinking.effort(effort.as_deref(), "output_config.effort", USUAL_EFFORT, model)?;
    let form = form(config.take("format").map_err(below)?)?;
    config.finish().map_err(below)?;
    Ok(Question {
        model: Arc::clone(model),
        ending: ending(&messages),
        messages: prompt::conversation(messages)?,
        field: "messages",
        tools: tools::take(fields, model)?,
        form: form.map(|form| (form, "output_config")),
        thinking,
        encoding: PromptEncoding::whole(false),
    })
}

/// What the assistant has begun to say goes on.
fn ending(messages: &[Value]) -> Ending {
    let begun = |last: &Value| {
        last["role"] == "assistant" && last.get("tool_calls").is_none() && last["content"].as_str() != Some("")
    };
    if messages.last().is_some_and(begun) { Ending::Continue } else { Ending::Answer }
}

/// Without `thinking` there is none, as far as the template has a choice.
fn thinking(fields: &mut Fields, model: &Model) -> Result<Reasoning, ApiError> {
    const FIELD: &str = "thinking";
    let variables: Map<String, Value> = fields.take("chat_template_kwargs")?.unwrap_or_default();
    let (reasons, budget, display) = match fields.take(FIELD)? {
        None | Some(Reason::Disabled {}) => (false, None, None),
        Some(Reason::Adaptive { display }) => (true, None, display),
        Some(Reason::Enabled { budget_tokens: 0, .. }) => {
            return Err(ApiError::invalid(FIELD, "`thinking.budget_tokens` = 0: must be at least 1"));
        }
        Some(Reason::Enabled { budget_tokens, display }) => (true, Some(budget_tokens), display),
    };
    if display == Some(Display::Omitted) {
        let message =
            "`thinking.display` = \"omitted\" is not supported: nothing is stored from which reasoning could go on";
        return Err(ApiError::unsupported(FIELD, message));
    }
    let mut thinking = Reasoning::new(variables, budget, FIELD, model)?;
    thinking.switch(reasons, model)?;
    Ok(thinking)
}

fn form(format: Option<Map<String, Value>>) -> Result<Option<ResponseFormat>, ApiError> {
    let Some(format) = format else { return Ok(None) };
    let wrong = |what: &str| Err(ApiError::invalid("output_config.format", format!("`output_config.format`: {what}")));
    if format.get("type") != Some(&json!("json_schema")) {
        return wrong("the type must be json_schema");
    }
    if let Some(name) = format.keys().find(|name| !["type", "schema"].contains(&name.as_str())) {
        return wrong(&format!("unknown field `{name}`; remove it"));
    }
    match format.get("schema") {
        Some(schema @ Value::Object(_)) => Ok(Some(ResponseFormat::Schema(schema.clone()))),
        _ => wrong("`schema` is missing"),
    }
}
