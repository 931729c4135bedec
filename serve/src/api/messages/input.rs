//! `system` and `messages`: blocks of text, reasoning, calls and their results, as messages that chat templates know.

use serde_json::{Map, Value, json};

use super::super::chat_request::ChatInput;
use crate::api_error::ApiError;

/// What is wrong: the field behind `messages[0]`, and why.
type Wrong = (String, String);

fn wrong<T>(field: &str, what: impl Into<String>) -> Result<T, Wrong> {
    Err((field.to_owned(), what.into()))
}

fn at(place: &str) -> impl Fn(Wrong) -> ApiError {
    move |(field, what)| {
        let place = format!("{place}{field}");
        ApiError::invalid(place.clone(), format!("`{place}`: {what}"))
    }
}

/// System prompt and messages as chat's messages.
pub(super) fn messages(system: Option<Value>, messages: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "`messages` is empty; at least one is needed"));
    }
    let mut dialogue = ChatInput::default();
    if let Some(system) = system {
        let parts = parts(Some(&system), "").map_err(at("system"))?;
        dialogue.says("system", json!(parts));
    }
    let mut said = Said::default();
    for (index, message) in messages.into_iter().enumerate() {
        self::message(&mut dialogue, &mut said, &message).map_err(at(&format!("messages[{index}]")))?;
    }
    said.flush(&mut dialogue);
    Ok(dialogue.finish())
}

/// Text that the next block may go on: neighbouring messages of one role are one turn.
#[derive(Default)]
struct Said {
    role: &'static str,
    texts: Vec<String>,
}

impl Said {
    fn text(&mut self, role: &'static str, text: String, dialogue: &mut ChatInput) {
        if self.role != role {
            self.flush(dialogue);
            self.role = role;
        }
        self.texts.push(text);
    }

    fn flush(&mut self, dialogue: &mut ChatInput) {
        let texts = std::mem::take(&mut self.texts);
        match self.role {
            _ if texts.is_empty() => {}
            // What a model has said in pieces it has said in one go.
            "assistant" => dialogue.answers(texts.concat()),
            role => dialogue.says(role, texts.into_iter().map(text_part).collect()),
        }
    }
}

fn text_part(text: String) -> Value {
    json!({"type": "text", "text": text})
}

fn message(dialogue: &mut ChatInput, said: &mut Said, message: &Value) -> Result<(), Wrong> {
    let Value::Object(fields) = message else { return wrong("", "an object is needed") };
    only(fields, &["role", "content"])?;
    let role = match fields.get("role").and_then(Value::as_str) {
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("system") => "system",
        _ => return wrong(".role", "must be user, assistant or system"),
    };
    match fields.get("content") {
        Some(Value::String(text)) => said.text(role, text.clone(), dialogue),
        Some(Value::Array(blocks)) => {
            for (index, block) in blocks.iter().enumerate() {
                self::block(dialogue, said, role, block)
                    .map_err(|(field, what)| (format!(".content[{index}]{field}"), what))?;
            }
        }
        _ => return wrong(".content", "a string or a list of blocks is needed"),
    }
    Ok(())
}

fn block(dialogue: &mut ChatInput, said: &mut Said, role: &'static str, block: &Value) -> Result<(), Wrong> {
    let Value::Object(block) = block else { return wrong("", "an object is needed") };
    let kind = block.get("type").and_then(Value::as_str).unwrap_or_default();
    if kind != "text" && !kind.is_empty() {
        said.flush(dialogue);
    }
    match (kind, role) {
        ("text", _) => {
            said.text(role, text(block)?, dialogue);
            Ok(())
        }
        ("tool_result", "user") => result(dialogue, block),
        ("tool_use", "assistant") => call(dialogue, block),
        ("thinking", "assistant") => {
            only(block, &["type", "thinking", "signature"])?;
            let thought = string(block, "thinking")?;
            if !thought.is_empty() {
                dialogue.thinks(thought.to_owned());
            }
            Ok(())
        }
        ("redacted_thinking", _) => {
            wrong(".type", "what another server has encrypted cannot be read here; leave the block out")
        }
        ("tool_result" | "tool_use" | "thinking", _) => {
            wrong(".type", format!("\"{kind}\" is no block of the role {role}"))
        }
        ("image" | "document" | "search_result", _) => {
            wrong(".type", format!("\"{kind}\" is not supported; only text is read"))
        }
        _ => wrong(".type", "must be text, thinking, tool_use or tool_result"),
    }
}

fn call(dialogue: &mut ChatInput, block: &Map<String, Value>) -> Result<(), Wrong> {
    only(block, &["type", "id", "name", "input", "caller", "cache_control"])?;
    let (id, name) = (string(block, "id")?, string(block, "name")?);
    let Some(input @ Value::Object(_)) = block.get("input") else { return wrong(".input", "an object is needed") };
    match dialogue.calls(id, name, input.clone()) {
        true => Ok(()),
        false => wrong(".id", format!("\"{id}\" is another call's already")),
    }
}

fn result(dialogue: &mut ChatInput, block: &Map<String, Value>) -> Result<(), Wrong> {
    // What went wrong is in the content; templates have no other place for it.
    only(block, &["type", "tool_use_id", "content", "is_error", "cache_control"])?;
    if block.get("is_error").is_some_and(|error| !error.is_boolean() && !error.is_null()) {
        return wrong(".is_error", "true or false is needed");
    }
    let id = string(block, "tool_use_id")?;
    let content = match block.get("content") {
        None | Some(Value::Null) => vec![],
        content => parts(content, ".content")?,
    };
    match dialogue.returns(id, json!(content)) {
        true => Ok(()),
        false => wrong(".tool_use_id", format!("no tool_use before it has the id \"{id}\"")),
    }
}

/// A text, or blocks of text, as parts of chat's content.
fn parts(content: Option<&Value>, field: &str) -> Result<Vec<Value>, Wrong> {
    match content {
        Some(Value::String(text)) => Ok(vec![text_part(text.clone())]),
        Some(Value::Array(blocks)) => {
            let parts = blocks.iter().enumerate().map(|(index, block)| {
                let text = match block {
                    Value::Object(block) if block.get("type").is_some_and(|kind| kind == "text") => text(block),
                    _ => wrong(".type", "only text is read"),
                };
                text.map(text_part).map_err(|(below, what)| (format!("{field}[{index}]{below}"), what))
            });
            parts.collect()
        }
        _ => wrong(field, "a string or a list of text blocks is needed"),
    }
}

/// The text of a block of text. Where it may be cached changes nothing: every prompt is.
fn text(block: &Map<String, Value>) -> Result<String, Wrong> {
    only(block, &["type", "text", "cache_control", "citations"])?;
    match block.get("citations") {
        None | Some(Value::Null) => {}
        Some(Value::Array(citations)) if citations.is_empty() => {}
        Some(_) => return wrong(".citations", "there are none here; remove them"),
    }
    string(block, "text").map(str::to_owned)
}

fn string<'a>(block: &'a Map<String, Value>, name: &str) -> Result<&'a str, Wrong> {
    block.get(name).and_then(Value::as_str).ok_or_else(|| (format!(".{name}"), "a string is needed".to_owned()))
}

/// Refuses a field that nobody reads.
fn only(fields: &Map<String, Value>, known: &[&str]) -> Result<(), Wrong> {
    match fields.iter().find(|(name, value)| !value.is_null() && !known.contains(&name.as_str())) {
        Some((name, _)) => wrong(&format!(".{name}"), "unknown field; remove it"),
        None => Ok(()),
    }
}
