//! `POST /v1/chat/completions`

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use runtime::request::{ScoreRequest, TokenEvent};
use runtime::text::Tokenizer;
use serde_json::{Value, json};

use super::envelope::{Envelope, Streaming, Usage, token_ids, versions};
use super::score::{alternatives, fits};
use crate::api_error::ApiError;
use crate::app::Shared;
use crate::fields::{Fields, NO_EFFECT};
use crate::generation::{Event, Finished, Job, Running, score};
use crate::logprobs::{chat_entry, of_prompt};
use crate::models::ServedModel;
use crate::prompt::{Conversation, messages, room};
use crate::sampling::Sampling;
use crate::sse::{self, Chunks, Encoder};

/// What is to be shown of an answer.
struct Shape {
    logprobs: bool,
    token_ids: bool,
    tokenizer: Arc<Tokenizer>,
}

/// Answers a conversation `n` times.
pub(crate) async fn create(State(app): State<Shared>, mut fields: Fields) -> Result<Response, ApiError> {
    let name: Option<String> = fields.take("model")?;
    let (index, model) = app.models.find(name.as_deref())?;
    let model = Arc::clone(model);
    let conversation = conversation(&mut fields)?;
    let mut sampling = Sampling::take(&mut fields, &model, app.config.sampling_defaults)?;
    let streaming = Streaming::take(&mut fields)?;
    let shape = Shape::take(&mut fields, &model, &mut sampling)?;
    let prompt_logprobs = alternatives(fields.take("prompt_logprobs")?, "prompt_logprobs")?;
    unsupported(&mut fields)?;
    fields.accept(NO_EFFECT);
    fields.finish()?;
    let prompt = conversation.encode(&model).await?.ids;
    fits(prompt.len(), model.context(), "messages")?;
    let pages = model.of(&app.runtime.snapshot()).scheduler.total_pages;
    let params = sampling.params(&model, prompt.len(), room(&model, pages, prompt.len()), usize::MAX)?;
    let prompt_logprobs = match prompt_logprobs {
        None => None,
        Some(top) => {
            let request = ScoreRequest { slot: model.slot, tokens: prompt.clone(), top };
            Some(of_prompt(Some(&shape.tokenizer), &prompt, &score(&app, index, request).await?))
        }
    };
    let about_prompt = AboutPrompt { ids: shape.token_ids.then(|| prompt.clone()), logprobs: prompt_logprobs };
    let usage = Usage { prompt: prompt.len(), ..Usage::default() };
    let envelope = Envelope::new("chatcmpl-", &app, &model, name);
    let running = Running::start(&app, Job { model, index, prompts: vec![(prompt, params)], copies: sampling.n })?;
    match streaming {
        Some(streaming) => {
            let choices = running.count();
            let stream = Stream { envelope, streaming, shape, usage, about_prompt, choices };
            Ok(sse::respond(running, stream))
        }
        None => {
            let finished = running.collect().await?;
            Ok(Json(whole(envelope, &shape, usage, about_prompt, &finished)).into_response())
        }
    }
}

fn conversation(fields: &mut Fields) -> Result<Conversation, ApiError> {
    Ok(Conversation {
        messages: messages(fields.need("messages")?)?,
        tools: None,
        variables: fields.take("chat_template_kwargs")?.unwrap_or_default(),
        answer: true,
    })
}

/// Fields that OpenAI has, with the values that mean what happens here anyway.
fn unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.only("modalities", &[json!(["text"])], "only text is generated")?;
    // Without audio among the modalities its settings have no use.
    fields.accept(&["audio"]);
    fields.only("response_format", &[json!({"type": "text"})], "answers are not constrained yet")?;
    fields.only("tools", &[json!([])], "tools are not offered yet")?;
    fields.only("tool_choice", &[json!("none")], "tools are not offered yet")?;
    fields.only("parallel_tool_calls", &[json!(true), json!(false)], "tools are not offered yet")?;
    fields.only("functions", &[json!([])], "it was replaced by tools")?;
    fields.only("function_call", &[json!("none")], "it was replaced by tool_choice")?;
    fields.only("web_search_options", &[], "there is no web search")?;
    fields.only("moderation", &[], "there is no moderation")?;
    fields.only("verbosity", &[], "a model here has no such setting")
}

impl Shape {
    fn take(fields: &mut Fields, model: &ServedModel, sampling: &mut Sampling) -> Result<Self, ApiError> {
        let logprobs = fields.take("logprobs")?.unwrap_or(false);
        let top = alternatives(fields.take("top_logprobs")?, "top_logprobs")?;
        if top.is_some_and(|top| top > 0) && !logprobs {
            return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
        }
        sampling.report(top);
        let token_ids = fields.take("return_token_ids")?.unwrap_or(false);
        Ok(Self { logprobs, token_ids, tokenizer: Arc::clone(model.tokenizer()?) })
    }

    fn logprobs(&self, tokens: &[TokenEvent]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let content: Vec<Value> = tokens.iter().map(|token| chat_entry(&self.tokenizer, token)).collect();
        json!({"content": content, "refusal": null})
    }
}

/// What an answer says about its prompt.
struct AboutPrompt {
    ids: Option<Vec<u32>>,
    logprobs: Option<Value>,
}

impl AboutPrompt {
    /// Adds it, once.
    fn put(&mut self, answer: &mut Value) {
        if let Some(ids) = self.ids.take() {
            answer["prompt_token_ids"] = json!(ids);
        }
        if let Some(logprobs) = self.logprobs.take() {
            answer["prompt_logprobs"] = logprobs;
        }
    }
}

/// The answer in one piece.
fn whole(
    mut envelope: Envelope,
    shape: &Shape,
    mut usage: Usage,
    mut about_prompt: AboutPrompt,
    finished: &[Finished],
) -> Value {
    usage.cached = finished.first().map_or(0, |one| one.cached_tokens);
    let mut choices = Vec::with_capacity(finished.len());
    for (index, one) in finished.iter().enumerate() {
        usage.completion += one.tokens.len();
        if let Some(token) = one.tokens.last() {
            envelope.computed_by(token.version);
        }
        let mut choice = json!({
            "index": index,
            "message": {"role": "assistant", "content": one.text, "refusal": null},
            "logprobs": shape.logprobs(&one.tokens),
            "finish_reason": one.reason.as_str(),
            "weights_versions": versions(&one.tokens),
        });
        if shape.token_ids {
            choice["token_ids"] = json!(token_ids(&one.tokens));
        }
        choices.push(choice);
    }
    let mut answer = envelope.object("chat.completion", Value::Array(choices));
    answer["usage"] = usage.body();
    about_prompt.put(&mut answer);
    answer
}

/// The answer in chunks.
struct Stream {
    envelope: Envelope,
    streaming: Streaming,
    shape: Shape,
    usage: Usage,
    about_prompt: AboutPrompt,
    choices: usize,
}

impl Stream {
    fn chunk(&self, index: usize, delta: &Value, logprobs: &Value, reason: Option<&str>) -> Value {
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason});
        self.streaming.count(self.envelope.object("chat.completion.chunk", json!([choice])), self.usage)
    }
}

impl Encoder for Stream {
    fn begin(&mut self, chunks: &mut Chunks) {
        for index in 0..self.choices {
            let mut chunk = self.chunk(index, &json!({"role": "assistant", "content": ""}), &Value::Null, None);
            self.about_prompt.put(&mut chunk);
            chunks.push_back(chunk);
        }
    }

    fn event(&mut self, index: usize, event: Event, chunks: &mut Chunks) -> Result<(), ApiError> {
        match event {
            Event::Token(token) => {
                self.envelope.computed_by(token.version);
                self.usage.completion += 1;
                let plain = !self.shape.logprobs && !self.shape.token_ids;
                if plain && token.text.is_empty() {
                    return Ok(());
                }
                let logprobs = self.shape.logprobs(std::slice::from_ref(&token));
                let mut chunk = self.chunk(index, &json!({"content": token.text}), &logprobs, None);
                if self.shape.token_ids {
                    chunk["choices"][0]["token_ids"] = json!([token.token]);
                }
                chunks.push_back(chunk);
            }
            Event::End { reason, text, cached_tokens } => {
                self.usage.cached = cached_tokens;
                let delta = if text.is_empty() { json!({}) } else { json!({"content": text}) };
                chunks.push_back(self.chunk(index, &delta, &Value::Null, Some(reason.as_str())));
            }
        }
        Ok(())
    }

    fn end(&mut self, chunks: &mut Chunks) {
        chunks.extend(self.streaming.last(self.envelope.object("chat.completion.chunk", json!([])), self.usage));
    }
}
