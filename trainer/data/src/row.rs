//! One row: a prompt, perhaps a completion, and text columns.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use runtime::text::Message as ChatMessage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use command::{Error, Result};

/// The columns that every row is made of.
pub(crate) const KEYS: [&str; 6] =
    ["prompt", "messages", "conversations", "completion", "tools", "chat_template_kwargs"];

/// One message of a conversation in a recipe or a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user`, `assistant`, or another role that the chat template has.
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
pub enum RowPrompt {
    /// A text.
    Text(String),
    /// A conversation that the assistant continues.
    Chat(Vec<ChatMessage>),
    /// A conversation whose last message, of the assistant, goes on.
    Open(Vec<ChatMessage>),
}

/// A given answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// A text.
    Text(String),
    /// A message of the assistant.
    Message(ChatMessage),
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
    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::Data { path: self.path.as_ref().clone(), line: Some(self.line), what: what.into() }
    }
}

/// One row of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What the student is asked.
    pub prompt: RowPrompt,
    /// A given answer.
    pub completion: Option<Completion>,
    /// Definitions of functions, for the chat template.
    pub tools: Option<Value>,
    /// Variables of the chat template (`chat_template_kwargs`).
    pub variables: Map<String, Value>,
    /// The other columns, as text.
    pub columns: BTreeMap<String, String>,
    /// Where it stands.
    pub origin: Origin,
}

impl Row {
    /// Reads `prompt` (+ `completion`), `messages` or ShareGPT's `conversations`, with `tools` and `chat_template_kwargs`;
    /// the other keys become columns.
    pub(super) fn from_json(mut object: Map<String, Value>, origin: Origin) -> Result<Self> {
        let (prompt, completion) = (present(&mut object, "prompt"), present(&mut object, "completion"));
        let messages = match (present(&mut object, "messages"), present(&mut object, "conversations")) {
            (Some(_), Some(_)) => {
                return Err(origin.error("both `messages` and `conversations`; a row has one of them"));
            }
            (Some(messages), None) => Some(parse_messages(messages, "messages", &origin)?),
            (None, Some(turns)) => {
                Some(share_gpt(turns).map_err(|what| origin.error(format!("`conversations`: {what}")))?)
            }
            (None, None) => None,
        };
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
            (None, Some(messages)) => split_messages(messages),
        };
        match &prompt {
            RowPrompt::Text(text) if text.is_empty() => return Err(origin.error("`prompt` is empty")),
            RowPrompt::Chat(messages) if messages.is_empty() => {
                return Err(origin.error("no message before the completion"));
            }
            _ => {}
        }
        let tools = present(&mut object, "tools").map(|value| parse_tools(value, &origin)).transpose()?.flatten();
        let variables = match present(&mut object, "chat_template_kwargs") {
            None => Map::new(),
            Some(Value::Object(variables)) => variables,
            Some(other) => {
                return Err(origin.error(format!("`chat_template_kwargs` must be an object of variables, not {other}")));
            }
        };
        let columns = object.into_iter().filter_map(|(key, value)| Some((key, as_text(value)?))).collect();
        Ok(Self { prompt, completion, tools, variables, columns, origin })
    }
}

/// Takes a key out; `null` (a Parquet column that this row leaves empty) counts as absent.
fn present(object: &mut Map<String, Value>, key: &str) -> Option<Value> {
    object.shift_remove(key).filter(|value| !value.is_null())
}

fn parse_prompt(value: Value, origin: &Origin) -> Result<RowPrompt> {
    match value {
        Value::String(text) => Ok(RowPrompt::Text(text)),
        Value::Array(_) => {
            let messages = parse_messages(value, "prompt", origin)?;
            let open = messages.last().is_some_and(|last| last.role() == "assistant");
            Ok(if open { RowPrompt::Open(messages) } else { RowPrompt::Chat(messages) })
        }
        other => Err(origin.error(format!("`prompt` must be a string or a list of messages, not {other}"))),
    }
}

/// A string, or (as the conversational form has it) a list of exactly one assistant message.
fn parse_completion(value: Value, origin: &Origin) -> Result<Completion> {
    match value {
        Value::String(text) => Ok(Completion::Text(text)),
        Value::Array(_) => match <[ChatMessage; 1]>::try_from(parse_messages(value, "completion", origin)?) {
            Ok([only]) if only.role() == "assistant" => Ok(Completion::Message(only)),
            _ => Err(origin.error("`completion` must hold exactly one assistant message")),
        },
        other => Err(origin.error(format!("`completion` must be a string or a list of one message, not {other}"))),
    }
}

/// Function definitions, also as the JSON text that data sets keep them in; an empty list is none.
fn parse_tools(value: Value, origin: &Origin) -> Result<Option<Value>> {
    let value = match value {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|e| origin.error(format!("`tools` is a string that is not JSON: {e}")))?,
        value => value,
    };
    match value {
        Value::Array(tools) if tools.is_empty() => Ok(None),
        Value::Array(tools) if tools.iter().all(Value::is_object) => Ok(Some(without_nulls(Value::Array(tools)))),
        Value::Null => Ok(None),
        other => Err(origin.error(format!("`tools` must be a list of function definitions, not {other}"))),
    }
}

/// Files of columns give every object every key, so a key that is `null` is absent, however deep it stands.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        other => other,
    }
}

fn parse_messages(value: Value, key: &str, origin: &Origin) -> Result<Vec<ChatMessage>> {
    let Value::Array(items) = value else {
        return Err(origin.error(format!("`{key}` must be a list of messages, not {value}")));
    };
    let message = |(index, item): (usize, Value)| {
        check_message(without_nulls(item)).map_err(|what| origin.error(format!("`{key}[{index}]`: {what}")))
    };
    items.into_iter().enumerate().map(message).collect()
}

fn check_message(value: Value) -> Result<ChatMessage, String> {
    let Value::Object(fields) = value else { return Err(format!("a message is an object, not {value}")) };
    match fields.get("content") {
        Some(Value::String(_)) => {}
        None if fields.contains_key("tool_calls") => {}
        None => return Err("missing field `content`".to_owned()),
        Some(Value::Array(parts)) => {
            for part in parts {
                match (part["type"].as_str(), &part["text"]) {
                    (Some("text"), Value::String(_)) => {}
                    (Some("text") | None, _) => return Err(format!("a part of `content` has no text: {part}")),
                    (Some(kind), _) => {
                        return Err(format!("`content` has a part of type `{kind}`; only text is known"));
                    }
                }
            }
        }
        Some(other) => return Err(format!("`content` is {other}; a string or a list of text parts is needed")),
    }
    ChatMessage::try_from(fields)
}

/// ShareGPT's turns, `{from, value}`, as messages.
fn share_gpt(value: Value) -> Result<Vec<ChatMessage>, String> {
    let Value::Array(turns) = value else { return Err(format!("a list of turns is needed, not {value}")) };
    let turn = |turn: Value| {
        let (Some(from), Some(text)) = (turn["from"].as_str(), turn["value"].as_str()) else {
            return Err(format!("a turn has `from` and `value`, texts both, not {turn}"));
        };
        let role = match from {
            "human" | "user" => "user",
            "gpt" | "assistant" => "assistant",
            "system" => "system",
            "tool" | "observation" => "tool",
            other => return Err(format!("`from` is \"{other}\"; system, human, gpt and tool are known")),
        };
        Ok(ChatMessage::new(role, text))
    };
    turns.into_iter().map(turn).collect()
}

/// The last assistant turn is the completion.
fn split_messages(mut messages: Vec<ChatMessage>) -> (RowPrompt, Option<Completion>) {
    let completion = match messages.last() {
        Some(last) if last.role() == "assistant" => messages.pop().map(Completion::Message),
        _ => None,
    };
    (RowPrompt::Chat(messages), completion)
}

fn as_text(value: Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}
