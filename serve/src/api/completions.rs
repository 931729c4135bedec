//! `POST /v1/completions`

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use runtime::request::{Score, ScoreRequest};
use runtime::text::Tokenizer;
use serde_json::{Value, json};

use super::envelope::{
    Envelope, Streaming, Usage, define_shared, describe_chunk_usage, describe_finish, describe_object,
    describe_streaming, describe_versions, token_ids, versions,
};
use super::score::{alternatives, fits};
use crate::api_error::ApiError;
use crate::app::{App, Shared};
use crate::fields::{Fields, NO_EFFECT, describe_no_effect};
use crate::generation::{Event, Finished, Job, Running, score};
use crate::grammar::{Form, describe_structured};
use crate::guide::Guide;
use crate::logprobs::{self, Lists, of_prompt};
use crate::models::Model;
use crate::openapi::Operation;
use crate::openapi::schema::{
    Members, Schema, boolean, count, exactly, integer, list, named, nullable, text, token_id,
};
use crate::prompt::{Input, Prompt, describe_input, room};
use crate::sampling::{self, COMPLETION_LENGTH, MAX_ALTERNATIVES, Sampling};
use crate::sse::{self, Chunks, Encoder};

const KIND: &str = "text_completion";
/// OpenAI's length of a completion that names none.
const USUAL_TOKENS: usize = 16;

/// What is to be shown of a completion.
struct Shape {
    echo: bool,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
    token_ids: bool,
    tokenizer: Option<Arc<Tokenizer>>,
}

/// A prompt and, where its log-probabilities are shown, its score.
struct Scored {
    prompt: Prompt,
    score: Option<Score>,
}

/// Continues every prompt `n` times.
pub(crate) async fn create(State(app): State<Shared>, mut fields: Fields) -> Result<Response, ApiError> {
    let name: Option<String> = fields.take("model")?;
    let model = app.models.find(name.as_deref())?;
    let input: Input = fields.need("prompt")?;
    let mut sampling = Sampling::take(&mut fields, &model, app.config.sampling_defaults, COMPLETION_LENGTH)?;
    let n = Sampling::copies(&mut fields)?;
    let streaming = Streaming::take(&mut fields)?;
    let best_of = best_of(&mut fields, n, streaming.is_some())?;
    let shape = Shape::take(&mut fields, &model)?;
    let form = Form::take_structured(&mut fields)?;
    fields.only("suffix", &[json!("")], "text after the completion needs a model trained for it")?;
    fields.accept(NO_EFFECT);
    fields.finish()?;
    // `best_of` chooses by log-probabilities, which every token carries in any case.
    sampling.report(shape.logprobs);
    let pages = model.of(&app.runtime.snapshot()).scheduler.total_pages;
    let prompts = input.encode(&model, "prompt").await?;
    let mut wanted = Vec::with_capacity(prompts.len());
    for Prompt { ids, .. } in &prompts {
        fits(ids.len(), model.context(), "prompt")?;
        wanted.push((ids.clone(), sampling.params(&model, ids.len(), room(&model, pages, ids.len()), USUAL_TOKENS)?));
    }
    let grammar = match form {
        None => None,
        Some(form) => {
            sampling.check_form()?;
            Some(model.grammars.compile(vec![form.grammar()], &model, "structured_outputs").await?)
        }
    };
    let prompts = shape.score(&app, &model, prompts).await?;
    let envelope = Envelope::new("cmpl-", &app, &model, name);
    let running =
        Running::start(&app, Job { model, prompts: wanted, copies: best_of, guide: Guide::new(grammar, None) })?;
    match streaming {
        Some(streaming) => {
            let stream = Stream::new(envelope, streaming, shape, prompts, running.count())?;
            Ok(sse::respond(running, stream))
        }
        None => {
            let finished = running.collect().await?;
            Ok(Json(whole(envelope, &shape, &prompts, finished, [best_of, n])?).into_response())
        }
    }
}

/// Completions that `n` are chosen from.
fn best_of(fields: &mut Fields, n: usize, streams: bool) -> Result<usize, ApiError> {
    let Some(best_of) = fields.take("best_of")? else { return Ok(n) };
    let refuse = |why: String| Err(ApiError::invalid("best_of", format!("best_of = {best_of}: {why}")));
    if best_of < n {
        return refuse(format!("must be at least n = {n}"));
    }
    if streams && best_of > n {
        return refuse("which are the best is known at the end; do not stream".to_owned());
    }
    Ok(best_of)
}

impl Shape {
    fn take(fields: &mut Fields, model: &Model) -> Result<Self, ApiError> {
        let shape = Self {
            echo: fields.take("echo")?.unwrap_or(false),
            logprobs: alternatives(fields.take("logprobs")?, "logprobs")?,
            prompt_logprobs: alternatives(fields.take("prompt_logprobs")?, "prompt_logprobs")?,
            token_ids: fields.take("return_token_ids")?.unwrap_or(false),
            tokenizer: model.files().tokenizer.clone(),
        };
        if shape.tokenizer.is_none() && (shape.echo || shape.logprobs.is_some() || !shape.token_ids) {
            let message = "the model has no tokenizer: send return_token_ids = true, without echo and logprobs";
            return Err(ApiError::invalid("return_token_ids", message));
        }
        Ok(shape)
    }

    /// Scores the prompts whose log-probabilities are shown.
    async fn score(&self, app: &App, model: &Model, prompts: Vec<Prompt>) -> Result<Vec<Scored>, ApiError> {
        let echoed = self.logprobs.filter(|_| self.echo);
        let top = echoed.max(self.prompt_logprobs);
        let mut scored = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let score = match top {
                None => None,
                Some(top) => {
                    let request = ScoreRequest { slot: model.slot(), tokens: prompt.ids.clone(), top };
                    Some(score(app, model, request).await?)
                }
            };
            scored.push(Scored { prompt, score });
        }
        Ok(scored)
    }

    /// Text and lists of what precedes the completion: the prompt, if it is echoed.
    fn beginning(&self, scored: &Scored) -> Result<(String, Option<Lists>), ApiError> {
        let mut lists = self.logprobs.map(|_| Lists::default());
        let Some(tokenizer) = self.tokenizer.as_ref().filter(|_| self.echo) else { return Ok((String::new(), lists)) };
        let ids = &scored.prompt.ids;
        if let (Some(lists), Some(score)) = (&mut lists, &scored.score) {
            lists.push_prompt(tokenizer, ids, &cut(score, self.logprobs))?;
        }
        let text = match &scored.prompt.text {
            Some(text) => text.clone(),
            None => tokenizer.decode(ids, false)?,
        };
        Ok((text, lists))
    }

    /// What a choice says about its prompt besides its text.
    fn about_prompt(&self, scored: &Scored, choice: &mut Value) {
        if self.token_ids {
            choice["prompt_token_ids"] = json!(scored.prompt.ids);
        }
        if let (Some(_), Some(score)) = (self.prompt_logprobs, &scored.score) {
            let score = cut(score, self.prompt_logprobs);
            choice["prompt_logprobs"] = of_prompt(self.tokenizer.as_deref(), &scored.prompt.ids, &score);
        }
    }
}

/// The score with as many alternatives as this list shows.
fn cut(score: &Score, top: Option<usize>) -> Score {
    let mut score = score.clone();
    score.top.iter_mut().for_each(|listed| listed.truncate(top.unwrap_or(0)));
    score
}

/// The answer in one piece; of every prompt's completions the likeliest `n`.
fn whole(
    mut envelope: Envelope,
    shape: &Shape,
    prompts: &[Scored],
    mut finished: Vec<Finished>,
    [copies, n]: [usize; 2],
) -> Result<Value, ApiError> {
    let mut usage = Usage::default();
    let mut choices = Vec::new();
    for (scored, group) in prompts.iter().zip(finished.chunks_mut(copies)) {
        usage.prompt += scored.prompt.ids.len();
        usage.cached += group.first().map_or(0, |one| one.cached_tokens);
        usage.completion += group.iter().map(|one| one.tokens.len()).sum::<usize>();
        if copies > n {
            group.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
        }
        for one in group.iter().take(n) {
            if let Some(token) = one.tokens.last() {
                envelope.computed_by(token.version);
            }
            choices.push(choice(shape, scored, one, choices.len())?);
        }
    }
    let mut answer = envelope.object(KIND, Value::Array(choices));
    answer["usage"] = usage.body();
    Ok(answer)
}

fn choice(shape: &Shape, scored: &Scored, one: &Finished, index: usize) -> Result<Value, ApiError> {
    let (mut text, mut lists) = shape.beginning(scored)?;
    if let (Some(lists), Some(tokenizer)) = (&mut lists, &shape.tokenizer) {
        let mut offset = text.chars().count();
        for token in &one.tokens {
            lists.push_sampled(tokenizer, offset, token);
            offset += token.text.chars().count();
        }
    }
    text.push_str(&one.text());
    let mut choice = json!({
        "index": index,
        "text": text,
        "logprobs": lists,
        "finish_reason": one.reason.as_str(),
        "weights_versions": versions(&one.tokens),
    });
    if shape.token_ids {
        choice["token_ids"] = json!(token_ids(&one.tokens));
    }
    shape.about_prompt(scored, &mut choice);
    Ok(choice)
}

/// The answer in chunks.
struct Stream {
    envelope: Envelope,
    streaming: Streaming,
    shape: Shape,
    usage: Usage,
    /// Choices of each prompt.
    copies: usize,
    /// By choice: what comes before it, until it is sent.
    beginnings: Vec<Option<(String, Option<Lists>, Value)>>,
    /// By choice: characters sent.
    offsets: Vec<usize>,
}

impl Stream {
    fn new(
        envelope: Envelope,
        streaming: Streaming,
        shape: Shape,
        prompts: Vec<Scored>,
        count: usize,
    ) -> Result<Self, ApiError> {
        let copies = count / prompts.len();
        let usage = Usage { prompt: prompts.iter().map(|scored| scored.prompt.ids.len()).sum(), ..Usage::default() };
        let mut beginnings = Vec::with_capacity(count);
        for scored in prompts.iter().flat_map(|scored| std::iter::repeat_n(scored, copies)) {
            let (text, lists) = shape.beginning(scored)?;
            let mut more = json!({});
            shape.about_prompt(scored, &mut more);
            let empty = text.is_empty() && more.as_object().is_none_or(|more| more.is_empty());
            beginnings.push((!empty).then_some((text, lists, more)));
        }
        Ok(Self { envelope, streaming, shape, usage, copies, beginnings, offsets: vec![0; count] })
    }

    fn chunk(&self, choice: Value) -> Value {
        self.streaming.count(self.envelope.object(KIND, json!([choice])), self.usage)
    }
}

impl Encoder for Stream {
    fn begin(&mut self, chunks: &mut Chunks) {
        for index in 0..self.beginnings.len() {
            let Some((text, lists, more)) = self.beginnings[index].take() else { continue };
            self.offsets[index] = text.chars().count();
            let mut choice = json!({"index": index, "text": text, "logprobs": lists, "finish_reason": null});
            if let (Some(choice), Value::Object(more)) = (choice.as_object_mut(), more) {
                choice.extend(more);
            }
            chunks.push_back(self.chunk(choice));
        }
    }

    fn event(&mut self, index: usize, event: Event, chunks: &mut Chunks) -> Result<(), ApiError> {
        let mut choice = json!({"index": index, "text": "", "logprobs": null, "finish_reason": null});
        match event {
            Event::Token(token) => {
                self.envelope.computed_by(token.version);
                self.usage.completion += 1;
                let plain = self.shape.logprobs.is_none() && !self.shape.token_ids;
                if plain && token.text.is_empty() {
                    return Ok(());
                }
                if let (Some(_), Some(tokenizer)) = (self.shape.logprobs, &self.shape.tokenizer) {
                    let mut lists = Lists::default();
                    lists.push_sampled(tokenizer, self.offsets[index], &token);
                    choice["logprobs"] = json!(lists);
                }
                if self.shape.token_ids {
                    choice["token_ids"] = json!([token.token]);
                }
                self.offsets[index] += token.text.chars().count();
                choice["text"] = json!(token.text);
            }
            Event::End { reason, text, cached_tokens } => {
                // Copies share their prompt; what the first one found counts.
                if index.is_multiple_of(self.copies) {
                    self.usage.cached += cached_tokens;
                }
                choice["text"] = json!(text);
                choice["finish_reason"] = json!(reason.as_str());
            }
        }
        chunks.push_back(self.chunk(choice));
        Ok(())
    }

    fn end(&mut self, chunks: &mut Chunks) {
        chunks.extend(self.streaming.last(self.envelope.object(KIND, json!([])), self.usage));
    }
}

pub(crate) fn describe() -> Operation {
    let form = describe_structured();
    let body = Members::new()
        .maybe("model", text(), "The first one when it is left out.")
        .always("prompt", describe_input(), "What is continued.")
        .maybe("n", integer(1..), "Completions of each prompt.")
        .maybe("best_of", integer(1..), "Completions that the likeliest `n` are chosen from; not with `stream`.")
        .maybe("max_tokens", count(), "16 when it is left out; prompt and completion must fit the context.")
        .maybe("max_completion_tokens", count(), "Another name of `max_tokens`.")
        .and(sampling::describe())
        .and(describe_streaming())
        .maybe("echo", boolean(), "The prompt is part of the text.")
        .maybe("logprobs", integer(0..=MAX_ALTERNATIVES as i128), "Alternatives to each token.")
        .maybe("prompt_logprobs", integer(0..=MAX_ALTERNATIVES as i128), "Alternatives to each token of the prompt.")
        .maybe("return_token_ids", boolean(), "Token ids of prompt and completion.")
        .maybe("structured_outputs", form, "The completion has this form.")
        .maybe("suffix", exactly(""), "Only the empty one.")
        .and(describe_no_effect());
    let choice = |finish: Schema| {
        Members::new()
            .always("index", count(), "")
            .always("text", text(), "")
            .always("logprobs", nullable(named("CompletionLogprobs")), "")
            .always("finish_reason", finish, "")
            .maybe("token_ids", list(token_id()), "")
            .maybe("prompt_token_ids", list(token_id()), "")
            .maybe("prompt_logprobs", named("PromptLogprobs"), "")
    };
    let whole = choice(describe_finish()).always("weights_versions", describe_versions(), "").closed();
    let answer = describe_object(KIND, whole).always("usage", named("Usage"), "");
    let chunk = describe_object(KIND, choice(nullable(describe_finish())).closed());
    let chunk = chunk.maybe("usage", describe_chunk_usage(), "");
    define_shared(Operation::new("createCompletion", "Continues texts"))
        .reads(body)
        .finds_model()
        .submits()
        .answers(answer.closed())
        .streams("CompletionChunk", chunk.closed())
        .defines("CompletionLogprobs", logprobs::describe_lists())
        .defines("PromptLogprobs", logprobs::describe_prompt())
}
