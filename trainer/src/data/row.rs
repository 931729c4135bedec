//! One row: a prompt, perhaps a completion, and text columns.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what the chat template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A turn.
    #[must_use]
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into() }
    }
}

/// What the student is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// A conversation that the assistant continues.
    Chat(Vec<Message>),
}

/// Where a row stands, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub path: Arc<PathBuf>,
    /// Line (JSONL) or row (Parquet), from 1.
    pub line: usize,
}

impl Origin {
    /// An error about this row.
    pub(crate) fn error(&self, what: impl Into<String>) -> Error {
        Error::Data { path: self.path.as_ref().clone(), line: Some(self.line), what: what.into() }
    }
}

/// One row of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What the student is asked.
    pub prompt: Prompt,
    /// A given answer.
    pub completion: Option<String>,
    /// The other columns, as text.
    pub columns: BTreeMap<String, String>,
    /// Where it stands.
    pub origin: Origin,
}

impl Row {
    /// Reads `prompt` (+ `completion`) or `messages`; the other keys become columns.
    pub(super) fn from_json(mut object: Map<String, Value>, origin: Origin) -> Result<Self> {
        let (prompt, messages, completion) =
            (present(&mut object, "prompt"), present(&mut object, "messages"), present(&mut object, "completion"));
        let (prompt, completion) = match (prompt, messages) {
            (Some(_), Some(_)) => return Err(origin.error("both `prompt` and `messages`; a row has one of them")),
            (None, None) => {
                return Err(origin
                    .error(format!("neither `prompt` nor `messages`, only {:?}", object.keys().collect::<Vec<_>>())));
            }
            (Some(prompt), None) => {
                (parse_prompt(prompt, &origin)?, completion.map(|value| parse_completion(value, &origin)).transpose()?)
            }
            (None, Some(_)) if completion.is_some() => {
                return Err(
                    origin.error("both `messages` and `completion`; the last assistant message is the completion")
                );
            }
            (None, Some(messages)) => split_messages(parse_messages(messages, "messages", &origin)?),
        };
        match &prompt {
            Prompt::Text(text) if text.is_empty() => return Err(origin.error("`prompt` is empty")),
            Prompt::Chat(messages) if messages.is_empty() => {
                return Err(origin.error("no message before the completion"));
            }
            _ => {}
        }
        let columns = object.into_iter().filter_map(|(key, value)| Some((key, as_text(value)?))).collect();
        Ok(Self { prompt, completion, columns, origin })
    }
}

/// Takes a key out; `null` (a Parquet column that this row leaves empty) counts as absent.
fn present(object: &mut Map<String, Value>, key: &str) -> Option<Value> {
    object.shift_remove(key).filter(|value| !value.is_null())
}

fn parse_prompt(value: Value, origin: &Origin) -> Result<Prompt> {
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(_) => parse_messages(value, "prompt", origin).map(Prompt::Chat),
        other => Err(origin.error(format!("`prompt` must be a string or a list of messages, not {other}"))),
    }
}

/// A string, or (as the conversational form has it) a list of exactly one assistant message.
fn parse_completion(value: Value, origin: &Origin) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Array(_) => match parse_messages(value, "completion", origin)?.as_slice() {
            [only] if only.role == "assistant" => Ok(only.content.clone()),
            _ => Err(origin.error("`completion` must hold exactly one assistant message")),
        },
        other => Err(origin.error(format!("`completion` must be a string or a list of one message, not {other}"))),
    }
}

fn parse_messages(value: Value, key: &str, origin: &Origin) -> Result<Vec<Message>> {
    serde_json::from_value(value).map_err(|e| origin.error(format!("`{key}`: {e}")))
}

/// The last assistant turn is the completion.
fn split_messages(mut messages: Vec<Message>) -> (Prompt, Option<String>) {
    let completion = match messages.last() {
        Some(last) if last.role == "assistant" => messages.pop().map(|message| message.content),
        _ => None,
    };
    (Prompt::Chat(messages), completion)
}

fn as_text(value: Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}
