//! A conversation of items or blocks, as newer APIs send it, put together as chat's messages.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// What a model says in one go is one message: reasoning, then text, then calls. What is out of this order begins another one.
#[derive(Default)]
pub(in crate::api) struct ChatInput {
    done: Vec<Value>,
    /// The assistant's message that what comes next may belong to.
    open: Option<Map<String, Value>>,
    /// Ids of the calls so far.
    calls: BTreeSet<String>,
}

impl ChatInput {
    /// A message of another role than the assistant's.
    pub(in crate::api) fn says(&mut self, role: &str, content: Value) {
        self.close();
        self.done.push(json!({"role": role, "content": content}));
    }

    /// The assistant reasons.
    pub(in crate::api) fn thinks(&mut self, text: String) {
        self.assistant(&["reasoning_content", "content", "tool_calls"]).insert("reasoning_content".into(), json!(text));
    }

    /// The assistant answers.
    pub(in crate::api) fn answers(&mut self, text: String) {
        self.assistant(&["content", "tool_calls"]).insert("content".into(), json!(text));
    }

    /// The assistant calls; `false` where another call has this id.
    pub(in crate::api) fn calls(&mut self, id: &str, name: &str, arguments: Value) -> bool {
        if !self.calls.insert(id.to_owned()) {
            return false;
        }
        let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let message = self.assistant(&[]);
        match message.get_mut("tool_calls") {
            Some(Value::Array(calls)) => calls.push(call),
            _ => drop(message.insert("tool_calls".into(), json!([call]))),
        }
        true
    }

    /// A call has returned; `false` where there was none of this id.
    pub(in crate::api) fn returns(&mut self, id: &str, content: Value) -> bool {
        if !self.calls.contains(id) {
            return false;
        }
        self.close();
        self.done.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
        true
    }

    /// The messages.
    pub(in crate::api) fn finish(mut self) -> Vec<Value> {
        self.close();
        self.done
    }

    /// The assistant's message to add to; a new one where the last has one of `fields`.
    fn assistant(&mut self, fields: &[&str]) -> &mut Map<String, Value> {
        if self.open.as_ref().is_some_and(|open| fields.iter().any(|field| open.contains_key(*field))) {
            self.close();
        }
        self.open.get_or_insert_with(|| Map::from_iter([("role".to_owned(), json!("assistant"))]))
    }

    fn close(&mut self) {
        if let Some(mut message) = self.open.take() {
            message.entry("content").or_insert(json!(""));
            self.done.push(Value::Object(message));
        }
    }
}
