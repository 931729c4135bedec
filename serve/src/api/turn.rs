//! One turn of an assistant, as chat and responses ask for it: from messages and fields to a job for the runtime.

use std::sync::Arc;

use runtime::text::Message;

use super::score::fits;
use crate::api_error::ApiError;
use crate::app::App;
use crate::generation::Job;
use crate::grammar::Form;
use crate::guide::Guide;
use crate::layout::{Body, Layout};
use crate::models::Model;
use crate::output::Markers;
use crate::prompt::{Conversation, Prompt, room};
use crate::reader::Reading;
use crate::sampling::Sampling;
use crate::thinking::Thinking;
use crate::tools::Tools;

/// What is asked for.
pub(super) struct Turn {
    pub(super) model: Arc<Model>,
    pub(super) messages: Vec<Message>,
    /// The field that has the messages.
    pub(super) field: &'static str,
    pub(super) tools: Tools,
    /// The form of the content, and the field that asks for it.
    pub(super) form: Option<(Form, &'static str)>,
    pub(super) thinking: Thinking,
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

impl Turn {
    /// Renders, measures and checks; nothing is submitted yet.
    pub(super) async fn prepare(mut self, app: &App) -> Result<Ready, ApiError> {
        let model = self.model;
        let body = body(self.form, &self.tools)?;
        if let Some((body, _)) = &body {
            self.sampling.check_form()?;
            if !matches!(body, Body::Text(_)) {
                self.thinking.spare(&model)?;
            }
        }
        let offered = self.tools.offered();
        let markers = Markers { reasoning: self.thinking.marked, calls: offered.is_some() };
        let conversation = Conversation {
            messages: self.messages,
            tools: offered,
            variables: self.thinking.variables.clone(),
            answer: true,
            field: self.field,
        };
        let Prompt { ids: prompt, text } = conversation.encode(&model).await?;
        let prompt_thinks = self.thinking.marked && text.is_some_and(|text| text.trim_end().ends_with("<think>"));
        fits(prompt.len(), model.context(), self.field)?;
        let pages = model.of(&app.runtime.snapshot()).scheduler.total_pages;
        let params = self.sampling.params(&model, prompt.len(), room(&model, pages, prompt.len()), usize::MAX)?;
        let grammar = match body {
            None => None,
            Some((body, field)) => {
                let layout = Layout { thoughts: self.thinking.thoughts(prompt_thinks), body };
                Some(model.grammars.compile(layout.grammars(), &model, field).await?)
            }
        };
        let guide = Guide::new(grammar, self.thinking.budget(&model, prompt_thinks)?);
        let reading = Reading { markers, prompt_thinks, single_call: self.tools.is_single() };
        let job = Job { model, prompts: vec![(prompt.clone(), params)], copies: self.copies, guide };
        Ok(Ready { prompt, reading, job })
    }
}

/// What the answer must consist of, if that is given, and the field that gives it.
fn body(form: Option<(Form, &'static str)>, tools: &Tools) -> Result<Option<(Body, &'static str)>, ApiError> {
    Ok(match (form, tools.demanded()?) {
        (Some((_, field)), Some(_)) => {
            let message = format!("`tool_choice` and `{field}` both give the answer a form; send one");
            return Err(ApiError::invalid("tool_choice", message));
        }
        (None, Some(calls)) => Some((Body::Calls(calls), "tool_choice")),
        (Some((form, field)), None) => match tools.possible()? {
            Some(calls) => Some((Body::Either(form, calls), field)),
            None => Some((Body::Form(form), field)),
        },
        (None, None) if tools.any_strict() => tools.possible()?.map(|calls| (Body::Text(calls), "tools")),
        (None, None) => None,
    })
}
