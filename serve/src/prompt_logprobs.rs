//! What a model thinks of the tokens of its prompts: vLLM's `prompt_logprobs`, and the log-probabilities of an echo.

use std::sync::Arc;

use runtime::request::{LogProbs, ScoreRequest, ScoreSequence, SequenceScores};
use runtime::text::Tokenizer;
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use crate::api_error::ApiError;
use crate::app::App;
use crate::fields::Fields;
use crate::generation::score;
use crate::limits::memory;
use crate::logprobs::{IMPOSSIBLE, finite, spelling};
use crate::models::Model;
use crate::openapi::schema::{Members, Schema, integer, list, map_from, nullable, number, text};

/// The field that asks for them.
const FIELD: &str = "prompt_logprobs";
/// Bytes of one alternative in JSON: its id, ln p with 17 digits, rank and text.
const ENTRY_BYTES: usize = 96;
/// Bytes of one before it is JSON: its id and ln p, in a list that may be half empty.
const ROW_BYTES: usize = 32;

/// Takes the number of alternatives to each token of the prompt; -1 is all tokens that there are.
pub(crate) fn take(fields: &mut Fields, model: &Model) -> Result<Option<usize>, ApiError> {
    let vocab_size = model.vocab_size();
    match fields.take::<i64>(FIELD)? {
        None => Ok(None),
        Some(-1) => Ok(Some(vocab_size)),
        Some(count) => match usize::try_from(count) {
            Ok(count) if count <= vocab_size => Ok(Some(count)),
            _ => {
                let message =
                    format!("{FIELD} = {count}: must be from 0 to the vocabulary of {vocab_size}, or -1 for all of it");
                Err(ApiError::invalid(FIELD, message))
            }
        },
    }
}

/// Refuses an answer that would list more than the server sends at a time. `tokens` is the length of all prompts, each of
/// which is listed `copies` times.
pub(crate) fn check_size(app: &App, top: usize, tokens: usize, copies: usize) -> Result<(), ApiError> {
    let (row, limit) = ((top + 1).saturating_mul(ENTRY_BYTES), app.config.max_score_bytes);
    let rows = tokens.saturating_mul(copies);
    match rows.checked_mul(row) {
        Some(bytes) if bytes <= limit => Ok(()),
        _ => {
            let message = format!(
                "{FIELD} = {top} for {rows} tokens is about {row} bytes a token, which exceeds {limit} bytes in all \
                 (--max-score-bytes); ask for fewer alternatives, or for fewer prompts at a time"
            );
            Err(ApiError::answer_too_long(message).about(FIELD))
        }
    }
}

/// What is asked of prompts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    /// Alternatives to each token.
    pub(crate) top: usize,
    pub(crate) temperature: f64,
    /// Also the place of each token among all.
    pub(crate) ranks: bool,
}

/// An element for each prompt. Nothing comes before a first token, so the rows begin with the second.
pub(crate) async fn of_prompts(
    app: &App,
    model: &Model,
    prompts: &[&[u32]],
    ask: Ask,
) -> Result<Vec<Arc<SequenceScores>>, ApiError> {
    let scored = prompts.iter().filter(|ids| ids.len() > 1);
    let sequences: Vec<ScoreSequence> = scored.map(|ids| ScoreSequence::every_token(ids.to_vec())).collect();
    let rows: usize = sequences.iter().map(|sequence| sequence.positions.len()).sum();
    let bytes = rows as u64 * (ask.top as u64 + 1) * (ENTRY_BYTES + ROW_BYTES) as u64;
    memory::hold_answer(memory::wait(bytes, "the prompts' log-probabilities").await?);
    let mut scores = Vec::new();
    if !sequences.is_empty() {
        let Ask { top, temperature, ranks } = ask;
        let output = LogProbs { top, temperature, ranks, ..LogProbs::default() }.into();
        let request = ScoreRequest { model: model.id(), sequences, output, token_ids: None };
        scores = score(app, "score", request).await?.sequences;
    }
    let mut scores = scores.into_iter();
    let rows = |ids: &&[u32]| if ids.len() > 1 { scores.next().unwrap_or_default() } else { SequenceScores::default() };
    Ok(prompts.iter().map(rows).map(Arc::new).collect())
}

/// `prompt_logprobs` of one prompt: `null` for its first token, and for every other an object by token id. It is written as
/// it is sent: a tree of JSON values would take many times its memory.
pub(crate) struct PromptLogprobs {
    pub(crate) ids: Vec<u32>,
    pub(crate) rows: Arc<SequenceScores>,
    pub(crate) top: usize,
    pub(crate) tokenizer: Option<Arc<Tokenizer>>,
}

/// The alternatives in one place.
struct Place<'a> {
    all: &'a PromptLogprobs,
    /// In the rows; the token is the next one.
    row: usize,
}

#[derive(Serialize)]
struct Entry {
    logprob: f64,
    rank: usize,
    decoded_token: Option<String>,
}

impl Serialize for PromptLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut places = serializer.serialize_seq(Some(self.ids.len()))?;
        for place in 0..self.ids.len() {
            let row = place.checked_sub(1).map(|row| Place { all: self, row });
            places.serialize_element(&row)?;
        }
        places.end()
    }
}

impl Serialize for Place<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { all: PromptLogprobs { ids, rows, top, tokenizer }, row } = self;
        let entry = |id: u32, logprob: f64, rank: usize| {
            let decoded_token = tokenizer.as_ref().map(|tokenizer| spelling(tokenizer, id));
            Entry { logprob: finite(logprob), rank, decoded_token }
        };
        let (own, listed) = (ids[row + 1], rows.top.get(*row).map_or(&[][..], |listed| &listed[..*top]));
        let mut object = serializer.serialize_map(None)?;
        for (rank, &(id, logprob)) in (1..).zip(listed) {
            object.serialize_entry(&id.to_string(), &entry(id, logprob, rank))?;
        }
        if listed.iter().all(|&(id, _)| id != own) {
            object.serialize_entry(&own.to_string(), &entry(own, rows.logprobs[*row], rows.ranks[*row] as usize))?;
        }
        object.end()
    }
}

/// What [`take`] reads.
pub(crate) fn describe_field() -> Members {
    let most = integer(-1..=i128::from(u32::MAX));
    let words = "Alternatives to each token of the prompt, at most the vocabulary; -1 is all of it. They are of the \
                 distribution at the request's `temperature`, and at 1 where it names none or 0.";
    Members::new().maybe(FIELD, most, words)
}

/// A [`PromptLogprobs`].
pub(crate) fn describe() -> Schema {
    let one = Members::new()
        .always("logprob", number(Some(IMPOSSIBLE), None), "")
        .always("rank", integer(1..), "The token's place among all, the likeliest first.")
        .always("decoded_token", nullable(text()), "")
        .closed();
    list(nullable(map_from("^[0-9]+$", one)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_outside_the_list_has_its_rank() {
        let rows = SequenceScores {
            logprobs: vec![-0.5, -3.0],
            ranks: vec![1, 7],
            top: vec![vec![(4, -0.5), (2, -1.5)], vec![(0, -0.25), (1, -2.0)]],
            ..SequenceScores::default()
        };
        let of = |top| PromptLogprobs { ids: vec![9, 4, 6], rows: Arc::new(rows.clone()), top, tokenizer: None };
        let entry = |logprob: f64, rank: u32| json!({"logprob": logprob, "rank": rank, "decoded_token": null});
        assert_eq!(
            serde_json::to_value(of(1)).expect("JSON"),
            json!([null, {"4": entry(-0.5, 1)}, {"0": entry(-0.25, 1), "6": entry(-3.0, 7)}])
        );
        assert_eq!(serde_json::to_value(of(0)).expect("JSON")[2], json!({"6": entry(-3.0, 7)}));
    }
}
