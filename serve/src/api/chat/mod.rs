//! `POST /v1/chat/completions`

mod answer;
mod describe;
mod tools;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use runtime::request::ScoreRequest;
use serde_json::{Map, Value, json};

use super::envelope::{Envelope, Streaming, Usage};
use super::score::{alternatives, fits};
use crate::api_error::ApiError;
use crate::app::Shared;
use crate::fields::{Fields, NO_EFFECT};
use crate::generation::{Job, Running, score};
use crate::grammar::Form;
use crate::logprobs::of_prompt;
use crate::models::Model;
use crate::output::Markers;
use crate::prompt::{Conversation, Prompt, messages, room};
use crate::sampling::Sampling;
use crate::sse;
use answer::{AboutPrompt, Shape, Stream, whole};
pub(crate) use describe::describe;
use tools::Tools;

/// The variable by which templates turn reasoning on and off.
const THINKING: &str = "enable_thinking";

/// Answers a conversation `n` times.
pub(crate) async fn create(State(app): State<Shared>, mut fields: Fields) -> Result<Response, ApiError> {
    let name: Option<String> = fields.take("model")?;
    let model = app.models.find(name.as_deref())?;
    let messages = messages(fields.need("messages")?)?;
    let tools = Tools::take(&mut fields, &model)?;
    let form = form(&mut fields, &tools)?;
    let variables = variables(&mut fields, &model, form.is_some())?;
    let mut sampling = Sampling::take(&mut fields, &model, app.config.sampling_defaults)?;
    let streaming = Streaming::take(&mut fields)?;
    let mut shape = shape(&mut fields, &model, &mut sampling, &tools)?;
    let prompt_logprobs = alternatives(fields.take("prompt_logprobs")?, "prompt_logprobs")?;
    unsupported(&mut fields)?;
    fields.accept(NO_EFFECT);
    fields.finish()?;
    let conversation = Conversation { messages, tools: tools.offered, variables, answer: true };
    let Prompt { ids: prompt, text } = conversation.encode(&model).await?;
    shape.prompt_thinks = text.is_some_and(|text| text.trim_end().ends_with("<think>"));
    fits(prompt.len(), model.context(), "messages")?;
    let pages = model.of(&app.runtime.snapshot()).scheduler.total_pages;
    let params = sampling.params(&model, prompt.len(), room(&model, pages, prompt.len()), usize::MAX)?;
    let grammar = match form {
        None => None,
        Some(_) if shape.prompt_thinks => {
            let message = "the chat template begins with reasoning, which has no given form";
            return Err(ApiError::unsupported("response_format", message));
        }
        Some((form, field)) => {
            sampling.check_form()?;
            Some(model.grammars.compile(form, &model, field).await?)
        }
    };
    let prompt_logprobs = match prompt_logprobs {
        None => None,
        Some(top) => {
            let request = ScoreRequest { slot: model.slot(), tokens: prompt.clone(), top };
            Some(of_prompt(Some(&shape.tokenizer), &prompt, &score(&app, &model, request).await?))
        }
    };
    let about_prompt = AboutPrompt { ids: shape.token_ids.then(|| prompt.clone()), logprobs: prompt_logprobs };
    let usage = Usage { prompt: prompt.len(), ..Usage::default() };
    let envelope = Envelope::new("chatcmpl-", &app, &model, name);
    let running = Running::start(&app, Job { model, prompts: vec![(prompt, params)], copies: sampling.n, grammar })?;
    match streaming {
        Some(streaming) => {
            let stream = Stream::new(envelope, streaming, shape, usage, about_prompt, running.count());
            Ok(sse::respond(running, stream))
        }
        None => {
            let finished = running.collect().await?;
            Ok(Json(whole(envelope, &shape, usage, about_prompt, &finished)).into_response())
        }
    }
}

/// The form of the answer, and the field that asks for it.
fn form(fields: &mut Fields, tools: &Tools) -> Result<Option<(Form, &'static str)>, ApiError> {
    let named = [
        (Form::take(fields)?, "response_format"),
        (Form::take_structured(fields)?, "structured_outputs"),
        (tools.forced.clone(), "tool_choice"),
    ];
    let mut given = named.into_iter().filter_map(|(form, field)| Some((form?, field)));
    match (given.next(), given.next()) {
        (Some((_, first)), Some((_, second))) => {
            Err(ApiError::invalid(second, format!("`{second}` and `{first}` both give the answer a form; send one")))
        }
        (form, _) => Ok(form),
    }
}

/// `chat_template_kwargs`, and what `reasoning_effort` means among them.
fn variables(fields: &mut Fields, model: &Model, formed: bool) -> Result<Map<String, Value>, ApiError> {
    let mut variables: Map<String, Value> = fields.take("chat_template_kwargs")?.unwrap_or_default();
    let source = model.chat_template()?.source();
    match fields.take::<String>("reasoning_effort")?.as_deref() {
        None => {}
        // A model that does not reason makes no effort.
        Some("none") if !source.contains("</think>") => {}
        Some("none") if source.contains(THINKING) => drop(variables.insert(THINKING.into(), json!(false))),
        Some(effort) => {
            let message = format!("`reasoning_effort` = \"{effort}\" is not supported by {}", model.name());
            return Err(ApiError::unsupported("reasoning_effort", message));
        }
    }
    // Reasoning comes before the answer and would have to have its form.
    if formed && source.contains(THINKING) && variables.insert(THINKING.into(), json!(false)) == Some(json!(true)) {
        let message = "an answer of a given form cannot begin with reasoning: leave `enable_thinking` out";
        return Err(ApiError::invalid("chat_template_kwargs", message));
    }
    Ok(variables)
}

fn shape(fields: &mut Fields, model: &Model, sampling: &mut Sampling, tools: &Tools) -> Result<Shape, ApiError> {
    let logprobs = fields.take("logprobs")?.unwrap_or(false);
    let top = alternatives(fields.take("top_logprobs")?, "top_logprobs")?;
    if top.is_some_and(|top| top > 0) && !logprobs {
        return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
    }
    sampling.report(top);
    let reasoning = model.chat_template()?.source().contains("</think>");
    Ok(Shape {
        logprobs,
        token_ids: fields.take("return_token_ids")?.unwrap_or(false),
        tokenizer: Arc::clone(model.tokenizer()?),
        markers: Markers { reasoning, calls: tools.offered.is_some() },
        prompt_thinks: false,
        single_call: tools.single,
    })
}

/// Fields that OpenAI has, with the values that mean what happens here anyway.
fn unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.only("modalities", &[json!(["text"])], "only text is generated")?;
    // Without audio among the modalities its settings have no use.
    fields.accept(&["audio"]);
    fields.only("functions", &[json!([])], "`tools` replaced it")?;
    fields.only("function_call", &[json!("none")], "`tool_choice` replaced it")?;
    fields.only("web_search_options", &[], "there is no web search")?;
    fields.only("moderation", &[], "there is no moderation")?;
    fields.only("verbosity", &[], "models here have no such setting")
}
