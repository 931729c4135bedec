//! Conversations, to be rendered by the model's chat template.

use std::sync::Arc;

use runtime::text::{Ending, Message};
use serde_json::{Map, Value, json};

use super::{LOOK_BYTES, Prompt, PromptEncoding, check_ids};
use crate::api_error::ApiError;
use crate::fields::Fields;
use crate::limits::blocking_pool::in_turn;
use crate::limits::{json_text, memory};
use crate::models::Model;
use crate::openapi::schema::{Members, Schema, any, any_of, boolean, list, map, nullable, one_of, some, text};
use telemetry::Scope;

/// A conversation to answer.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<Message>,
    pub(crate) tools: Option<Value>,
    /// Variables for the template (`chat_template_kwargs`).
    pub(crate) variables: Map<String, Value>,
    /// Whether an answer of the assistant begins, or the last message goes on.
    pub(crate) ending: Ending,
    pub(crate) encoding: PromptEncoding,
    /// The field that they came from.
    pub(crate) field: &'static str,
}

impl Conversation {
    /// The text that the template makes, and the ids that the model continues.
    pub(crate) async fn encode(self, model: &Arc<Model>) -> Result<Prompt, ApiError> {
        let model = Arc::clone(model);
        let bytes = self.messages.iter().map(|message| message.content().map_or(0, str::len)).sum::<usize>();
        let encode = in_turn(bytes, bytes as u64 * LOOK_BYTES, "the conversation", move |_, mut share| {
            let template = model.chat_template()?;
            let rendered = template.render(&self.messages, self.ending, self.tools.as_ref(), &self.variables);
            let text = rendered.map_err(|error| ApiError::from(error).about(self.field))?;
            let Prompt { ids, .. } = self.encoding.encode(text.clone(), &model, self.field, &mut share)?;
            check_ids(&ids, &model, self.field)?;
            Ok(Prompt { ids, text: Some(text) })
        });
        Scope::current().time("tokenize", encode).await
    }
}

/// Takes how the prompt of a conversation ends: `add_generation_prompt` and `continue_final_message`.
pub(crate) fn ending(fields: &mut Fields) -> Result<Ending, ApiError> {
    const CONTINUE: &str = "continue_final_message";
    let answer: Option<bool> = fields.take("add_generation_prompt")?;
    match (fields.take(CONTINUE)?.unwrap_or(false), answer) {
        (true, Some(true)) => {
            let message = format!("`{CONTINUE}` and `add_generation_prompt` contradict each other; send one of them");
            Err(ApiError::invalid(CONTINUE, message))
        }
        (true, _) => Ok(Ending::Continue),
        (false, Some(false)) => Ok(Ending::Closed),
        (false, _) => Ok(Ending::Answer),
    }
}

/// The fields that [`ending`] takes.
pub(crate) fn describe_ending() -> Members {
    Members::new()
        .maybe(
            "add_generation_prompt",
            boolean(),
            "Whether an answer of the assistant begins; true when it is left out.",
        )
        .maybe("continue_final_message", boolean(), "The text of the last message goes on.")
}

/// Messages as clients send them, checked.
pub(crate) fn messages(given: Vec<Value>) -> Result<Vec<Message>, ApiError> {
    if given.is_empty() {
        return Err(ApiError::invalid("messages", "`messages` is empty; at least one is needed"));
    }
    conversation(given)
}

/// The same for a conversation that may be empty.
pub(crate) fn conversation(given: Vec<Value>) -> Result<Vec<Message>, ApiError> {
    // The arguments of calls are JSON in strings; what they take is not in what the body took.
    let texts = given.iter().filter_map(|message| message.get("tool_calls")?.as_array()).flatten();
    let texts = texts.filter_map(|call| call.get("function")?.get("arguments")?.as_str());
    let bytes = texts.map(|text| json_text::outline(text.as_bytes()).bytes).sum();
    memory::hold_input(memory::take(bytes, "the JSON of the calls' arguments")?);
    given.into_iter().enumerate().map(|(index, value)| message(value).map_err(|what| at(index, &what))).collect()
}

fn at(index: usize, what: &str) -> ApiError {
    ApiError::invalid(format!("messages[{index}]"), format!("messages[{index}]: {what}"))
}

fn message(value: Value) -> Result<Message, String> {
    let Value::Object(mut fields) = value else { return Err("an object with role and content is needed".to_owned()) };
    match fields.get("role").and_then(Value::as_str) {
        Some("system" | "developer" | "user" | "assistant" | "tool") => {}
        _ => return Err("`role` must be system, developer, user, assistant or tool".to_owned()),
    }
    let calls = fields.get("tool_calls").is_some_and(|calls| calls.as_array().is_some_and(|calls| !calls.is_empty()));
    match fields.get_mut("content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => parts.iter_mut().try_for_each(check_part)?,
        None | Some(Value::Null) if calls => {}
        None | Some(Value::Null) => return Err("`content` is missing".to_owned()),
        Some(other) => return Err(format!("`content` is {other}; a string or a list of text parts is needed")),
    }
    match fields.get("tool_calls") {
        None | Some(Value::Null) => {}
        Some(Value::Array(calls)) => calls.iter().try_for_each(check_call)?,
        Some(other) => return Err(format!("`tool_calls` is {other}; a list is needed")),
    }
    Message::try_from(fields)
}

/// A content part says text; templates know a refusal as such.
fn check_part(part: &mut Value) -> Result<(), String> {
    match (part["type"].as_str(), part["text"].as_str(), part["refusal"].as_str()) {
        (Some("text"), Some(_), _) => Ok(()),
        (Some("refusal"), _, Some(text)) => {
            *part = json!({"type": "text", "text": text});
            Ok(())
        }
        (Some(kind), ..) => Err(format!("a content part of type `{kind}` is not supported; only text is")),
        _ => Err("a content part needs `type` and `text`".to_owned()),
    }
}

/// On the wire arguments are JSON in a string; some clients send the object.
fn check_call(call: &Value) -> Result<(), String> {
    match call.get("function").and_then(|function| function.get("arguments")) {
        Some(Value::String(_) | Value::Object(_)) => Ok(()),
        Some(other) => {
            Err(format!("the arguments of a tool call are {other}; JSON in a string or an object is needed"))
        }
        None => Err("a tool call needs `function` with `name` and `arguments`".to_owned()),
    }
}

/// What [`messages`] reads; other members are for the chat template.
pub(crate) fn describe_messages() -> Schema {
    let part = |kind: &str, member: &'static str| {
        Members::new().always("type", one_of(&[kind]), "").always(member, text(), "").open()
    };
    let content = any_of([text(), list(any_of([part("text", "text"), part("refusal", "refusal")]))]);
    let arguments = any_of([text(), map(any())]);
    let function = Members::new().always("arguments", arguments, "JSON as text, or the object itself.").open();
    let call = Members::new().always("function", function, "").open();
    let role = || {
        let roles = one_of(&["system", "developer", "user", "assistant", "tool"]);
        Members::new().always("role", roles, "`developer` is `system`.")
    };
    let calls = some(call.clone(), None);
    let says = role().always("content", content.clone(), "").maybe("tool_calls", nullable(list(call)), "").open();
    let calls = role().maybe("content", nullable(content), "").always("tool_calls", calls, "").open();
    some(any_of([says, calls]), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: Value) -> Result<String, String> {
        messages(vec![value]).map(|m| m[0].text()).map_err(|e| e.message)
    }

    #[test]
    fn parts_and_roles_are_checked() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]);
        assert_eq!(text(json!({"role": "user", "content": parts})).expect("text"), "a\nb");
        for (bad, word) in [
            (json!({"role": "robot", "content": "x"}), "role"),
            (json!({"role": "user"}), "content"),
            (json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}), "image_url"),
            (json!({"role": "assistant", "tool_calls": [{"function": {"arguments": [1]}}]}), "arguments"),
            (json!({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}), "arguments"),
            (json!({"role": "assistant", "content": "x", "tool_calls": 5}), "tool_calls"),
            (json!("hello"), "object"),
        ] {
            let error = text(bad).expect_err("refused");
            assert!(error.starts_with("messages[0]") && error.contains(word), "{error}");
        }
    }
}
