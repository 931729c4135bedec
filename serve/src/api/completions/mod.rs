//! `POST /v1/completions`

mod stream;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use runtime::request::SequenceScores;
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::envelope::{
    Envelope, Streaming, Usage, define_shared, describe_chunk_usage, describe_finish, describe_object,
    describe_streaming, describe_versions, token_ids, versions,
};
use crate::api::score::{alternatives, fits};
use crate::api_error::ApiError;
use crate::app::{App, Shared};
use crate::fields::{Fields, NO_EFFECT, describe_no_effect};
use crate::generation::{Finished, Job, Running};
use crate::logprobs::{self, Lists, Names};
use crate::models::Model;
use crate::openapi::Operation;
use crate::openapi::schema::{
    Members, Schema, boolean, count, exactly, integer, list, named, nullable, text, token_id,
};
use crate::prompt::{Input, Prompt, PromptEncoding, describe_encoding, describe_input, room};
use crate::prompt_logprobs::{self, Ask, PromptLogprobs};
use crate::sampling::{self, COMPLETION_LENGTH, MAX_ALTERNATIVES, Sampling};
use crate::sse;
use crate::structured::constraint::Constraint;
use crate::structured::grammar::ResponseFormat;
use crate::structured::structured_outputs::describe_structured;
use stream::Stream;

const KIND: &str = "text_completion";
/// OpenAI's length of a completion that names none.
const USUAL_TOKENS: usize = 16;

/// What is to be shown of a completion.
struct Shape {
    echo: bool,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
    token_ids: bool,
    names: Option<Names>,
}

/// A prompt with what is shown of it.
struct Scored {
    prompt: Prompt,
    /// For the log-probabilities of an echo.
    echoed: Option<Arc<SequenceScores>>,
    listed: Option<PromptLogprobs>,
}

/// Continues every prompt `n` times.
pub(crate) async fn create(State(app): State<Shared>, mut fields: Fields) -> Result<Response, ApiError> {
    let name: Option<String> = fields.take("model")?;
    let model = app.models.find(name.as_deref())?;
    let input: Input = fields.need("prompt")?;
    let encoding = PromptEncoding::take(&mut fields, &model, true)?;
    let mut sampling = Sampling::take(&mut fields, &model, app.config.sampling_defaults, COMPLETION_LENGTH)?;
    let n = Sampling::copies(&mut fields)?;
    let streaming = Streaming::take(&mut fields)?;
    let best_of = best_of(&mut fields, n, streaming.is_some())?;
    let shape = Shape::take(&mut fields, &model)?;
    let form = ResponseFormat::take_structured(&mut fields)?;
    fields.only("suffix", &[json!("")], "text after the completion needs a model trained for it")?;
    fields.accept(NO_EFFECT);
    fields.finish()?;
    // `best_of` chooses by log-probabilities, which every token carries in any case.
    sampling.report(shape.logprobs);
    if shape.logprobs.is_some() {
        sampling.check_logprobs(app.config.logprobs_mode)?;
    }
    let pages = model.of(&app.runtime.snapshot()).scheduler.total_pages;
    let prompts = input.encode(&model, "prompt", encoding).await?;
    let mut wanted = Vec::with_capacity(prompts.len());
    for Prompt { ids, .. } in &prompts {
        fits(ids.len(), model.context(), "prompt")?;
        wanted.push((ids.clone(), sampling.params(&model, ids.len(), room(&model, pages, ids.len()), USUAL_TOKENS)?));
    }
    if let Some(top) = shape.prompt_logprobs {
        prompt_logprobs::check_size(&app, top, wanted.iter().map(|(ids, _)| ids.len()).sum(), n)?;
    }
    let grammar = match form {
        None => None,
        Some((form, field)) => {
            sampling.check_form()?;
            Some(model.grammars.compile(vec![form.grammar()], model.shared_files(), field).await?)
        }
    };
    let temperatures = [sampling.reported_temperature(app.config.logprobs_mode), sampling.scored_temperature()];
    let prompts = shape.score(&app, &model, prompts, temperatures).await?;
    let envelope = Envelope::new("cmpl-", &app, &model, name);
    let running =
        Running::start(&app, Job { model, prompts: wanted, copies: best_of, guide: Constraint::new(grammar, None) })?;
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
        let as_ids = fields.take("return_tokens_as_token_ids")?.unwrap_or(false);
        let tokenizer = model.files().tokenizer.clone();
        let shape = Self {
            echo: fields.take("echo")?.unwrap_or(false),
            logprobs: alternatives(fields.take("logprobs")?, "logprobs")?,
            prompt_logprobs: prompt_logprobs::take(fields, model)?,
            token_ids: fields.take("return_token_ids")?.unwrap_or(false),
            names: tokenizer.map(|tokenizer| Names { tokenizer, as_ids }),
        };
        if shape.names.is_none() && (shape.echo || shape.logprobs.is_some() || !shape.token_ids) {
            let message = "the model has no tokenizer: send return_token_ids = true, without echo and logprobs";
            return Err(ApiError::invalid("return_token_ids", message));
        }
        Ok(shape)
    }

    /// Scores the prompts whose log-probabilities are shown, those of an echo at the first temperature.
    async fn score(
        &self,
        app: &App,
        model: &Model,
        prompts: Vec<Prompt>,
        [echo_temperature, temperature]: [f64; 2],
    ) -> Result<Vec<Scored>, ApiError> {
        let ids: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt.ids[..]).collect();
        let echo_top = self.logprobs.filter(|_| self.echo);
        let ranked = match self.prompt_logprobs {
            None => None,
            Some(top) => {
                // One pass serves both where both are asked for at one temperature.
                let top = echo_top.filter(|_| echo_temperature == temperature).map_or(top, |echo| echo.max(top));
                Some(prompt_logprobs::of_prompts(app, model, &ids, Ask { top, temperature, ranks: true }).await?)
            }
        };
        let echoed = match (echo_top, &ranked) {
            (None, _) => None,
            (Some(_), Some(ranked)) if echo_temperature == temperature => Some(ranked.clone()),
            (Some(top), _) => {
                let ask = Ask { top, temperature: echo_temperature, ranks: false };
                Some(prompt_logprobs::of_prompts(app, model, &ids, ask).await?)
            }
        };
        let one = |(place, prompt): (usize, Prompt)| Scored {
            echoed: echoed.as_ref().map(|echoed| Arc::clone(&echoed[place])),
            listed: self.prompt_logprobs.zip(ranked.as_ref()).map(|(top, ranked)| PromptLogprobs {
                ids: prompt.ids.clone(),
                rows: Arc::clone(&ranked[place]),
                top,
                tokenizer: self.names.as_ref().map(|names| Arc::clone(&names.tokenizer)),
            }),
            prompt,
        };
        Ok(prompts.into_iter().enumerate().map(one).collect())
    }

    /// Text and lists of what precedes the completion: the prompt, if it is echoed.
    fn beginning(&self, scored: &Scored) -> Result<(String, Option<Lists>), ApiError> {
        let mut lists = self.logprobs.map(|_| Lists::default());
        let Some(names) = self.names.as_ref().filter(|_| self.echo) else { return Ok((String::new(), lists)) };
        let ids = &scored.prompt.ids;
        if let (Some(lists), Some(rows)) = (&mut lists, &scored.echoed) {
            let text = scored.prompt.text.as_deref();
            lists.push_prompt(names, ids, text, rows, self.logprobs.unwrap_or(0))?;
        }
        let text = match &scored.prompt.text {
            Some(text) => text.clone(),
            None => names.tokenizer.decode(ids, false)?,
        };
        Ok((text, lists))
    }
}

/// An object of which one member is not held as JSON.
#[derive(Serialize)]
struct Choice<'a> {
    #[serde(flatten)]
    rest: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<&'a PromptLogprobs>,
}

/// The answer in one piece.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    head: Value,
    choices: Vec<Choice<'a>>,
    usage: Value,
}

/// Of every prompt's completions the likeliest `n`.
fn whole<'a>(
    mut envelope: Envelope,
    shape: &Shape,
    prompts: &'a [Scored],
    mut finished: Vec<Finished>,
    [copies, n]: [usize; 2],
) -> Result<Whole<'a>, ApiError> {
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
            let rest = choice(shape, scored, one, choices.len())?;
            choices.push(Choice { rest, prompt_logprobs: scored.listed.as_ref() });
        }
    }
    Ok(Whole { head: envelope.head(KIND), choices, usage: usage.body() })
}

fn choice(shape: &Shape, scored: &Scored, one: &Finished, index: usize) -> Result<Value, ApiError> {
    let (mut text, mut lists) = shape.beginning(scored)?;
    if let (Some(lists), Some(names)) = (&mut lists, &shape.names) {
        let mut offset = text.chars().count();
        for token in &one.tokens {
            lists.push_sampled(names, offset, token);
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
        choice["prompt_token_ids"] = json!(scored.prompt.ids);
    }
    Ok(choice)
}

pub(crate) fn describe() -> Operation {
    let body = Members::new()
        .maybe("model", text(), "The first one when it is left out.")
        .always("prompt", describe_input(), "What is continued.")
        .maybe("n", integer(1..), "Completions of each prompt.")
        .maybe("best_of", integer(1..), "Completions that the likeliest `n` are chosen from; not with `stream`.")
        .maybe("max_tokens", count(), "16 when it is left out; prompt and completion must fit the context.")
        .maybe("max_completion_tokens", count(), "Another name of `max_tokens`.")
        .and(sampling::describe())
        .and(describe_encoding("it does when this is left out"))
        .and(describe_streaming())
        .maybe("echo", boolean(), "The prompt is part of the text.")
        .maybe("logprobs", integer(0..=MAX_ALTERNATIVES as i128), "Alternatives to each token.")
        .and(prompt_logprobs::describe_field())
        .maybe("return_token_ids", boolean(), "Token ids of prompt and completion.")
        .and(logprobs::describe_names())
        .and(describe_structured())
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
        .defines("PromptLogprobs", prompt_logprobs::describe())
}
