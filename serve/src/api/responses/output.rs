//! The items of a response as they come about: reasoning, messages, calls. Every step is an event; the items are what the
//! events amount to.

use runtime::request::{FinishReason, TokenEvent};
use serde_json::{Value, json};

use crate::ids;
use crate::logprobs::{Names, chat_entry};
use crate::output::Part;
use crate::output_reader::{Reader, Reading};

/// All items so far.
pub(super) struct Output {
    pub(super) reader: Reader,
    /// What spells the tokens, where their log-probabilities are shown.
    logprobs: Option<Names>,
    /// Items that are complete.
    pub(super) items: Vec<Value>,
    open: Option<Open>,
    /// Log-probabilities of tokens whose text is content, but not certain yet.
    pending: Vec<Value>,
}

/// What an item is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Message,
    Reasoning,
    /// Of this function, under this id.
    Call {
        name: String,
        call_id: String,
    },
}

/// The item that grows.
struct Open {
    kind: Kind,
    id: String,
    text: String,
    logprobs: Vec<Value>,
}

impl Kind {
    /// What its events are called between `response.` and `.delta`.
    fn event(&self) -> &'static str {
        match self {
            Self::Message => "output_text",
            Self::Reasoning => "reasoning_text",
            Self::Call { .. } => "function_call_arguments",
        }
    }

    fn is_call(&self) -> bool {
        matches!(self, Self::Call { .. })
    }
}

impl Open {
    fn new(kind: Kind) -> Self {
        let prefix = match kind {
            Kind::Message => "msg_",
            Kind::Reasoning => "rs_",
            Kind::Call { .. } => "fc_",
        };
        Self { kind, id: ids::fresh(prefix), text: String::new(), logprobs: Vec::new() }
    }

    /// Its only part, where it has parts.
    fn part(&self) -> Option<Value> {
        match self.kind {
            Kind::Message => {
                Some(json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}))
            }
            Kind::Reasoning => Some(json!({"type": "reasoning_text", "text": self.text})),
            Kind::Call { .. } => None,
        }
    }

    fn item(&self, content: Value, status: &str) -> Value {
        let (id, text) = (&self.id, &self.text);
        match &self.kind {
            Kind::Message => {
                json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": content})
            }
            Kind::Reasoning => {
                json!({"id": id, "type": "reasoning", "status": status, "summary": [], "content": content})
            }
            Kind::Call { name, call_id } => json!({
                "id": id, "type": "function_call", "status": status, "call_id": call_id, "name": name, "arguments": text,
            }),
        }
    }
}

impl Output {
    pub(super) fn new(reading: Reading, logprobs: Option<Names>) -> Self {
        Self { reader: Reader::new(reading), logprobs, items: Vec::new(), open: None, pending: Vec::new() }
    }

    /// A token was generated.
    pub(super) fn token(&mut self, token: &TokenEvent, events: &mut Vec<Value>) {
        let before = self.reader.is_content();
        let parts = self.reader.token(&token.text);
        let after = self.reader.is_content();
        if let Some(names) = &self.logprobs
            && (before || after || parts.iter().any(|part| matches!(part, Part::Content(_))))
        {
            self.pending.push(chat_entry(names, token));
        }
        self.parts(parts, events);
        if !after {
            self.pending.clear();
        }
    }

    /// Nothing more comes but this text. `status` is that of an item that has not ended by itself.
    pub(super) fn end(&mut self, text: &str, reason: FinishReason, status: &str, events: &mut Vec<Value>) {
        let parts = self.reader.end(text, reason);
        self.parts(parts, events);
        if self.items.is_empty() && self.open.is_none() {
            self.begin(Kind::Message, events);
        }
        // A call has an end of its own: one that is open was cut.
        let status = if self.open.as_ref().is_some_and(|open| open.kind.is_call()) { "incomplete" } else { status };
        self.close(status, events);
    }

    fn parts(&mut self, parts: Vec<Part>, events: &mut Vec<Value>) {
        for part in parts {
            match part {
                Part::Content(text) => self.text(&Kind::Message, &text, events),
                Part::Reasoning(text) => self.text(&Kind::Reasoning, &text, events),
                Part::Call(name) => {
                    self.pending.clear();
                    self.begin(Kind::Call { name, call_id: ids::fresh("call_") }, events);
                }
                Part::Arguments(more) => self.grow(&more, events),
                Part::CallEnd => self.close("completed", events),
            }
        }
    }

    /// The next event of the item that grows or is about to.
    fn event(&self, kind: &str, id: &str, more: Value) -> Value {
        let mut event = json!({"type": format!("response.{kind}"), "output_index": self.items.len(), "item_id": id});
        if let (Some(event), Value::Object(more)) = (event.as_object_mut(), more) {
            event.extend(more);
        }
        event
    }

    /// An item begins or ends.
    fn item_event(&self, kind: &str, item: &Value) -> Value {
        json!({"type": format!("response.output_item.{kind}"), "output_index": self.items.len(), "item": item})
    }

    fn begin(&mut self, kind: Kind, events: &mut Vec<Value>) {
        self.close("completed", events);
        let open = Open::new(kind);
        events.push(self.item_event("added", &open.item(json!([]), "in_progress")));
        if let Some(part) = open.part() {
            events.push(self.event("content_part.added", &open.id, json!({"content_index": 0, "part": part})));
        }
        self.open = Some(open);
    }

    fn text(&mut self, kind: &Kind, text: &str, events: &mut Vec<Value>) {
        if self.open.as_ref().is_none_or(|open| open.kind != *kind) {
            self.begin(kind.clone(), events);
        }
        self.grow(text, events);
    }

    /// More of the item that grows.
    fn grow(&mut self, text: &str, events: &mut Vec<Value>) {
        let Some(mut open) = self.open.take() else { return };
        open.text.push_str(text);
        let mut delta = json!({"delta": text});
        if !open.kind.is_call() {
            delta["content_index"] = json!(0);
        }
        if open.kind == Kind::Message {
            let logprobs = std::mem::take(&mut self.pending);
            delta["logprobs"] = json!(logprobs);
            open.logprobs.extend(logprobs);
        }
        events.push(self.event(&format!("{}.delta", open.kind.event()), &open.id, delta));
        self.open = Some(open);
    }

    /// Ends the item that grows, if there is one.
    fn close(&mut self, status: &str, events: &mut Vec<Value>) {
        let Some(open) = self.open.take() else { return };
        let done = match &open.kind {
            Kind::Message => json!({"content_index": 0, "text": open.text, "logprobs": open.logprobs}),
            Kind::Reasoning => json!({"content_index": 0, "text": open.text}),
            Kind::Call { name, .. } => json!({"name": name, "arguments": open.text}),
        };
        events.push(self.event(&format!("{}.done", open.kind.event()), &open.id, done));
        let part = open.part();
        if let Some(part) = &part {
            events.push(self.event("content_part.done", &open.id, json!({"content_index": 0, "part": part})));
        }
        let item = open.item(json!(part.as_slice()), status);
        events.push(self.item_event("done", &item));
        self.items.push(item);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::output::Markers;

    /// What the pieces of a text amount to, and all events on the way.
    fn read<'a>(pieces: impl IntoIterator<Item = &'a str>, reading: &Reading) -> (Vec<Value>, Vec<Value>) {
        let mut output = Output::new(reading.clone(), None);
        let mut events = Vec::new();
        for piece in pieces {
            let (logprob, sampling_logprob, top, given) = (-0.5, -0.5, vec![], vec![]);
            let token =
                TokenEvent { token: 7, logprob, sampling_logprob, top, given, text: piece.to_owned(), version: 0 };
            output.token(&token, &mut events);
        }
        output.end("", FinishReason::Length, "incomplete", &mut events);
        (output.items, events)
    }

    /// Items without what is different every time.
    fn nameless(mut items: Vec<Value>) -> Vec<Value> {
        for fields in items.iter_mut().filter_map(Value::as_object_mut) {
            fields.shift_remove("id");
            fields.shift_remove("call_id");
        }
        items
    }

    /// What a client makes of the events; every event must be about the item that is open.
    fn replay(events: &[Value]) -> Vec<Value> {
        let (mut done, mut open, mut text) = (Vec::new(), None, String::new());
        for event in events {
            let kind = event["type"].as_str().and_then(|kind| kind.strip_prefix("response.")).expect("a type");
            assert_eq!(event["output_index"], done.len());
            match kind {
                "output_item.added" => {
                    assert!(open.is_none() && event["item"]["status"] == "in_progress");
                    open = Some(event["item"]["id"].clone());
                    text.clear();
                }
                "output_item.done" => {
                    let item = event["item"].clone();
                    assert_eq!(open.take(), Some(item["id"].clone()));
                    let whole = item.get("arguments").unwrap_or(&item["content"][0]["text"]);
                    assert_eq!(*whole, text);
                    done.push(item);
                }
                _ => {
                    assert_eq!(open.as_ref(), Some(&event["item_id"]));
                    text.push_str(event["delta"].as_str().unwrap_or_default());
                    let whole = event.get("text").or(event.get("arguments")).or(event.get("part").map(|p| &p["text"]));
                    assert!(whole.is_none_or(|whole| *whole == text), "{event} after {text:?}");
                }
            }
        }
        assert!(open.is_none());
        done
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() })]

        /// However the text of an answer is cut into tokens: the same items, and events that amount to them.
        #[test]
        fn pieces_do_not_matter(
            fragments in prop::collection::vec(prop::sample::select(vec![
                "<think>", "</think>", "<tool_call>", "</tool_call>", "{\"name\": \"f\", \"arguments\": {\"x\": [1, \"}\\\"{\"]}}",
                "{\"name\": \"g\"}", "<", "\"", "{", "}", " ", "\n", "é", "text", "_call>", "</",
            ]), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            prompt_thinks: bool,
            single_call: bool,
        ) {
            let text = fragments.concat();
            let borders: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| borders[cut.index(borders.len())]).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let markers = Markers { reasoning: true, calls: true };
            let reading = Reading { markers, prompt_thinks, single_call, calls_only: false, only: None };
            let (whole, _) = read([text.as_str()], &reading);
            let (items, events) = read(cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]), &reading);
            prop_assert_eq!(&replay(&events), &items);
            prop_assert_eq!(nameless(items), nameless(whole));
        }
    }
}
