//! From a question and its examples to requests: as one text, or as a conversation.

use crate::task::question::{EvalRequest, Message, Prompt, TaskQuestion};
use crate::{Error, Result};

/// Renders a conversation as text.
pub(crate) type Render = dyn Fn(&[Message]) -> Result<String>;

/// How prompts are written.
pub(crate) struct PromptStyle<'a> {
    /// A system prompt before the task's description.
    pub(crate) system: Option<&'a str>,
    /// How a conversation becomes a prompt; `None`: plain text.
    pub(crate) chat: Option<ChatRendering<'a>>,
    /// New tokens of tasks that do not say how many.
    pub(crate) max_tokens: usize,
    /// Answers to each question.
    pub(crate) repeats: u64,
}

/// Where a conversation becomes text.
pub(crate) enum ChatRendering<'a> {
    /// The model's template, here.
    Render(&'a Render),
    /// The server.
    Send,
}

/// Between few-shot examples, and between a system prompt and a description.
const BETWEEN: &str = "\n\n";
/// Between a question and its answer.
const BEFORE_ANSWER: &str = " ";

impl PromptStyle<'_> {
    /// The requests of one document.
    ///
    /// # Errors
    /// What the chat template refuses.
    pub(crate) fn requests(
        &self,
        description: &str,
        shots: &[(String, String)],
        ask: TaskQuestion,
    ) -> Result<Vec<EvalRequest>> {
        let before = PromptPrefix { system: joined(self.system.unwrap_or_default(), description), shots };
        // A template puts its own marks before the answer.
        let delimiter = if self.chat.is_some() { "" } else { BEFORE_ANSWER };
        Ok(match ask {
            TaskQuestion::Generate { question, until, max_tokens } => {
                let prompt = self.prompt(&before, &question)?;
                let max_tokens = max_tokens.unwrap_or(self.max_tokens);
                let one = |repeat| EvalRequest::GenerateUntil {
                    prompt: prompt.clone(),
                    until: until.clone(),
                    max_tokens,
                    repeat,
                };
                (0..self.repeats).map(one).collect()
            }
            TaskQuestion::Continue { question, continuation } => {
                vec![EvalRequest::LogLikelihood { context: self.text(&before, &question)?, continuation }]
            }
            TaskQuestion::Choose { question, choices } => {
                let context = self.text(&before, &question)?;
                let pair = |choice: String| (context.clone(), format!("{delimiter}{choice}"));
                vec![EvalRequest::MultipleChoice { pairs: choices.into_iter().map(pair).collect() }]
            }
            TaskQuestion::ChooseContext { questions, continuation } => {
                let pair =
                    |question: &String| Ok((self.text(&before, question)?, format!("{delimiter}{continuation}")));
                vec![EvalRequest::MultipleChoice { pairs: questions.iter().map(pair).collect::<Result<_>>()? }]
            }
            TaskQuestion::Rolling { text } => vec![EvalRequest::Rolling { text }],
        })
    }

    fn prompt(&self, before: &PromptPrefix<'_>, question: &str) -> Result<Prompt> {
        match self.chat {
            Some(ChatRendering::Send) => Ok(Prompt::Chat(before.messages(question))),
            Some(ChatRendering::Render(_)) | None => self.text(before, question).map(Prompt::Text),
        }
    }

    /// Text of a prompt.
    ///
    /// # Errors
    /// What the template refuses; a server's template, whose text is not known here.
    fn text(&self, before: &PromptPrefix<'_>, question: &str) -> Result<String> {
        match self.chat {
            Some(ChatRendering::Render(render)) => render(&before.messages(question)),
            Some(ChatRendering::Send) => {
                let because = "with --url for tasks that score given texts: a chat route returns no log-probabilities \
                               of them"
                    .to_owned();
                Err(Error::from(command::Error::NoEffect { key: "--apply-chat-template".to_owned(), because }))
            }
            None => Ok(before.text(question)),
        }
    }
}

/// What comes before a question.
struct PromptPrefix<'a> {
    system: String,
    shots: &'a [(String, String)],
}

impl PromptPrefix<'_> {
    fn text(&self, question: &str) -> String {
        let shots = self.shots.iter().map(|(question, answer)| {
            let before_answer = if answer.is_empty() { "" } else { BEFORE_ANSWER };
            format!("{question}{before_answer}{answer}{BETWEEN}")
        });
        [self.system.clone()].into_iter().chain(shots).chain([question.to_owned()]).collect()
    }

    fn messages(&self, question: &str) -> Vec<Message> {
        let system = (!self.system.is_empty()).then(|| Message::new("system", self.system.clone()));
        let shots = self.shots.iter().flat_map(|(question, answer)| {
            [Message::new("user", question.clone()), Message::new("assistant", answer.clone())]
        });
        system.into_iter().chain(shots).chain([Message::new("user", question)]).collect()
    }
}

/// Both with an empty line between, unless white space is there already.
fn joined(first: &str, second: &str) -> String {
    let apart = first.ends_with(char::is_whitespace) || second.starts_with(char::is_whitespace);
    let between = if first.is_empty() || second.is_empty() || apart { "" } else { BETWEEN };
    format!("{first}{between}{second}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn style() -> PromptStyle<'static> {
        PromptStyle { system: None, chat: None, max_tokens: 9, repeats: 1 }
    }

    fn shots() -> Vec<(String, String)> {
        vec![("Q: 1?\nA:".to_owned(), "one".to_owned())]
    }

    #[test]
    fn a_text_has_description_examples_and_question() {
        let ask = TaskQuestion::Choose {
            question: "Q: 2?\nA:".to_owned(),
            choices: vec!["two".to_owned(), "three".to_owned()],
        };
        let requests = style().requests("About numbers.\n\n", &shots(), ask).expect("text");
        let [EvalRequest::MultipleChoice { pairs }] = &requests[..] else { panic!("{requests:?}") };
        assert_eq!(pairs[1], ("About numbers.\n\nQ: 1?\nA: one\n\nQ: 2?\nA:".to_owned(), " three".to_owned()));
    }

    #[test]
    fn a_conversation_has_turns_and_no_delimiter() {
        let render = |messages: &[Message]| {
            Ok(messages.iter().map(|message| format!("<{}>{}", message.role, message.content)).collect())
        };
        let style = PromptStyle { system: Some("Be brief."), chat: Some(ChatRendering::Render(&render)), ..style() };
        let ask = TaskQuestion::ChooseContext {
            questions: vec!["a".to_owned(), "b".to_owned()],
            continuation: "c".to_owned(),
        };
        let requests = style.requests("Numbers.", &shots(), ask).expect("rendered");
        let [EvalRequest::MultipleChoice { pairs }] = &requests[..] else { panic!("{requests:?}") };
        let before = "<system>Be brief.\n\nNumbers.<user>Q: 1?\nA:<assistant>one";
        assert_eq!(pairs[1], (format!("{before}<user>b"), "c".to_owned()));
    }

    #[test]
    fn repeats_are_requests_of_their_own() {
        let style = PromptStyle { chat: Some(ChatRendering::Send), repeats: 2, ..style() };
        let ask = TaskQuestion::Generate { question: "q".to_owned(), until: vec!["\n".to_owned()], max_tokens: None };
        let requests = style.requests("", &[], ask).expect("messages");
        let [_, EvalRequest::GenerateUntil { prompt: Prompt::Chat(messages), max_tokens: 9, repeat: 1, .. }] =
            &requests[..]
        else {
            panic!("{requests:?}")
        };
        assert_eq!(messages, &[Message::new("user", "q")]);
    }
}
