//! From rows to token ids: what the student sees, what the teacher sees, and a given completion.

use std::collections::BTreeMap;
use std::sync::Arc;

use runtime::files::ModelFiles;
use runtime::text::{ChatTemplate, Ending, Message as ChatMessage, Tokenizer};
use serde_json::Map;

use crate::data::{Message, Origin, Prompt, Row};
use crate::recipe::TeacherContext;
use crate::{Error, Result};

/// A row as token ids.
#[derive(Debug, Clone)]
pub struct Example {
    /// The student's prompt.
    pub prompt: Vec<u32>,
    /// The teacher's, when it differs.
    pub teacher_prompt: Option<Vec<u32>>,
    /// The given completion with its end-of-sequence token.
    pub completion: Option<Vec<u32>>,
    /// The prompt as shown to people: the last message, or the text.
    pub shown: String,
}

/// Turns rows into token ids.
pub struct Encoder {
    tokenizer: Arc<Tokenizer>,
    files: Arc<ModelFiles>,
    /// String prompts become user messages.
    chat: bool,
    system_prompt: Option<String>,
    context: Option<TeacherContext>,
}

impl Encoder {
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
        let messages = match &row.prompt {
            Prompt::Text(text) if !self.chat => return self.encode_text(text, row, context),
            Prompt::Text(text) => vec![Message::new("user", text.clone())],
            Prompt::Chat(messages) => messages.clone(),
        };
        let shown = messages.last().map(|message| message.content.clone()).unwrap_or_default();
        let student = self.student_messages(messages, row)?;
        let prompt = self.render(&student, true, row)?;
        let teacher_prompt = match context {
            None => None,
            Some(context) => {
                let messages = teacher_messages(context, &student, row)?;
                Some(self.tokenizer.encode(&self.render(&messages, true, row)?, false)?)
            }
        };
        let completion =
            row.completion.as_ref().map(|text| self.chat_completion(student, &prompt, text, row)).transpose()?;
        Ok(Example { prompt: self.tokenizer.encode(&prompt, false)?, teacher_prompt, completion, shown })
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
            prompt: Prompt::Text(text.to_owned()),
            completion: None,
            columns: BTreeMap::new(),
            origin: Origin { path: Arc::new("eval.sample_prompts".into()), line: 1 },
        };
        let context = self.context.as_ref().filter(|context| context.column.is_none());
        self.encode_with(&row, context)
    }

    /// A plain text; privileged text from a column is put before it.
    fn encode_text(&self, text: &str, row: &Row, context: Option<&TeacherContext>) -> Result<Example> {
        let needs_chat = |key: &str| Error::Models {
            what: format!("`{key}` needs a chat template, and {} is used without one", self.files.path.display()),
        };
        if self.system_prompt.is_some() {
            return Err(needs_chat("data.system_prompt"));
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
        let completion = row.completion.as_ref().map(|text| {
            let mut ids = self.tokenizer.encode(text, false)?;
            let eos = self.tokenizer.eos().or_else(|| self.files.config.eos_token_ids.first().copied());
            ids.push(
                eos.ok_or_else(|| row.origin.error("the model names no end-of-sequence token to end the completion"))?,
            );
            Ok::<_, Error>(ids)
        });
        Ok(Example {
            prompt: self.tokenizer.encode(text, true)?,
            teacher_prompt,
            completion: completion.transpose()?,
            shown: text.to_owned(),
        })
    }

    /// The row's messages after the student's system prompt.
    fn student_messages(&self, mut messages: Vec<Message>, row: &Row) -> Result<Vec<Message>> {
        if let Some(system) = &self.system_prompt {
            if messages.first().is_some_and(|first| first.role == "system") {
                return Err(row.origin.error("the row has a system message and `data.system_prompt` is set; keep one"));
            }
            messages.insert(0, Message::new("system", system.clone()));
        }
        Ok(messages)
    }

    /// What the template puts after the prompt for an assistant turn, up to and with the end-of-sequence token.
    fn chat_completion(&self, mut messages: Vec<Message>, prompt: &str, text: &str, row: &Row) -> Result<Vec<u32>> {
        messages.push(Message::new("assistant", text));
        let whole = self.render(&messages, false, row)?;
        let Some(rest) = whole.strip_prefix(prompt) else {
            return Err(row.origin.error("the chat template writes the prompt differently once the answer is known, so the answer has no token ids of its own"));
        };
        let mut ids = self.tokenizer.encode(rest, false)?;
        let end = ids.iter().position(|id| self.files.config.eos_token_ids.contains(id));
        let end =
            end.ok_or_else(|| row.origin.error("the chat template ends the answer without an end-of-sequence token"))?;
        ids.truncate(end + 1);
        Ok(ids)
    }

    fn template(&self) -> Result<&ChatTemplate> {
        Ok(self.files.chat_template()?)
    }

    fn render(&self, messages: &[Message], answer_follows: bool, row: &Row) -> Result<String> {
        render(self.template()?, messages, answer_follows).map_err(|e| row.origin.error(e.to_string()))
    }
}

/// A conversation as text.
pub(crate) fn render(template: &ChatTemplate, messages: &[Message], answer_follows: bool) -> Result<String> {
    let messages: Vec<ChatMessage> = messages.iter().map(|m| ChatMessage::new(&m.role, &m.content)).collect();
    let ending = if answer_follows { Ending::Answer } else { Ending::Closed };
    Ok(template.render(&messages, ending, None, &Map::new())?)
}

/// The student's messages with the privileged text in front: context and system prompts become one system message,
/// few-shot messages follow it.
fn teacher_messages(context: &TeacherContext, student: &[Message], row: &Row) -> Result<Vec<Message>> {
    let (system, rest) = match student.split_first() {
        Some((first, rest)) if first.role == "system" => (Some(first.content.clone()), rest),
        _ => (None, student),
    };
    let parts: Vec<String> =
        [context.system_prompt.clone(), column_text(context, row)?, system].into_iter().flatten().collect();
    let mut messages = Vec::with_capacity(student.len() + context.few_shot.len() + 1);
    if !parts.is_empty() {
        messages.push(Message::new("system", parts.join("\n\n")));
    }
    messages.extend(context.few_shot.iter().cloned());
    messages.extend(rest.iter().cloned());
    Ok(messages)
}

fn column_text(context: &TeacherContext, row: &Row) -> Result<Option<String>> {
    let Some((column, template)) = &context.column else { return Ok(None) };
    let text = row.columns.get(column).ok_or_else(|| {
        row.origin.error(format!("no column `{column}` (`teacher.context_column`); there are {:?}", row.columns.keys()))
    })?;
    Ok(Some(template.replace("{context}", text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: &[(&str, &str)]) -> Row {
        Row {
            prompt: Prompt::Text("Why?".to_owned()),
            completion: None,
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
        let student = [Message::new("system", "Be brief."), Message::new("user", "Why?")];
        let got = teacher_messages(&context, &student, &row(&[("answer", "42")])).expect("valid");
        let contents: Vec<&str> = got.iter().map(|m| m.content.as_str()).collect();
        assert_eq!(contents, ["Rhyme.\n\nThe answer is 42.\n\nBe brief.", "Hi", "My, oh my!", "Why?"]);
    }

    #[test]
    fn a_row_without_the_privileged_column_is_named() {
        let context =
            TeacherContext { column: Some(("answer".to_owned(), "{context}".to_owned())), ..Default::default() };
        let error = teacher_messages(&context, &[], &row(&[("other", "x")])).expect_err("no column").to_string();
        assert!(error.contains("rows.jsonl:4") && error.contains("`answer`") && error.contains("other"), "{error}");
    }
}
