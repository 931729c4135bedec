//! The blocks of a message as they come about: reasoning, texts, calls. Every step is an event; the blocks are what the events
//! amount to.

use runtime::request::{FinishReason, TokenEvent};
use serde_json::{Value, json};

use super::partial;
use crate::ids;
use crate::output::Part;
use crate::output_reader::{Reader, Reading};

/// Anthropic signs reasoning so that nobody else's is sent back; here nothing is signed, and nothing is checked.
const SIGNATURE: &str = "unsigned";

/// All blocks so far.
pub(super) struct Blocks {
    pub(super) reader: Reader,
    /// Those that are complete.
    pub(super) done: Vec<Value>,
    open: Option<Open>,
}

/// The block that grows.
struct Open {
    kind: Kind,
    text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Text,
    Reasoning,
    Call { id: String, name: String },
}

impl Open {
    /// The block with what it has so far.
    fn block(&self) -> Value {
        let text = &self.text;
        match &self.kind {
            Kind::Text => json!({"type": "text", "text": text}),
            Kind::Reasoning => {
                json!({"type": "thinking", "thinking": text, "signature": if text.is_empty() { "" } else { SIGNATURE }})
            }
            Kind::Call { id, name } => {
                json!({"type": "tool_use", "id": id, "name": name, "input": partial::object(text), "caller": {"type": "direct"}})
            }
        }
    }

    fn delta(&self, text: &str) -> Value {
        match self.kind {
            Kind::Text => json!({"type": "text_delta", "text": text}),
            Kind::Reasoning => json!({"type": "thinking_delta", "thinking": text}),
            Kind::Call { .. } => json!({"type": "input_json_delta", "partial_json": text}),
        }
    }
}

impl Blocks {
    pub(super) fn new(reading: Reading) -> Self {
        Self { reader: Reader::new(reading), done: Vec::new(), open: None }
    }

    /// A token was generated.
    pub(super) fn token(&mut self, token: &TokenEvent, events: &mut Vec<Value>) {
        let parts = self.reader.token(&token.text);
        self.parts(parts, events);
    }

    /// Nothing more comes but this text.
    pub(super) fn end(&mut self, text: &str, reason: FinishReason, events: &mut Vec<Value>) {
        let parts = self.reader.end(text, reason);
        self.parts(parts, events);
        self.close(events);
    }

    fn parts(&mut self, parts: Vec<Part>, events: &mut Vec<Value>) {
        for part in parts {
            match part {
                Part::Content(text) => self.text(&Kind::Text, &text, events),
                Part::Reasoning(text) => self.text(&Kind::Reasoning, &text, events),
                Part::Call(name) => self.begin(Kind::Call { id: ids::fresh("toolu_"), name }, events),
                Part::Arguments(more) => self.grow(&more, events),
                Part::CallEnd => self.close(events),
            }
        }
    }

    fn event(&self, name: &str, field: &str, value: Value) -> Value {
        json!({"type": format!("content_block_{name}"), "index": self.done.len(), field: value})
    }

    fn begin(&mut self, kind: Kind, events: &mut Vec<Value>) {
        self.close(events);
        let open = Open { kind, text: String::new() };
        events.push(self.event("start", "content_block", open.block()));
        self.open = Some(open);
    }

    fn text(&mut self, kind: &Kind, text: &str, events: &mut Vec<Value>) {
        if self.open.as_ref().is_none_or(|open| open.kind != *kind) {
            self.begin(kind.clone(), events);
        }
        self.grow(text, events);
    }

    fn grow(&mut self, text: &str, events: &mut Vec<Value>) {
        let Some(mut open) = self.open.take() else { return };
        open.text.push_str(text);
        events.push(self.event("delta", "delta", open.delta(text)));
        self.open = Some(open);
    }

    fn close(&mut self, events: &mut Vec<Value>) {
        let Some(open) = self.open.take() else { return };
        if open.kind == Kind::Reasoning {
            events.push(self.event("delta", "delta", json!({"type": "signature_delta", "signature": SIGNATURE})));
        }
        events.push(json!({"type": "content_block_stop", "index": self.done.len()}));
        self.done.push(open.block());
    }
}
