//! `input`: a text, or the items of a conversation, as messages that chat templates know.

use serde_json::{Map, Value, json};

use super::super::chat_request::ChatInput;
use crate::api_error::ApiError;

/// What may have become of an item.
pub(super) const STATUSES: &[&str] = &["in_progress", "completed", "incomplete"];

/// Instructions and input as chat's messages.
pub(super) fn messages(instructions: Option<&str>, input: Option<Value>) -> Result<Vec<Value>, ApiError> {
    let mut messages = ChatInput::default();
    if let Some(text) = instructions {
        messages.says("system", json!(text));
    }
    match input {
        None => {}
        Some(Value::String(text)) => messages.says("user", json!(text)),
        Some(Value::Array(items)) => {
            for (index, item) in items.into_iter().enumerate() {
                self::item(&mut messages, item).map_err(|(field, what)| {
                    let place = format!("input[{index}]{field}");
                    ApiError::invalid(place.clone(), format!("`{place}`: {what}"))
                })?;
            }
        }
        Some(_) => return Err(ApiError::invalid("input", "`input`: a string or a list of items is needed")),
    }
    Ok(messages.finish())
}

/// What is wrong with an item: the field behind `input[0]`, and why.
type Wrong = (String, String);

fn wrong<T>(field: &str, what: impl Into<String>) -> Result<T, Wrong> {
    Err((field.to_owned(), what.into()))
}

fn item(messages: &mut ChatInput, item: Value) -> Result<(), Wrong> {
    let Value::Object(mut item) = item else { return wrong("", "an object is needed") };
    item.retain(|_, value| !value.is_null());
    let kind = item.get("type").map_or(Some("message"), Value::as_str).map(str::to_owned);
    let known: &[&str] = match kind.as_deref() {
        Some("message") => &["role", "content"],
        Some("function_call") => &["call_id", "name", "arguments"],
        Some("function_call_output") => &["call_id", "output"],
        Some("reasoning") => &["summary", "content"],
        Some("item_reference") => {
            return wrong(".type", "nothing is stored that could be referred to; send the item");
        }
        _ => {
            return wrong(".type", "must be message, function_call, function_call_output or reasoning");
        }
    };
    // What the server says about its own items cannot change what they mean.
    let unknown =
        item.keys().find(|key| !known.contains(&key.as_str()) && !["type", "id", "status"].contains(&key.as_str()));
    if let Some(key) = unknown {
        return wrong(&format!(".{key}"), "unknown field; remove it");
    }
    if item.get("id").is_some_and(|id| !id.is_string()) {
        return wrong(".id", "a string is needed");
    }
    if item.get("status").is_some_and(|status| !STATUSES.iter().any(|known| status == known)) {
        return wrong(".status", "must be in_progress, completed or incomplete");
    }
    match kind.as_deref() {
        Some("function_call") => call(messages, &item),
        Some("function_call_output") => output(messages, &item),
        Some("reasoning") => reasoning(messages, &item),
        _ => message(messages, &item),
    }
}

fn message(messages: &mut ChatInput, item: &Map<String, Value>) -> Result<(), Wrong> {
    let content = text(item.get("content"), ".content")?;
    match item.get("role").and_then(Value::as_str) {
        Some("assistant") => {
            messages.answers(content);
            Ok(())
        }
        Some(role @ ("user" | "system" | "developer")) => {
            messages.says(role, json!(content));
            Ok(())
        }
        _ => wrong(".role", "must be user, assistant, system or developer"),
    }
}

fn reasoning(messages: &mut ChatInput, item: &Map<String, Value>) -> Result<(), Wrong> {
    let summary = match item.get("summary") {
        None => &[][..],
        Some(Value::Array(parts)) => parts,
        Some(_) => return wrong(".summary", "a list is needed"),
    };
    let content = match item.get("content") {
        None => String::new(),
        Some(Value::String(_)) => return wrong(".content", "a list of parts is needed"),
        content => text(content, ".content")?,
    };
    if content.is_empty() {
        let what = "a summary is not what was thought; send `content`, or leave the item out";
        return if summary.is_empty() { Ok(()) } else { wrong(".summary", what) };
    }
    messages.thinks(content);
    Ok(())
}

fn call(messages: &mut ChatInput, item: &Map<String, Value>) -> Result<(), Wrong> {
    let field = |name: &str| match item.get(name).and_then(Value::as_str) {
        Some(text) => Ok(text.to_owned()),
        None => Err((format!(".{name}"), "a string is needed".to_owned())),
    };
    let (id, name, arguments) = (field("call_id")?, field("name")?, field("arguments")?);
    if !messages.calls(&id, &name, json!(arguments)) {
        return wrong(".call_id", format!("\"{id}\" is another call's already"));
    }
    Ok(())
}

fn output(messages: &mut ChatInput, item: &Map<String, Value>) -> Result<(), Wrong> {
    let Some(id) = item.get("call_id").and_then(Value::as_str) else {
        return wrong(".call_id", "a string is needed");
    };
    let output = text(item.get("output"), ".output")?;
    if !messages.returns(id, json!(output)) {
        return wrong(".call_id", format!("no function_call before it has the id \"{id}\""));
    }
    Ok(())
}

/// A text, or the texts of some parts.
fn text(content: Option<&Value>, field: &str) -> Result<String, Wrong> {
    match content {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().enumerate().map(|(index, part)| {
                let text = match part["type"].as_str() {
                    Some("input_text" | "output_text" | "reasoning_text") => part["text"].as_str(),
                    Some("refusal") => part["refusal"].as_str(),
                    _ => None,
                };
                text.ok_or_else(|| {
                    let kind = part["type"].as_str().unwrap_or("nothing");
                    (format!("{field}[{index}]"), format!("a part of type {kind} is not supported; only text is"))
                })
            });
            Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        _ => wrong(field, "a string or a list of text parts is needed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_of_one_turn_are_one_message() {
        let input = json!([
            {"role": "user", "content": [{"type": "input_text", "text": "How far"}, {"type": "input_text", "text": "is it?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
             "content": [{"type": "output_text", "text": "I ask.", "annotations": [], "logprobs": []}]},
            {"type": "function_call", "call_id": "a", "name": "walk", "arguments": "{}"},
            {"type": "function_call", "call_id": "b", "name": "drive", "arguments": "{\"x\": 1}"},
            {"type": "function_call_output", "call_id": "b", "output": "2 km"},
            {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "3 km"}]},
            {"role": "assistant", "content": "Two."},
            {"role": "assistant", "content": "Or three."},
            {"role": "developer", "content": "Be brief."},
        ]);
        let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let want = json!([
            {"role": "system", "content": "Measure."},
            {"role": "user", "content": "How far\nis it?"},
            {"role": "assistant", "reasoning_content": "Hm.", "content": "I ask.",
             "tool_calls": [call("a", "walk", "{}"), call("b", "drive", "{\"x\": 1}")]},
            {"role": "tool", "tool_call_id": "b", "content": "2 km"},
            {"role": "tool", "tool_call_id": "a", "content": "3 km"},
            {"role": "assistant", "content": "Two."},
            {"role": "assistant", "content": "Or three."},
            {"role": "developer", "content": "Be brief."},
        ]);
        assert_eq!(Value::Array(messages(Some("Measure."), Some(input)).expect("messages")), want);
        let text = messages(None, Some(json!("Hi"))).expect("messages");
        assert_eq!(text, [json!({"role": "user", "content": "Hi"})]);
    }

    #[test]
    fn what_is_wrong_has_a_place() {
        for (item, place) in [
            (json!("Hi"), "input[0]"),
            (json!({"role": "robot", "content": "x"}), "input[0].role"),
            (json!({"role": "user"}), "input[0].content"),
            (json!({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}), "input[0].content[0]"),
            (json!({"role": "user", "content": "x", "name": "me"}), "input[0].name"),
            (json!({"role": "user", "content": "x", "id": 5}), "input[0].id"),
            (json!({"role": "user", "content": "x", "status": "lost"}), "input[0].status"),
            (json!({"type": "item_reference", "id": "msg_1"}), "input[0].type"),
            (json!({"type": "web_search_call", "id": "ws_1"}), "input[0].type"),
            (json!({"type": "function_call", "call_id": "a", "name": "f"}), "input[0].arguments"),
            (json!({"type": "function_call_output", "call_id": "a", "output": "x"}), "input[0].call_id"),
            (json!({"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]}), "input[0].summary"),
            (json!({"type": "reasoning", "summary": "x"}), "input[0].summary"),
            (json!({"type": "reasoning", "summary": [], "content": {}}), "input[0].content"),
            (json!({"type": "reasoning", "summary": [], "content": "x"}), "input[0].content"),
            (json!({"type": "reasoning", "summary": [], "encrypted_content": "x"}), "input[0].encrypted_content"),
        ] {
            let error = messages(None, Some(json!([item]))).expect_err("wrong");
            assert_eq!(error.param.as_deref(), Some(place), "{}", error.message);
        }
        assert_eq!(messages(None, Some(json!(5))).expect_err("wrong").param.as_deref(), Some("input"));
    }
}
