//! A message of a conversation.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// One message of a conversation: an object with a `role` and, mostly, `content`, a text or a list of text parts; any other
/// field (`tool_calls`, `reasoning_content`, ...) reaches the template, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Message(Map<String, Value>);

impl Message {
    /// A message with text.
    pub fn new(role: &str, content: &str) -> Self {
        Self(Map::from_iter([("role".into(), json!(role)), ("content".into(), json!(content))]))
    }

    /// Who speaks.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The content, if it is one text.
    pub fn content(&self) -> Option<&str> {
        self.0.get("content").and_then(Value::as_str)
    }

    /// The content, text parts joined by line ends.
    pub fn text(&self) -> String {
        self.0.get("content").map(|content| texts(content).join("\n")).unwrap_or_default()
    }

    /// All fields.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// Adds to the end of the content: to the text, or to the last text part. False where neither is there.
    pub fn append(&mut self, more: &str) -> bool {
        let last = match self.0.get_mut("content") {
            Some(Value::Array(parts)) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
            content => content,
        };
        let Some(Value::String(text)) = last else { return false };
        text.push_str(more);
        true
    }
}

impl TryFrom<Map<String, Value>> for Message {
    type Error = String;

    fn try_from(fields: Map<String, Value>) -> Result<Self, String> {
        match fields.get("role") {
            Some(Value::String(_)) => Ok(Self(fields)),
            Some(other) => Err(format!("the role of a message is {other}; a string is needed")),
            None => Err("a message has no \"role\"".into()),
        }
    }
}

/// The texts of a message's content.
pub(super) fn texts(content: &Value) -> Vec<&str> {
    match content {
        Value::String(text) => vec![text],
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => Vec::new(),
    }
}

/// The calls that a message makes.
pub(super) fn calls(fields: &Map<String, Value>) -> &[Value] {
    fields.get("tool_calls").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The function of a call, which stands in it or is the call itself.
pub(super) fn function(call: &Value) -> &Value {
    call.get("function").unwrap_or(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_needs_a_role() {
        assert!(serde_json::from_value::<Message>(json!({"content": "x"})).unwrap_err().to_string().contains("role"));
        assert!(serde_json::from_value::<Message>(json!({"role": 1})).is_err());
        let kept = json!({"content": null, "role": "assistant", "tool_calls": [{"name": "f"}]});
        let message: Message = serde_json::from_value(kept.clone()).unwrap();
        assert_eq!((message.role(), message.content()), ("assistant", None));
        assert_eq!(serde_json::to_value(&message).unwrap(), kept);
    }

    #[test]
    fn text_is_appended_to_the_last_part() {
        let parts = json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
        let mut message: Message = serde_json::from_value(parts).unwrap();
        assert!(message.append("c"));
        assert_eq!(message.text(), "a\nbc");
        assert!(!serde_json::from_value::<Message>(json!({"role": "user"})).unwrap().append("c"));
    }
}
