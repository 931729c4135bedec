//! `POST /v1/chat/completions`

mod answer;
mod describe;
mod render;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::chat_request::{ChatRequest, Question, Ready};
use super::envelope::{Envelope, Streaming, Usage};
use super::score::alternatives;
use crate::api_error::ApiError;
use crate::app::{App, Shared};
use crate::fields::{Fields, NO_EFFECT, NO_VERBOSITY, VERBOSITY};
use crate::generation::Running;
use crate::logprobs::Names;
use crate::models::Model;
use crate::prompt::{PromptEncoding, ending, messages};
use crate::prompt_logprobs::{self, Ask, PromptLogprobs};
use crate::reasoning::{Reasoning, USUAL_EFFORT};
use crate::sampling::{COMPLETION_LENGTH, Sampling};
use crate::sse;
use crate::structured::grammar::ResponseFormat;
use crate::tools::Tools;
use answer::{AboutPrompt, Shape, Stream, whole};
pub(crate) use describe::describe;
pub(crate) use render::{describe_render, render};

/// What a request asks for.
struct Chat {
    name: Option<String>,
    model: Arc<Model>,
    turn: ChatRequest,
    streaming: Option<Streaming>,
    shape: Shape,
    prompt_logprobs: Option<usize>,
}

impl Chat {
    fn take(app: &App, mut fields: Fields) -> Result<Self, ApiError> {
        let name: Option<String> = fields.take("model")?;
        let model = app.models.find(name.as_deref())?;
        let messages = messages(fields.need("messages")?)?;
        let tools = Tools::take(&mut fields, &model)?;
        let form = form(&mut fields)?;
        let mut thinking = Reasoning::take(&mut fields, &model)?;
        let effort: Option<String> = fields.take("reasoning_effort")?;
        thinking.effort(effort.as_deref(), "reasoning_effort", USUAL_EFFORT, &model)?;
        let mut sampling = Sampling::take(&mut fields, &model, app.config.sampling_defaults, COMPLETION_LENGTH)?;
        let copies = Sampling::copies(&mut fields)?;
        let streaming = Streaming::take(&mut fields)?;
        let shape = shape(&mut fields, &model, &mut sampling)?;
        if shape.logprobs {
            sampling.check_logprobs(app.config.logprobs_mode)?;
        }
        let prompt_logprobs = prompt_logprobs::take(&mut fields, &model)?;
        let encoding = PromptEncoding::take(&mut fields, &model, false)?;
        let ending = ending(&mut fields)?;
        unsupported(&mut fields)?;
        fields.accept(NO_EFFECT);
        fields.finish()?;
        let question = Question {
            model: Arc::clone(&model),
            messages,
            field: "messages",
            tools,
            form,
            thinking,
            ending,
            encoding,
        };
        Ok(Self { name, model, turn: ChatRequest { question, sampling, copies }, streaming, shape, prompt_logprobs })
    }
}

/// Answers a conversation `n` times.
pub(crate) async fn create(State(app): State<Shared>, fields: Fields) -> Result<Response, ApiError> {
    let Chat { name, model, turn, streaming, shape, prompt_logprobs } = Chat::take(&app, fields)?;
    let temperature = turn.sampling.scored_temperature();
    let Ready { prompt, reading, job } = turn.prepare(&app).await?;
    let prompt_logprobs = match prompt_logprobs {
        None => None,
        Some(top) => {
            prompt_logprobs::check_size(&app, top, prompt.len(), 1)?;
            let ask = Ask { top, temperature, ranks: true };
            let rows = prompt_logprobs::of_prompts(&app, &model, &[&prompt], ask).await?.remove(0);
            let tokenizer = Some(Arc::clone(&shape.names.tokenizer));
            Some(PromptLogprobs { ids: prompt.clone(), rows, top, tokenizer })
        }
    };
    let usage = Usage { prompt: prompt.len(), ..Usage::default() };
    let about_prompt = AboutPrompt { ids: shape.token_ids.then_some(prompt), logprobs: prompt_logprobs };
    let envelope = Envelope::new("chatcmpl-", &app, &model, name);
    let running = Running::start(&app, job)?;
    match streaming {
        Some(streaming) => {
            let stream = Stream::new(envelope, streaming, shape, &reading, usage, about_prompt, running.count());
            Ok(sse::respond(running, stream))
        }
        None => {
            let finished = running.collect().await?;
            Ok(Json(whole(envelope, &shape, &reading, usage, about_prompt, &finished)).into_response())
        }
    }
}

/// The form of the content, and the field that asks for it.
fn form(fields: &mut Fields) -> Result<Option<(ResponseFormat, &'static str)>, ApiError> {
    match (ResponseFormat::take(fields)?, ResponseFormat::take_structured(fields)?) {
        (Some(_), Some((_, field))) => {
            let message = format!("`{field}` and `response_format` both give the answer a form; send one");
            Err(ApiError::invalid(field, message))
        }
        (Some(form), None) => Ok(Some((form, "response_format"))),
        (None, form) => Ok(form),
    }
}

fn shape(fields: &mut Fields, model: &Model, sampling: &mut Sampling) -> Result<Shape, ApiError> {
    let logprobs = fields.take("logprobs")?.unwrap_or(false);
    let top = alternatives(fields.take("top_logprobs")?, "top_logprobs")?;
    if top.is_some_and(|top| top > 0) && !logprobs {
        return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
    }
    sampling.report(top);
    let token_ids = fields.take("return_token_ids")?.unwrap_or(false);
    let as_ids = fields.take("return_tokens_as_token_ids")?.unwrap_or(false);
    Ok(Shape { logprobs, token_ids, names: Names { tokenizer: Arc::clone(model.tokenizer()?), as_ids } })
}

/// Fields that OpenAI has, with the values that mean what happens here anyway.
fn unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.only("modalities", &[json!(["text"])], "only text is generated")?;
    // Without audio among the modalities its settings have no use.
    fields.accept(&["audio"]);
    fields.only("functions", &[json!([])], "`tools` replaced it")?;
    fields.only("function_call", &[json!("none")], "`tool_choice` replaced it")?;
    fields.only("chat_template", &[], "the server's own is used; start it with --chat-template FILE for another")?;
    fields.only("web_search_options", &[], "there is no web search")?;
    fields.only("moderation", &[], "there is no moderation")?;
    fields.only("verbosity", &[json!(VERBOSITY)], NO_VERBOSITY)
}
