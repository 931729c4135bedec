//! Whether and how long a model reasons before it answers: variables of the chat template, and a budget of tokens.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::fields::Fields;
use crate::models::Model;
use crate::openapi::schema::{Members, any, integer, map};
use crate::output::THINK_END;
use crate::response_grammar::ReasoningMode;
use crate::structured::constraint::Budget;

/// The variable by which templates turn reasoning on and off.
const SWITCH: &str = "enable_thinking";
/// The variable by which templates name its effort.
const EFFORT: &str = "reasoning_effort";
/// The field that limits it, as vLLM calls it.
const BUDGET: &str = "thinking_token_budget";

/// The effort that OpenAI's models make unless they are told otherwise.
pub(crate) const USUAL_EFFORT: &str = "medium";

/// What a request says about reasoning.
pub(crate) struct Reasoning {
    /// For the chat template.
    pub(crate) variables: Map<String, Value>,
    /// Most tokens between the markers.
    pub(crate) budget: Option<usize>,
    /// The field that limits it.
    field: &'static str,
    /// The template knows the markers.
    pub(crate) marked: bool,
}

impl Reasoning {
    /// `chat_template_kwargs` and the budget.
    pub(crate) fn take(fields: &mut Fields, model: &Model) -> Result<Self, ApiError> {
        let variables = fields.take("chat_template_kwargs")?.unwrap_or_default();
        let budget = match fields.take::<i64>(BUDGET)? {
            None | Some(-1) => None,
            Some(tokens) => Some(usize::try_from(tokens).map_err(|_| {
                ApiError::invalid(BUDGET, format!("{BUDGET} = {tokens}: must be at least 0, or -1 for no limit"))
            })?),
        };
        Self::new(variables, budget, BUDGET, model)
    }

    /// `field` is where the budget comes from.
    pub(crate) fn new(
        variables: Map<String, Value>,
        budget: Option<usize>,
        field: &'static str,
        model: &Model,
    ) -> Result<Self, ApiError> {
        let marked = model.chat_template()?.source().contains(THINK_END);
        if budget.is_some() && !marked {
            let message = format!("`{field}`: the chat template of {} has no {THINK_END}", model.name());
            return Err(ApiError::unsupported(field, message));
        }
        Ok(Self { variables, budget, field, marked })
    }

    /// Turns reasoning on or off where the template has a choice and the request's variables make none.
    pub(crate) fn switch(&mut self, on: bool, model: &Model) -> Result<(), ApiError> {
        if model.chat_template()?.source().contains(SWITCH) {
            self.variables.entry(SWITCH).or_insert(json!(on));
        }
        Ok(())
    }

    /// What an effort means among the variables; `field` is what it is called, `usual` what leaving it out means.
    pub(crate) fn effort(
        &mut self,
        effort: Option<&str>,
        field: &'static str,
        usual: &str,
        model: &Model,
    ) -> Result<(), ApiError> {
        let source = model.chat_template()?.source();
        match effort {
            None => {}
            // A model that does not reason makes no effort.
            Some("none") if !self.marked => {}
            Some("none") if source.contains(SWITCH) => drop(self.variables.insert(SWITCH.into(), json!(false))),
            Some(effort) if source.contains(EFFORT) => drop(self.variables.insert(EFFORT.into(), json!(effort))),
            // Where there is no setting, this is what happens anyway.
            Some(effort) if effort == usual => {}
            Some(effort) => {
                let message = format!(
                    "`{field}` = \"{effort}\" is not supported by {}, whose chat template knows no `{EFFORT}`; leave it out",
                    model.name()
                );
                return Err(ApiError::unsupported(field, message));
            }
        }
        Ok(())
    }

    /// An answer of a given form comes without reasoning where the template has a choice and the request says nothing.
    pub(crate) fn spare(&mut self, model: &Model) -> Result<(), ApiError> {
        if self.budget.is_none() { self.switch(false, model) } else { Ok(()) }
    }

    /// What may come before the answer to a prompt that ends inside reasoning, or not.
    pub(crate) fn thoughts(&self, prompt_thinks: bool) -> ReasoningMode {
        match self.variables.get(SWITCH) {
            _ if prompt_thinks => ReasoningMode::Begun,
            Some(Value::Bool(false)) => ReasoningMode::None,
            _ if self.marked => ReasoningMode::Possible,
            _ => ReasoningMode::None,
        }
    }

    /// The limit for an answer to a prompt that ends inside reasoning, or not.
    pub(crate) fn budget(&self, model: &Model, prompt_thinks: bool) -> Result<Option<Budget>, ApiError> {
        let Some(tokens) = self.budget else { return Ok(None) };
        let tokenizer = Arc::clone(model.tokenizer()?);
        let closing = tokenizer.encode_inside(THINK_END)?;
        // As the parser of the answer will see it.
        if !tokenizer.decode(&closing, true)?.ends_with(THINK_END) {
            let message = format!("`{}`: the tokens of {THINK_END} are no text of {}", self.field, model.name());
            return Err(ApiError::unsupported(self.field, message));
        }
        Ok(Some(Budget { tokens, closing: closing.into(), tokenizer, begun: prompt_thinks }))
    }
}

/// The fields that [`Reasoning::take`] takes.
pub(crate) fn describe_budget() -> Members {
    Members::new().maybe("chat_template_kwargs", map(any()), "Variables for the chat template.").maybe(
        BUDGET,
        integer(-1..=i128::from(i64::MAX)),
        "Most tokens of reasoning: then its end is written. -1 is no limit.",
    )
}
