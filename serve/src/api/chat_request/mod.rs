//! One turn of an assistant, as chat, responses and messages ask for it: from messages and fields to a job for the runtime.

mod chat_input;

use std::sync::Arc;

use runtime::text::{Ending, Message};

use super::score::fits;
use crate::api_error::ApiError;
use crate::app::App;
use crate::generation::Job;
use crate::models::Model;
use crate::output::{Markers, THINK, THINK_END};
use crate::output_reader::Reading;
use crate::prompt::{Conversation, Prompt, PromptEncoding, room};
use crate::reasoning::Reasoning;
use crate::response_grammar::{Body, ResponseGrammar};
use crate::sampling::Sampling;
use crate::structured::constraint::Constraint;
use crate::structured::grammar::ResponseFormat;
use crate::tools::Tools;
pub(super) use chat_input::ChatInput;

/// What the model is asked: all that its prompt depends on.
pub(super) struct Question {
    pub(super) model: Arc<Model>,
    pub(super) messages: Vec<Message>,
    /// The field that has the messages.
    pub(super) field: &'static str,
    pub(super) tools: Tools,
    /// The form of the content, and the field that asks for it.
    pub(super) form: Option<(ResponseFormat, &'static str)>,
    pub(super) thinking: Reasoning,
    /// Whether an answer begins, or the last message goes on.
    pub(super) ending: Ending,
    pub(super) encoding: PromptEncoding,
}

/// A question as the model reads it.
pub(super) struct Asked {
    pub(super) prompt: Vec<u32>,
    reading: Reading,
    thinking: Reasoning,
    /// What the answer must consist of, if that is given, and the field that gives it.
    body: Option<(Body, &'static str)>,
}

/// What is asked for.
pub(super) struct ChatRequest {
    pub(super) question: Question,
    pub(super) sampling: Sampling,
    /// Answers to the same prompt.
    pub(super) copies: usize,
}

/// Checked, and ready to run.
pub(super) struct Ready {
    pub(super) prompt: Vec<u32>,
    pub(super) reading: Reading,
    pub(super) job: Job,
}

impl Question {
    /// Renders and measures.
    pub(super) async fn ask(self) -> Result<Asked, ApiError> {
        let Self { model, messages, field, tools, form, mut thinking, ending, encoding } = self;
        let body = body(form, &tools)?;
        if body.as_ref().is_some_and(|(body, _)| !matches!(body, Body::Text(_))) {
            thinking.spare(&model)?;
        }
        let offered = tools.offered();
        let markers = Markers { reasoning: thinking.marked, calls: offered.is_some() };
        let variables = thinking.variables.clone();
        let conversation = Conversation { messages, tools: offered, variables, ending, encoding, field };
        let Prompt { ids: prompt, text } = conversation.encode(&model).await?;
        fits(prompt.len(), model.context(), field)?;
        let prompt_thinks = thinking.marked && text.is_some_and(|text| thinks(&text, ending));
        let reading = Reading {
            markers,
            prompt_thinks,
            single_call: tools.is_single(),
            calls_only: matches!(body, Some((Body::Calls(_), _))),
            only: tools.only(),
        };
        Ok(Asked { prompt, reading, thinking, body })
    }
}

impl ChatRequest {
    /// Renders, measures and checks; nothing is submitted yet.
    pub(super) async fn prepare(self, app: &App) -> Result<Ready, ApiError> {
        let model = Arc::clone(&self.question.model);
        let Asked { prompt, reading, thinking, body } = self.question.ask().await?;
        let pages = model.of(&app.runtime.snapshot()).scheduler.total_pages;
        let usual = app.config.default_max_tokens.unwrap_or(usize::MAX);
        let params = self.sampling.params(&model, prompt.len(), room(&model, pages, prompt.len()), usual)?;
        let grammar = match body {
            None => None,
            Some((body, field)) => {
                self.sampling.check_form()?;
                let layout = ResponseGrammar { thoughts: thinking.thoughts(reading.prompt_thinks), body };
                Some(model.grammars.compile(layout.grammars(), model.shared_files(), field).await?)
            }
        };
        let guide = Constraint::new(grammar, thinking.budget(&model, reading.prompt_thinks)?);
        let job = Job { model, prompts: vec![(prompt.clone(), params)], copies: self.copies, guide };
        Ok(Ready { prompt, reading, job })
    }
}

/// Whether a prompt ends inside reasoning. Of a message that goes on all that was said counts.
fn thinks(prompt: &str, ending: Ending) -> bool {
    match ending {
        Ending::Continue => prompt.rfind(THINK).is_some_and(|begin| !prompt[begin..].contains(THINK_END)),
        Ending::Closed | Ending::Answer => prompt.trim_end().ends_with(THINK),
    }
}

/// What the answer must consist of, if that is given, and the field that gives it.
fn body(form: Option<(ResponseFormat, &'static str)>, tools: &Tools) -> Result<Option<(Body, &'static str)>, ApiError> {
    Ok(match (form, tools.demanded()?) {
        // The form is that of a turn that answers; this one calls.
        (_, Some(calls)) => Some((Body::Calls(calls), "tool_choice")),
        (Some((form, field)), None) => match tools.possible()? {
            Some(calls) => Some((Body::Either(form, calls), field)),
            None => Some((Body::ResponseFormat(form), field)),
        },
        (None, None) if tools.are_bound() => tools.possible()?.map(|calls| (Body::Text(calls), "tools")),
        (None, None) => None,
    })
}
