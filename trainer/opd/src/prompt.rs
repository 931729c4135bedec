//! From rows to token ids: what the student sees, what the teacher sees, and a given completion.

use std::collections::BTreeMap;
use std::sync::Arc;

use runtime::files::ModelFiles;
use runtime::text::{ChatTemplate, Ending, Message as ChatMessage, Tokenizer};
use serde_json::Map;

use crate::recipe::TeacherContext;
use crate::{Error, Result};
use data::{Completion, Message, Origin, Row, RowPrompt};

/// Roles that chat templates know; one that a template names is known, too.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Keys of messages that say who or which call it is, and change nothing where a template does not read them.
const HARMLESS: [&str; 4] = ["role", "content", "name", "tool_call_id"];

/// A row as token ids.
#[derive(Debug, Clone)]
pub struct Example {
    /// The student's prompt.
    pub prompt: Vec<u32>,
    /// The teacher's, when it differs.
    pub teacher_prompt: Option<Vec<u32>>,
    /// The given completion with its end-of-sequence token.
    pub completion: Option<Vec<u32>>,
    /// What comes before it, where prompt and completion together have other tokens than the prompt alone. They are encoded
    /// together, and the completion begins where the two differ, as in TRL.
    pub given_prompt: Option<Vec<u32>>,
    /// The prompt as shown to people: the last message, or the text.
    pub shown: String,
}

/// Turns rows into token ids.
pub struct PromptEncoder {
    tokenizer: Arc<Tokenizer>,
    files: Arc<ModelFiles>,
    /// String prompts become user messages.
    chat: bool,
    system_prompt: Option<String>,
    context: Option<TeacherContext>,
}

impl PromptEncoder {
    /// `chat`: whether string prompts become user messages; `None` means when the model has a chat template.
    ///
    /// # Errors
    /// Without a tokenizer, or when a setting needs a chat template and there is none.
    pub fn new(
        files: Arc<ModelFiles>,
        chat: Option<bool>,
        system_prompt: Option<String>,
        context: Option<TeacherContext>,
    ) -> Result<Self> {
        let tokenizer = Arc::clone(files.tokenizer()?);
        let chat = chat.unwrap_or(files.chat_template.is_some());
        if chat {
            files.chat_template()?;
        }
        Ok(Self { tokenizer, files, chat, system_prompt, context })
    }

    /// The tokenizer in use.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// A row as token ids.
    ///
    /// # Errors
    /// A row that the chat template refuses, or that contradicts the recipe, by file and line.
    pub fn encode(&self, row: &Row) -> Result<Example> {
        self.encode_with(row, self.context.as_ref())
    }

    fn encode_with(&self, row: &Row, context: Option<&TeacherContext>) -> Result<Example> {
        let (messages, ending) = match &row.prompt {
            RowPrompt::Text(text) if !self.chat => return self.encode_text(text, row, context),
            RowPrompt::Text(text) => (vec![ChatMessage::new("user", text)], Ending::Answer),
            RowPrompt::Chat(messages) => (messages.clone(), Ending::Answer),
            RowPrompt::Open(messages) => (messages.clone(), Ending::Continue),
        };
        self.check(&messages, row)?;
        let shown = messages.last().map(ChatMessage::text).unwrap_or_default();
        let student = self.student_messages(messages, row)?;
        let text = self.render(&student, ending, row)?;
        let prompt = self.tokenizer.encode(&text, false)?;
        let teacher_prompt = match context {
            None => None,
            Some(context) => {
                let messages = teacher_messages(context, &student, row)?;
                Some(self.tokenizer.encode(&self.render(&messages, ending, row)?, false)?)
            }
        };
        let given = match &row.completion {
            None => None,
            Some(completion) => Some(split(&prompt, self.chat_completion(student, ending, &text, completion, row)?)),
        };
        let (given_prompt, completion) = given.map(|given| self.cut(given, row)).transpose()?.unzip();
        Ok(Example { prompt, teacher_prompt, completion, given_prompt: given_prompt.flatten(), shown })
    }

    /// Column of the data that the teacher's context needs, which a prompt that is no row does not have.
    #[must_use]
    pub fn context_column(&self) -> Option<&str> {
        self.context.as_ref()?.column.as_ref().map(|(column, _)| column.as_str())
    }

    /// A prompt that is no row. There is no teacher's prompt when that needs a column.
    ///
    /// # Errors
    /// What the chat template or the tokenizer refuse.
    pub fn encode_prompt(&self, text: &str) -> Result<Example> {
        let row = Row {
            prompt: RowPrompt::Text(text.to_owned()),
            completion: None,
            tools: None,
            variables: Map::new(),
            columns: BTreeMap::new(),
            origin: Origin { path: Arc::new("eval.sample_prompts".into()), line: 1 },
        };
        let context = self.context.as_ref().filter(|context| context.column.is_none());
        self.encode_with(&row, context)
    }

    /// A plain text; privileged text from a column is put before it.
    fn encode_text(&self, text: &str, row: &Row, context: Option<&TeacherContext>) -> Result<Example> {
        let needs_chat = |key| Error::NoChatTemplate { key, model: self.files.path.clone() };
        if self.system_prompt.is_some() {
            return Err(needs_chat("data.system_prompt"));
        }
        if row.tools.is_some() || !row.variables.is_empty() {
            let column = if row.tools.is_some() { "tools" } else { "chat_template_kwargs" };
            return Err(Error::row(
                &row.origin,
                format!("`{column}` is for a chat template, and this prompt is used without one"),
            ));
        }
        let teacher_prompt = match context {
            None => None,
            Some(TeacherContext { system_prompt: Some(_), .. }) => return Err(needs_chat("teacher.system_prompt")),
            Some(TeacherContext { few_shot, .. }) if !few_shot.is_empty() => {
                return Err(needs_chat("teacher.few_shot"));
            }
            Some(context) => {
                let privileged = column_text(context, row)?.unwrap_or_default();
                Some(self.tokenizer.encode(&format!("{privileged}{text}"), true)?)
            }
        };
        let prompt = self.tokenizer.encode(text, true)?;
        let given = match &row.completion {
            None => None,
            Some(completion) => {
                let both = self.tokenizer.encode(&format!("{text}{}", completion_text(completion, row)?), true)?;
                let (given_prompt, mut ids) = split(&prompt, both);
                let eos = self.tokenizer.eos().or_else(|| self.files.config.eos_token_ids.first().copied());
                let eos = eos.ok_or_else(|| {
                    Error::row(&row.origin, "the model names no end-of-sequence token to end the completion")
                })?;
                if ids.last() != Some(&eos) {
                    ids.push(eos);
                }
                Some((given_prompt, ids))
            }
        };
        let (given_prompt, completion) = given.unzip();
        Ok(Example { prompt, teacher_prompt, completion, given_prompt: given_prompt.flatten(), shown: text.to_owned() })
    }

    /// Refuses what no chat template, or not this one, would read.
    fn check(&self, messages: &[ChatMessage], row: &Row) -> Result<()> {
        let source = self.template()?.source();
        let completion = match &row.completion {
            Some(Completion::Message(message)) => Some(message),
            Some(Completion::Text(_)) | None => None,
        };
        for message in messages.iter().chain(completion) {
            let role = message.role();
            let written = [format!("'{role}'"), format!("\"{role}\"")].iter().any(|role| source.contains(role));
            if !ROLES.contains(&role) && !written {
                return Err(Error::row(
                    &row.origin,
                    format!(
                        "the chat template does not know the role \"{role}\"; {} are known. Rename the roles (\"human\" is \
                     user, \"gpt\" is assistant), or name the column `conversations`, with `from` and `value` in each turn, \
                     which is read as ShareGPT's",
                        ROLES.join(", ")
                    ),
                ));
            }
            let reads = |key: &str| match key {
                "reasoning_content" | "thinking" | "reasoning" => {
                    ["reasoning_content", "thinking", key].iter().any(|key| source.contains(key))
                }
                _ => HARMLESS.contains(&key) || source.contains(key),
            };
            if let Some(key) = message.fields().keys().find(|key| !reads(key)) {
                return Err(Error::row(
                    &row.origin,
                    format!(
                        "a message has the key `{key}`, which the chat template does not read; take it out of the data"
                    ),
                ));
            }
        }
        let names = row.tools.iter().map(|_| "tools").chain(row.variables.keys().map(String::as_str));
        match { names }.find(|name| !source.contains(name)) {
            None => Ok(()),
            Some(name) => Err(Error::row(
                &row.origin,
                format!("the chat template has no place for `{name}`; take it out of the data"),
            )),
        }
    }

    /// The row's messages after the student's system prompt.
    fn student_messages(&self, mut messages: Vec<ChatMessage>, row: &Row) -> Result<Vec<ChatMessage>> {
        if let Some(system) = &self.system_prompt {
            if messages.first().is_some_and(|first| first.role() == "system") {
                return Err(Error::row(
                    &row.origin,
                    "the row has a system message and `data.system_prompt` is set; keep one",
                ));
            }
            messages.insert(0, ChatMessage::new("system", system));
        }
        Ok(messages)
    }

    /// Tokens of the prompt, whose text is `prompt`, with what the template puts after it for an assistant turn.
    fn chat_completion(
        &self,
        mut messages: Vec<ChatMessage>,
        ending: Ending,
        prompt: &str,
        completion: &Completion,
        row: &Row,
    ) -> Result<Vec<u32>> {
        match (ending, completion, messages.last_mut()) {
            (Ending::Continue, _, Some(last)) => drop(last.append(&completion_text(completion, row)?)),
            (_, Completion::Message(message), _) => messages.push(message.clone()),
            (_, Completion::Text(text), _) => messages.push(ChatMessage::new("assistant", text)),
        }
        let whole = self.render(&messages, Ending::Closed, row)?;
        if !whole.starts_with(prompt) {
            return Err(Error::row(
                &row.origin,
                "the chat template writes the prompt differently once the answer is known, so the answer has no token ids of its own",
            ));
        }
        Ok(self.tokenizer.encode(&whole, false)?)
    }

    /// The completion up to and with its end-of-sequence token.
    fn cut(&self, (prompt, mut ids): (Option<Vec<u32>>, Vec<u32>), row: &Row) -> Result<(Option<Vec<u32>>, Vec<u32>)> {
        let end = ids.iter().position(|id| self.files.config.eos_token_ids.contains(id));
        let end = end.ok_or_else(|| {
            Error::row(&row.origin, "the chat template ends the answer without an end-of-sequence token")
        })?;
        ids.truncate(end + 1);
        Ok((prompt, ids))
    }

    fn template(&self) -> Result<&ChatTemplate> {
        Ok(self.files.chat_template()?)
    }

    fn render(&self, messages: &[ChatMessage], ending: Ending, row: &Row) -> Result<String> {
        let text = self.template()?.render(messages, ending, row.tools.as_ref(), &row.variables);
        text.map_err(|e| Error::row(&row.origin, e.to_string()))
    }
}

/// What tokens of prompt and completion have in common with those of the prompt alone, where that is not the whole prompt, and
/// the rest.
fn split(prompt: &[u32], mut both: Vec<u32>) -> (Option<Vec<u32>>, Vec<u32>) {
    let common = prompt.iter().zip(&both).take_while(|(a, b)| a == b).count();
    let rest = both.split_off(common);
    ((common < prompt.len()).then_some(both), rest)
}

fn completion_text(completion: &Completion, row: &Row) -> Result<String> {
    match completion {
        Completion::Text(text) => Ok(text.clone()),
        Completion::Message(message) if message.fields().contains_key("tool_calls") => {
            Err(Error::row(&row.origin, "a completion with tool calls needs a chat template and a turn of its own"))
        }
        Completion::Message(message) => Ok(message.text()),
    }
}

/// A conversation as text.
pub fn render(template: &ChatTemplate, messages: &[Message], answer_follows: bool) -> Result<String> {
    let messages: Vec<ChatMessage> = messages.iter().map(|m| ChatMessage::new(&m.role, &m.content)).collect();
    let ending = if answer_follows { Ending::Answer } else { Ending::Closed };
    Ok(template.render(&messages, ending, None, &Map::new())?)
}

/// The student's messages with the privileged text in front: context and system prompts become one system message,
/// few-shot messages follow it.
fn teacher_messages(context: &TeacherContext, student: &[ChatMessage], row: &Row) -> Result<Vec<ChatMessage>> {
    let (system, rest) = match student.split_first() {
        Some((first, rest)) if first.role() == "system" => (Some(first.text()), rest),
        _ => (None, student),
    };
    let parts: Vec<String> =
        [context.system_prompt.clone(), column_text(context, row)?, system].into_iter().flatten().collect();
    let mut messages = Vec::with_capacity(student.len() + context.few_shot.len() + 1);
    if !parts.is_empty() {
        messages.push(ChatMessage::new("system", &parts.join("\n\n")));
    }
    messages.extend(context.few_shot.iter().map(|message| ChatMessage::new(&message.role, &message.content)));
    messages.extend(rest.iter().cloned());
    Ok(messages)
}

fn column_text(context: &TeacherContext, row: &Row) -> Result<Option<String>> {
    let Some((column, template)) = &context.column else { return Ok(None) };
    let text = row.columns.get(column).ok_or_else(|| {
        Error::row(
            &row.origin,
            format!("no column `{column}` (`teacher.context_column`); there are {:?}", row.columns.keys()),
        )
    })?;
    Ok(Some(template.replace("{context}", text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: &[(&str, &str)]) -> Row {
        Row {
            prompt: RowPrompt::Text("Why?".to_owned()),
            completion: None,
            tools: None,
            variables: Map::new(),
            columns: columns.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            origin: Origin { path: Arc::new("rows.jsonl".into()), line: 4 },
        }
    }

    #[test]
    fn privileged_text_becomes_one_system_message() {
        let context = TeacherContext {
            system_prompt: Some("Rhyme.".to_owned()),
            few_shot: vec![Message::new("user", "Hi"), Message::new("assistant", "My, oh my!")],
            column: Some(("answer".to_owned(), "The answer is {context}.".to_owned())),
        };
        let student = [ChatMessage::new("system", "Be brief."), ChatMessage::new("user", "Why?")];
        let got = teacher_messages(&context, &student, &row(&[("answer", "42")])).expect("valid");
        let contents: Vec<&str> = got.iter().filter_map(ChatMessage::content).collect();
        assert_eq!(contents, ["Rhyme.\n\nThe answer is 42.\n\nBe brief.", "Hi", "My, oh my!", "Why?"]);
    }

    #[test]
    fn a_row_without_the_privileged_column_is_named() {
        let context =
            TeacherContext { column: Some(("answer".to_owned(), "{context}".to_owned())), ..Default::default() };
        let error = teacher_messages(&context, &[], &row(&[("other", "x")])).expect_err("no column").to_string();
        assert!(error.contains("rows.jsonl:4") && error.contains("`answer`") && error.contains("other"), "{error}");
    }

    #[test]
    fn a_completion_begins_where_both_differ_from_the_prompt_alone() {
        assert_eq!(split(&[1, 2], vec![1, 2, 3]), (None, vec![3]));
        assert_eq!(split(&[1, 2], vec![1, 4]), (Some(vec![1]), vec![4]));
        assert_eq!(split(&[1, 2], vec![1]), (Some(vec![1]), vec![]));
    }
}
