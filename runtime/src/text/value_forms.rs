//! The forms in which a template may ask for a conversation's values.
//!
//! A template is given values as transformers gives them. Some templates want another form of the same value: arguments of a
//! call as text or as an object, content as text or as a list of parts, `null` instead of nothing. So where a template
//! fails, or leaves out a text or a call of the conversation, the other forms are tried, always in the same order, and the
//! first that shows everything is taken. A text stays a text where the template reads it as one, also where it changes or cuts it.

use minijinja::value::{Serde, Value};
use serde_json::{Map, Value as Json, json};

use super::jinja::{Arguments, TextParts, WHOLE_LIST};
use super::message::{Message, calls, function, texts};
use super::python;

/// Names under which reasoning is known; the first is the one that most templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Arguments of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ArgumentsForm {
    /// What came as text is an object and prints as that text.
    #[default]
    Both,
    Object,
    Text,
}

/// Content of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ContentForm {
    #[default]
    Given,
    /// A list of parts as one text.
    Joined,
    /// A text as a list of one part.
    Parts,
}

/// Content of a message that has no text and calls functions, and calls of one that makes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum BlankForm {
    #[default]
    Given,
    Null,
    Empty,
    Absent,
}

/// One form of all values of a conversation.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ValueForm {
    call: ArgumentsForm,
    content: ContentForm,
    blank: BlankForm,
}

impl ValueForm {
    /// Whether texts become lists of parts.
    pub(super) fn lists_texts(self) -> bool {
        self.content == ContentForm::Parts
    }
}

/// A conversation, as transformers hands it to a template.
#[derive(Debug)]
pub(super) struct Conversation {
    messages: Vec<Map<String, Json>>,
}

impl Conversation {
    /// `knows_developer`: whether the template has a role for developers beside the system's.
    pub(super) fn new(messages: &[Message], knows_developer: bool) -> Self {
        let given = |message: &Message| {
            let mut fields = message.fields().clone();
            fields.retain(|_, value| !value.is_null());
            if !knows_developer && message.role() == "developer" {
                fields.insert("role".into(), json!("system"));
            }
            with_reasoning(fields)
        };
        Self { messages: messages.iter().map(given).collect() }
    }

    /// All forms, the one of transformers first.
    pub(super) fn forms(&self) -> Vec<ValueForm> {
        let any = |what: fn(&Map<String, Json>) -> bool| self.messages.iter().any(what);
        let call: &[ArgumentsForm] =
            match any(|fields| calls(fields).iter().any(|call| function(call).get("arguments").is_some())) {
                true => &[ArgumentsForm::Both, ArgumentsForm::Object, ArgumentsForm::Text],
                false => &[ArgumentsForm::Both],
            };
        let content: &[ContentForm] = match any(|fields| fields.get("content").is_some_and(Json::is_array)) {
            true => &[ContentForm::Given, ContentForm::Joined, ContentForm::Parts],
            false => &[ContentForm::Given, ContentForm::Parts],
        };
        let blank: &[BlankForm] = match any(is_blank) {
            true => &[BlankForm::Given, BlankForm::Null, BlankForm::Empty, BlankForm::Absent],
            false => &[BlankForm::Given],
        };
        let mut forms = Vec::new();
        for &content in content {
            for &blank in blank {
                forms.extend(call.iter().map(|&call| ValueForm { call, content, blank }));
            }
        }
        forms
    }

    /// The messages in a form.
    pub(super) fn values(&self, form: ValueForm) -> Value {
        self.messages.iter().map(|fields| message(fields, form)).collect()
    }

    /// The same conversation with a short word in place of each text.
    pub(super) fn with_words(&self) -> Self {
        let replace = |(index, fields): (usize, &Map<String, Json>)| {
            let mut fields = fields.clone();
            if fields.get("content").is_some_and(Json::is_string) {
                fields.insert("content".into(), json!(word(index)));
            }
            fields
        };
        Self { messages: self.messages.iter().enumerate().map(replace).collect() }
    }

    /// Whether the template reads every text that `rendered` lacks, by what it makes of [`Self::with_words`]: it has changed or
    /// cut the text then, and no other form of it would be right.
    pub(super) fn reads_missing_texts(&self, rendered: &str, of_words: &str) -> bool {
        let of_words = of_words.to_lowercase();
        self.messages.iter().enumerate().all(|(index, fields)| {
            let text = fields.get("content").and_then(Json::as_str).map(str::trim);
            text.is_none_or(|text| rendered.contains(text) || of_words.contains(&word(index)))
        })
    }

    /// Whether a rendered text shows all texts and calls.
    pub(super) fn is_whole(&self, rendered: &str) -> bool {
        let mut from = 0;
        let mut shows = |text: &str| {
            let text = text.trim();
            // Most often it stands behind what was looked for before.
            let at = rendered.get(from..).and_then(|rest| rest.find(text)).map(|at| from + at);
            from = at.map_or(from, |at| at + text.len());
            at.is_some() || rendered.contains(text) || rendered.contains(written(text).trim_matches('"'))
        };
        self.messages.iter().all(|fields| {
            let said = fields.get("content").map(texts).unwrap_or_default();
            // Templates leave out the reasoning of earlier turns.
            let visible = said.into_iter().map(|text| text.rsplit("</think>").next().unwrap_or(text));
            let called = calls(fields).iter().filter_map(|call| function(call)["name"].as_str());
            visible.chain(called).all(&mut shows)
        })
    }

    /// Whether a rendered text has what no model was trained on: a list where one text was meant, or arguments that are no
    /// JSON object as a JSON string.
    pub(super) fn is_mistaken(&self, form: ValueForm, rendered: &str) -> bool {
        rendered.contains(WHOLE_LIST) || self.has_quoted_arguments(form, rendered)
    }

    fn has_quoted_arguments(&self, form: ValueForm, rendered: &str) -> bool {
        let quoted = |call: &Json| {
            let text = function(call)["arguments"].as_str().filter(|text| parsed(text).is_none());
            text.is_some_and(|text| rendered.contains(&written(text)))
        };
        form.call != ArgumentsForm::Both && self.messages.iter().flat_map(calls).any(quoted)
    }

    /// About how many bytes it has.
    pub(super) fn bytes(&self) -> usize {
        serde_json::to_vec(&self.messages).map_or(0, |text| text.len())
    }
}

/// A word that no template has, short and in small letters: templates cut texts and change their case.
fn word(index: usize) -> String {
    let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
    ['z', 'q', letter(index / 26), letter(index)].iter().collect()
}

fn written(text: &str) -> String {
    python::json_dumps(&json!(text), &python::JsonStyle::default())
}

/// Reasoning under every name that templates read, as transformers gives it.
fn with_reasoning(mut fields: Map<String, Json>) -> Map<String, Json> {
    let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name)).cloned() else { return fields };
    fields.insert("reasoning_content".into(), reasoning.clone());
    if !fields.contains_key("thinking") {
        fields.shift_insert(0, "thinking".into(), reasoning);
    }
    fields
}

/// Whether a message only calls functions, or lists no call.
fn is_blank(fields: &Map<String, Json>) -> bool {
    let says_nothing = fields.get("content").is_none_or(|content| content == "");
    let calls = fields.get("tool_calls").and_then(Json::as_array);
    calls.is_some_and(|calls| calls.is_empty() || says_nothing)
}

fn message(fields: &Map<String, Json>, form: ValueForm) -> Value {
    let mut fields = fields.clone();
    if form.blank != BlankForm::Given && is_blank(&fields) {
        if calls(&fields).is_empty() {
            fields.shift_remove("tool_calls");
        } else {
            match form.blank {
                BlankForm::Null => drop(fields.insert("content".into(), Json::Null)),
                BlankForm::Empty => drop(fields.insert("content".into(), json!(""))),
                BlankForm::Given | BlankForm::Absent => drop(fields.shift_remove("content")),
            }
        }
    }
    let entry = |(name, value): (String, Json)| {
        let value = match (name.as_str(), value) {
            ("content", value) => content(value, form.content),
            ("tool_calls", Json::Array(calls)) => calls.into_iter().map(|one| call(one, form.call)).collect(),
            (_, value) => Value::from(Serde(value)),
        };
        (name, value)
    };
    Value::from_pairs(fields.into_iter().map(entry))
}

fn content(value: Json, form: ContentForm) -> Value {
    match (form, value) {
        (ContentForm::Joined, list @ Json::Array(_)) => Value::from(texts(&list).join("\n")),
        (_, Json::Array(parts)) => {
            Value::from_object(TextParts(parts.into_iter().map(|part| Value::from(Serde(part))).collect()))
        }
        (ContentForm::Parts, Json::String(text)) => {
            let part = Value::from(Serde(json!({"type": "text", "text": text})));
            Value::from_object(TextParts(vec![part]))
        }
        (_, value) => Value::from(Serde(value)),
    }
}

fn call(call: Json, form: ArgumentsForm) -> Value {
    let Json::Object(fields) = call else { return Value::from(Serde(call)) };
    let entry = |(name, value): (String, Json)| {
        let value = match (name.as_str(), value) {
            ("function", value @ Json::Object(_)) => self::call(value, form),
            ("arguments", value) => arguments(value, form),
            (_, value) => Value::from(Serde(value)),
        };
        (name, value)
    };
    Value::from_pairs(fields.into_iter().map(entry))
}

fn arguments(value: Json, form: ArgumentsForm) -> Value {
    match (form, value) {
        (ArgumentsForm::Both, Json::String(text)) => {
            let object = parsed(&text).map(|object| Value::from(Serde(object)));
            Value::from_object(Arguments { text, object })
        }
        (ArgumentsForm::Object, Json::String(text)) => {
            Value::from(Serde(parsed(&text).map_or(Json::String(text), Json::Object)))
        }
        (ArgumentsForm::Text, value @ Json::Object(_)) => {
            Value::from(python::json_dumps(&value, &python::JsonStyle::default()))
        }
        (_, value) => Value::from(Serde(value)),
    }
}

/// The object that arguments are; none at all are an empty one.
fn parsed(text: &str) -> Option<Map<String, Json>> {
    if text.trim().is_empty() {
        return Some(Map::new());
    }
    serde_json::from_str(text).ok()
}
