//! From texts and conversations to token ids, off the event loop.

use std::fmt::{self, Display};
use std::sync::Arc;

use runtime::text::{Ending, Message};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::fields::Fields;
use crate::limits::blocking_pool::{Abandoned, SHORT, in_turn};
use crate::limits::json_text;
use crate::limits::memory::{self, Share};
use crate::models::Model;
use crate::openapi::schema::{
    Members, Schema, any, any_of, boolean, integer, list, map, nullable, one_of, some, text, token_id,
};
use telemetry::Scope;

/// `prompt` and `input`: a text, some texts, the ids of one prompt, or of some.
#[derive(Debug)]
pub(crate) enum Input {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    IdLists(Vec<Vec<u32>>),
}

/// An element of a list of inputs.
enum Element {
    Id(u32),
    Text(String),
    Ids(Vec<u32>),
}

const INPUT: &str = "a string, a list of strings, a list of token ids or a list of such lists";

/// Reads an [`Input`] in one go: to try one form after the other would keep several copies of millions of ids.
struct ReadInput;
/// Reads an [`Element`].
struct ReadElement;

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ReadInput)
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ReadElement)
    }
}

impl<'de> Visitor<'de> for ReadInput {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(INPUT)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Input, E> {
        Ok(Input::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Input, E> {
        Ok(Input::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Input, A::Error> {
        let mut input = match list.next_element()? {
            None => return Ok(Input::Ids(vec![])),
            Some(Element::Id(id)) => Input::Ids(vec![id]),
            Some(Element::Text(text)) => Input::Texts(vec![text]),
            Some(Element::Ids(ids)) => Input::IdLists(vec![ids]),
        };
        while let Some(element) = list.next_element()? {
            match (&mut input, element) {
                (Input::Ids(ids), Element::Id(id)) => ids.push(id),
                (Input::Texts(texts), Element::Text(text)) => texts.push(text),
                (Input::IdLists(lists), Element::Ids(ids)) => lists.push(ids),
                _ => return Err(de::Error::custom(format!("its elements are of several kinds; expected {INPUT}"))),
            }
        }
        Ok(input)
    }
}

impl<'de> Visitor<'de> for ReadElement {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{INPUT}; an id is from 0 to {}", u32::MAX)
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<Element, E> {
        let id = u32::try_from(id).map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))?;
        Ok(Element::Id(id))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Element, E> {
        Ok(Element::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Element, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(Element::Ids)
    }
}

/// A prompt and, where it was given whole, its text.
#[derive(Debug)]
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    pub(crate) text: Option<String>,
}

/// How texts become tokens, as far as a request has a say in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PromptEncoding {
    /// The tokenizer adds its special tokens, such as the one that begins a text.
    special: bool,
    /// Of longer prompts only the last tokens are kept, this many.
    keep: Option<usize>,
}

/// Texts of this many contexts are encoded where all but their end is dropped.
const MAX_DROPPED: usize = 64;

impl PromptEncoding {
    /// All of the text, with or without special tokens.
    pub(crate) fn whole(special: bool) -> Self {
        Self { special, keep: None }
    }

    /// Takes `add_special_tokens`, which is `special` where it is left out, and `truncate_prompt_tokens`.
    pub(crate) fn take(fields: &mut Fields, model: &Model, special: bool) -> Result<Self, ApiError> {
        const KEEP: &str = "truncate_prompt_tokens";
        let special = fields.take("add_special_tokens")?.unwrap_or(special);
        let context = model.context();
        let keep = match fields.take::<i64>(KEEP)? {
            None => None,
            Some(-1) => Some(context),
            Some(keep) => match usize::try_from(keep) {
                Ok(keep) if (1..=context).contains(&keep) => Some(keep),
                _ => {
                    let message =
                        format!("{KEEP} = {keep}: must be from 1 to the context of {context}, or -1 for all of it");
                    return Err(ApiError::invalid(KEEP, message));
                }
            },
        };
        Ok(Self { special, keep })
    }

    /// Ids of a text, which is checked for what the model can see; `share` is the memory for it.
    fn encode(self, text: String, model: &Model, field: &'static str, share: &mut Share) -> Result<Prompt, ApiError> {
        let limit = if self.keep.is_some() { model.context().saturating_mul(MAX_DROPPED) } else { model.context() };
        may_fit(&text, limit, model, field)?;
        to_tokenize(&text, share)?;
        let ids = model.tokenizer()?.encode(&text, self.special)?;
        Ok(self.cut(Prompt { ids, text: Some(text) }))
    }

    fn cut(self, mut prompt: Prompt) -> Prompt {
        let dropped = self.keep.map_or(0, |keep| prompt.ids.len().saturating_sub(keep));
        if dropped > 0 {
            prompt.ids.drain(..dropped);
            prompt.text = None;
        }
        prompt
    }
}

/// The fields that [`PromptEncoding::take`] takes.
pub(crate) fn describe_encoding(special: &str) -> Members {
    Members::new()
        .maybe(
            "add_special_tokens",
            boolean(),
            &format!("Whether the tokenizer adds its special tokens to a text; {special}."),
        )
        .maybe(
            "truncate_prompt_tokens",
            integer(-1..=i128::from(u32::MAX)),
            "Of a longer prompt only the last so many tokens are kept; -1 is the context.",
        )
}

/// Bytes that it takes to look at a byte of text, and to make tokens of it: the tokenizer keeps where each came from.
const LOOK_BYTES: u64 = 48;
pub(crate) const TOKENIZE_BYTES: u64 = 220;

/// Takes the memory for making tokens of a text, where that is worth counting.
fn to_tokenize(text: &str, share: &mut Share) -> Result<(), ApiError> {
    if text.len() <= SHORT {
        return Ok(());
    }
    let more = (text.len() as u64 * TOKENIZE_BYTES).saturating_sub(share.bytes());
    share.grow(more, "to tokenize the text")
}

impl Input {
    /// All prompts as token ids; `field` is the name of the input.
    pub(crate) async fn encode(
        self,
        model: &Arc<Model>,
        field: &'static str,
        encoding: PromptEncoding,
    ) -> Result<Vec<Prompt>, ApiError> {
        let model = Arc::clone(model);
        let bytes = self.longest_text();
        let work = in_turn(bytes, bytes as u64 * LOOK_BYTES, "the text", move |abandoned, share| {
            self.encode_now(&model, field, encoding, share, abandoned)
        });
        Scope::current().time("tokenize", work).await
    }

    /// Bytes of the longest text.
    fn longest_text(&self) -> usize {
        match self {
            Self::Text(one) => one.len(),
            Self::Texts(some) => some.iter().map(String::len).max().unwrap_or(0),
            Self::Ids(_) | Self::IdLists(_) => 0,
        }
    }

    fn encode_now(
        self,
        model: &Model,
        field: &'static str,
        encoding: PromptEncoding,
        mut share: Share,
        abandoned: &Abandoned,
    ) -> Result<Vec<Prompt>, ApiError> {
        let mut text = |text: String| -> Result<Prompt, ApiError> {
            abandoned.check()?;
            encoding.encode(text, model, field, &mut share)
        };
        let ids = |ids| encoding.cut(Prompt { ids, text: None });
        let prompts = match self {
            Self::Text(one) => vec![text(one)?],
            Self::Texts(some) => some.into_iter().map(text).collect::<Result<_, _>>()?,
            Self::Ids(one) => vec![ids(one)],
            Self::IdLists(some) => some.into_iter().map(ids).collect(),
        };
        if prompts.is_empty() {
            return Err(ApiError::invalid(field, format!("`{field}` is empty")));
        }
        for prompt in &prompts {
            check_ids(&prompt.ids, model, field)?;
        }
        Ok(prompts)
    }
}

/// Refuses what is longer than the model's context; `tokens` says how long it is.
pub(crate) fn too_long(tokens: impl Display, context: usize, field: &'static str) -> ApiError {
    ApiError::too_long(format!("{tokens} tokens exceed the model's context of {context}; send fewer")).about(field)
}

/// Refuses a text that is far too long before its tokens are made, which would take seconds.
fn may_fit(text: &str, limit: usize, model: &Model, field: &'static str) -> Result<(), ApiError> {
    match model.tokenizer()?.surely_exceeds(text, limit) {
        true => Err(too_long(format!("more than {limit}"), model.context(), field)),
        false => Ok(()),
    }
}

/// There must be something, and the model must know it.
pub(crate) fn check_ids(ids: &[u32], model: &Model, field: &'static str) -> Result<(), ApiError> {
    if ids.is_empty() {
        return Err(ApiError::invalid(field, format!("`{field}` has no token; at least one is needed")));
    }
    let vocab_size = model.vocab_size();
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        None => Ok(()),
        Some(id) => {
            Err(ApiError::invalid(field, format!("`{field}`: token id {id} is outside the vocabulary of {vocab_size}")))
        }
    }
}

/// Tokens that may follow a prompt, by the model's context and by the pages that there are.
pub(crate) fn room(model: &Model, total_pages: usize, prompt: usize) -> usize {
    // The last sampled token is never computed, so it needs no page.
    let pages = (total_pages * runtime::kv::PAGE_SIZE + 1).saturating_sub(prompt);
    model.context().saturating_sub(prompt).min(pages)
}

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

/// An [`Input`]. Every prompt has to have at least one token.
pub(crate) fn describe_input() -> Schema {
    any_of([text(), some(text(), None), some(token_id(), None), some(some(token_id(), None), None)])
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
