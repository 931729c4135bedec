//! `POST /v1/score`: what a model thinks of given tokens.

use std::ops::Range;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use runtime::request::{LogProbs, Precision, ScoreOutput, ScoreRequest, ScoreSequence, SequenceScores};
use serde::Deserialize;
use serde_json::{Value, json};

use super::rows::{self, Kind};
use crate::api_error::ApiError;
use crate::app::Shared;
use crate::fields::Fields;
use crate::generation::score;
use crate::limits::memory;
use crate::logprobs::finite;
use crate::models::Model;
use crate::openapi::Operation;
use crate::openapi::schema::{
    Members, any_of, count, integer, list, named, nullable, number, number_above, one_of, text, token_id,
};
use crate::prompt::{Input, PromptEncoding, check_ids, describe_input, too_long};
use crate::sampling::MAX_ALTERNATIVES;

/// Bytes that one id with its log-probability takes in JSON, generously.
const ENTRY_BYTES: usize = 36;
/// What an answer takes while its JSON is made, in lengths of the answer.
const JSON_COPIES: u64 = 4;

/// `positions`: one range for all inputs, or one for each.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected [START, END] or a list of such pairs, one for each input")]
enum Positions {
    All([usize; 2]),
    Each(Vec<[usize; 2]>),
}

/// Log-probabilities of the tokens of every input, of `ids` and of the `top_k` most likely tokens in their place; or, with
/// `rows`, the logits or hidden states themselves.
pub(crate) async fn create(State(app): State<Shared>, mut fields: Fields) -> Result<Response, ApiError> {
    let model = app.models.find(fields.take::<String>("model")?.as_deref())?;
    let input: Input = fields.need("input")?;
    let positions: Option<Positions> = fields.take("positions")?;
    let kind: Option<Kind> = fields.take("rows")?;
    let precision = rows::precision(&mut fields)?;
    let log_probs = log_probs(&mut fields, &model)?;
    let vocab: Option<usize> = fields.take("vocab_size")?;
    fields.finish()?;
    let output = match (kind, log_probs, precision) {
        (Some(kind), None, precision) => kind.output(precision.unwrap_or(Precision::Bf16)),
        (Some(_), Some((field, _)), _) => {
            return Err(ApiError::invalid(field, format!("{field} has no effect with `rows`; remove one of them")));
        }
        (None, _, Some(_)) => {
            return Err(ApiError::invalid("dtype", "dtype has no effect without `rows`; remove it, or say which rows"));
        }
        (None, log_probs, None) => log_probs.map_or_else(LogProbs::default, |(_, log_probs)| log_probs).into(),
    };
    check_vocab(vocab, &model, &output)?;
    let prompts = input.encode(&model, "input", PromptEncoding::whole(true)).await?;
    let total = prompts.iter().map(|prompt| prompt.ids.len()).sum::<usize>();
    let mut sequences = Vec::with_capacity(prompts.len());
    for (number, prompt) in prompts.into_iter().enumerate() {
        fits(prompt.ids.len(), model.context(), "input")?;
        let range = range(positions.as_ref(), number, prompt.ids.len(), kind.is_some())?;
        sequences.push((range, prompt.ids));
    }
    if let Some(Positions::Each(ranges)) = &positions
        && ranges.len() != sequences.len()
    {
        let message = format!("positions has {} pairs for {} inputs", ranges.len(), sequences.len());
        return Err(ApiError::invalid("positions", message));
    }
    let bytes = check_size(&output, &sequences, &model, vocab, app.config.max_score_bytes)?;
    let copies = if kind.is_some() { 1 } else { JSON_COPIES };
    memory::hold_answer(memory::wait(bytes as u64 * copies, "the answer").await?);
    // Nothing comes before the first token, so nothing can be said of it.
    let scored = |(range, ids): &(Range<usize>, Vec<u32>)| ScoreSequence {
        tokens: ids.clone(),
        positions: range.start.max(1)..range.end,
    };
    let scored: Vec<ScoreSequence> = sequences.iter().map(scored).filter(|one| !one.positions.is_empty()).collect();
    let request = ScoreRequest { model: model.id(), sequences: scored, output: output.clone(), token_ids: vocab };
    let response = score(&app, "score", request).await?;
    if kind.is_some() {
        return Ok(rows::response(&output, response));
    }
    let mut scores = response.sequences.into_iter();
    let mut data = Vec::with_capacity(sequences.len());
    for (index, (range, ids)) in sequences.into_iter().enumerate() {
        let empty = range.start.max(1) >= range.end;
        let scores = if empty { SequenceScores::default() } else { scores.next().unwrap_or_default() };
        data.push(one(index, &range, &ids, scores, &output));
    }
    let usage = json!({"prompt_tokens": total, "total_tokens": total});
    let fingerprint = model.fingerprint(response.version);
    let answer = json!({
        "object": "list", "model": model.name(), "system_fingerprint": fingerprint, "data": data, "usage": usage,
    });
    Ok(Json(answer).into_response())
}

/// `top_k`, `ids` and `temperature`, with the name of one that is there; `None` when none is.
fn log_probs(fields: &mut Fields, model: &Model) -> Result<Option<(&'static str, LogProbs)>, ApiError> {
    let top: Option<usize> = fields.take("top_k")?;
    let ids: Option<Vec<u32>> = fields.take("ids")?;
    let temperature: Option<f64> = fields.take("temperature")?;
    let given = [("top_k", top.is_some()), ("ids", ids.is_some()), ("temperature", temperature.is_some())];
    let Some(&(field, _)) = given.iter().find(|(_, given)| *given) else { return Ok(None) };
    let (top, ids, temperature) = (top.unwrap_or(0), ids.unwrap_or_default(), temperature.unwrap_or(1.0));
    if top > model.vocab_size() {
        let message = format!("top_k = {top}: must be at most the vocabulary of {}", model.vocab_size());
        return Err(ApiError::invalid("top_k", message));
    }
    if !ids.is_empty() {
        check_ids(&ids, model, "ids")?;
    }
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(ApiError::invalid("temperature", format!("temperature = {temperature}: must be above 0")));
    }
    Ok(Some((field, LogProbs { top, ids, temperature, ..LogProbs::default() })))
}

/// Whether so many ids can be compared.
fn check_vocab(size: Option<usize>, model: &Model, output: &ScoreOutput) -> Result<(), ApiError> {
    let Some(size) = size else { return Ok(()) };
    let refuse = |what: String| Err(ApiError::invalid("vocab_size", format!("vocab_size = {size}: {what}")));
    match output {
        ScoreOutput::Hidden { .. } => refuse("hidden states have no vocabulary; leave it out".to_owned()),
        ScoreOutput::LogProbs(LogProbs { top, .. }) if *top > size => refuse(format!("must be at least top_k ({top})")),
        _ if size == 0 || size > model.vocab_size() => refuse(format!("must be from 1 to {}", model.vocab_size())),
        _ => Ok(()),
    }
}

/// The positions of input `number`, which has `len` tokens; with `rows` the one after the last is one too.
fn range(positions: Option<&Positions>, number: usize, len: usize, rows: bool) -> Result<Range<usize>, ApiError> {
    let (first, last) = (usize::from(rows), len + usize::from(rows));
    let [start, end] = match positions {
        None if rows && len < 2 => {
            let message = format!("input {number} has one token, which nothing predicts; send `positions` = [1, 2]");
            return Err(ApiError::invalid("input", message));
        }
        None => [first, len],
        Some(Positions::All(range)) => *range,
        Some(Positions::Each(ranges)) => ranges.get(number).copied().unwrap_or([first, len]),
    };
    if start < first || start >= end || end > last {
        let message = format!(
            "positions [{start}, {end}] of input {number}: must be START < END from {first} to {last} (it has {len} tokens)"
        );
        return Err(ApiError::invalid("positions", message));
    }
    Ok(start..end)
}

/// Bytes of an answer; refuses one that would be too long.
fn check_size(
    output: &ScoreOutput,
    sequences: &[(Range<usize>, Vec<u32>)],
    model: &Model,
    vocab: Option<usize>,
    limit: usize,
) -> Result<usize, ApiError> {
    let row = match output {
        ScoreOutput::TokenLogProbs { .. } => 2 * ENTRY_BYTES,
        ScoreOutput::LogProbs(LogProbs { top, ids, .. }) => (2 + top + ids.len()) * ENTRY_BYTES,
        ScoreOutput::Logits(precision) => vocab.unwrap_or(model.vocab_size()) * precision.bytes(),
        ScoreOutput::Hidden { precision, .. } => model.files().config.hidden_size * precision.bytes(),
        ScoreOutput::Pooled(_) => unreachable!("vectors are embeddings"),
    };
    let rows: usize = sequences.iter().map(|(range, _)| range.len()).sum();
    rows::check_size(rows, row, limit)
}

/// An element of `data`. A list has an element for every position, `null` for the first token of an input.
fn one(index: usize, range: &Range<usize>, ids: &[u32], scores: SequenceScores, output: &ScoreOutput) -> Value {
    let nothing = (range.start == 0).then_some(Value::Null);
    let list =
        |values: &mut dyn Iterator<Item = Value>| -> Value { nothing.clone().into_iter().chain(values).collect() };
    let numbers = |values: &[f64]| -> Value { values.iter().map(|&value| json!(finite(value))).collect() };
    let mut one = json!({
        "object": "score", "index": index, "tokens": ids[range.clone()],
        "logprobs": list(&mut scores.logprobs.iter().map(|&value| json!(finite(value)))),
    });
    if range.start > 0 {
        one["positions"] = json!([range.start, range.end]);
    }
    let ScoreOutput::LogProbs(LogProbs { top, ids, .. }) = output else { return one };
    if *top > 0 {
        let listed = scores.top.iter();
        one["top_ids"] = list(&mut listed.clone().map(|top| top.iter().map(|&(id, _)| json!(id)).collect()));
        one["top_logprobs"] = list(&mut listed.map(|top| top.iter().map(|&(_, value)| json!(finite(value))).collect()));
        one["tail_logprobs"] = list(&mut scores.tail_logprobs.iter().map(|&value| json!(finite(value))));
    }
    if !ids.is_empty() {
        one["id_logprobs"] = list(&mut scores.ids.iter().map(|values| numbers(values)));
    }
    one
}

/// A number of alternatives to each token.
pub(super) fn alternatives(count: Option<usize>, field: &'static str) -> Result<Option<usize>, ApiError> {
    match count {
        Some(count) if count > MAX_ALTERNATIVES => {
            Err(ApiError::invalid(field, format!("{field} = {count}: must be at most {MAX_ALTERNATIVES}")))
        }
        count => Ok(count),
    }
}

/// Tokens that the model must see at once.
pub(super) fn fits(tokens: usize, context: usize, field: &'static str) -> Result<(), ApiError> {
    if tokens <= context {
        return Ok(());
    }
    Err(too_long(tokens, context, field))
}

pub(crate) fn describe() -> Operation {
    let logprob = || number(None, Some(0.0));
    let first = "`null` for the first token of an input";
    let pair = || list(count());
    let one = Members::new()
        .always("object", one_of(&["score"]), "")
        .always("index", count(), "The input's place.")
        .always("tokens", list(token_id()), "Those of the positions.")
        .always("logprobs", list(nullable(logprob())), &format!("ln p of every token; {first}."))
        .maybe("positions", pair(), "Where they are, unless it is from the beginning.")
        .maybe("top_ids", list(nullable(list(token_id()))), &format!("The likeliest tokens in each place; {first}."))
        .maybe("top_logprobs", list(nullable(list(logprob()))), "Their ln p.")
        .maybe("tail_logprobs", list(nullable(logprob())), "ln of the mass of all other tokens.")
        .maybe("id_logprobs", list(nullable(list(logprob()))), "ln p of `ids` in each place.")
        .closed();
    let answer = Members::new()
        .always("object", one_of(&["list"]), "")
        .always("model", text(), "")
        .always("system_fingerprint", text(), "MODEL@VERSION of the weights.")
        .always("data", list(one), "")
        .always("usage", named("PromptUsage"), "");
    Operation::new("createScore", "What a model thinks of given tokens")
        .reads(
            Members::new()
                .maybe("model", text(), "The first one when it is left out.")
                .always("input", describe_input(), "What is scored.")
                .maybe("positions", any_of([pair(), list(pair())]), "[START, END], or such a pair for each input.")
                .maybe("top_k", integer(0..), "So many of the likeliest tokens in each place, at most the vocabulary.")
                .maybe("ids", list(token_id()), "These tokens in each place.")
                .maybe("temperature", number_above(0.0, None), "Of the distribution.")
                .maybe(
                    "vocab_size",
                    integer(1..),
                    "Over the first so many ids alone: rows of the head beyond are padding.",
                )
                .maybe("rows", one_of(&rows::KINDS), "Instead of all that the rows themselves, as bytes.")
                .and(rows::describe_precision()),
        )
        .refuses(413, "The body is too long, or the answer would be.")
        .finds_model()
        .submits()
        .answers(answer.closed())
        .answers_with("application/octet-stream", rows::describe_bytes())
}
