//! Log-probabilities on the wire: chat's objects and the older parallel lists.

use std::sync::Arc;

use runtime::request::{SequenceScores, TokenEvent};
use runtime::text::{Detokenizer, Tokenizer};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::openapi::schema::{Members, Schema, boolean, count, integer, list, map, nullable, number, text};

/// JSON has no infinity; OpenAI writes this for an impossible token.
pub(crate) const IMPOSSIBLE: f64 = -9999.0;

pub(crate) fn finite(logprob: f64) -> f64 {
    if logprob.is_finite() { logprob } else { IMPOSSIBLE }
}

/// How tokens are named.
#[derive(Clone)]
pub(crate) struct Names {
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// As `token_id:N` (`return_tokens_as_token_ids`): two tokens of one text have two names.
    pub(crate) as_ids: bool,
}

impl Names {
    fn of(&self, id: u32) -> String {
        if self.as_ids { format!("token_id:{id}") } else { spelling(&self.tokenizer, id) }
    }
}

/// A token as text: itself where its bytes are whole characters, `bytes:\x..` as OpenAI writes it where not, and
/// `token_id:N` for an id that only the padded embedding has.
pub(crate) fn spelling(tokenizer: &Tokenizer, id: u32) -> String {
    match tokenizer.token_bytes(id).map(String::from_utf8) {
        None => format!("token_id:{id}"),
        Some(Ok(text)) => text,
        Some(Err(bytes)) => {
            let bytes = bytes.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
            format!("bytes:{}", bytes.collect::<String>())
        }
    }
}

/// `{token, logprob, bytes}` of one token.
fn entry(names: &Names, id: u32, logprob: f64) -> Value {
    json!({"token": names.of(id), "logprob": finite(logprob), "bytes": names.tokenizer.token_bytes(id)})
}

/// One element of chat's `logprobs.content`.
pub(crate) fn chat_entry(names: &Names, token: &TokenEvent) -> Value {
    let mut value = entry(names, token.token, token.logprob);
    value["top_logprobs"] = token.top.iter().map(|&(id, logprob)| entry(names, id, logprob)).collect();
    value
}

/// The lists of `/v1/completions`, one element a token.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Lists {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Characters of the answer's text before the token.
    text_offset: Vec<usize>,
}

impl Lists {
    /// Appends a token whose text begins after `offset` characters. Besides its `top` alternatives it is listed itself.
    fn push(&mut self, names: &Names, offset: usize, id: u32, logprob: Option<f64>, top: &[(u32, f64)]) {
        self.tokens.push(names.of(id));
        self.token_logprobs.push(logprob.map(finite));
        self.text_offset.push(offset);
        self.top_logprobs.push(logprob.map(|own| {
            let mut listed = Map::new();
            // The likeliest first: where two ids have one text, it keeps the larger value.
            for &(id, logprob) in top.iter().chain(&[(id, own)]) {
                listed.entry(names.of(id)).or_insert_with(|| json!(finite(logprob)));
            }
            listed
        }));
    }

    /// Appends a prompt with `top` alternatives to each token but the first, of which nothing is known. `text` is what the tokens
    /// were made of, if that is known: those that the tokenizer put around it are no part of it.
    pub(crate) fn push_prompt(
        &mut self,
        names: &Names,
        ids: &[u32],
        text: Option<&str>,
        rows: &SequenceScores,
        top: usize,
    ) -> Result<(), ApiError> {
        let (own, length) = match text {
            Some(text) => (names.tokenizer.own_tokens(text, ids)?, text.chars().count()),
            None => (0..ids.len(), usize::MAX),
        };
        let mut pieces = Detokenizer::new(names.tokenizer.clone(), false);
        let mut offset = 0;
        for (place, &id) in ids.iter().enumerate() {
            let row = place.checked_sub(1);
            let listed = row.and_then(|row| rows.top.get(row)).map_or(&[][..], |listed| &listed[..top]);
            self.push(names, offset.min(length), id, row.map(|row| rows.logprobs[row]), listed);
            if own.contains(&place) {
                offset += pieces.push(id)?.map_or(0, |piece| piece.chars().count());
            }
        }
        Ok(())
    }

    /// Appends a sampled token; `offset` as in `push`.
    pub(crate) fn push_sampled(&mut self, names: &Names, offset: usize, token: &TokenEvent) {
        self.push(names, offset, token.token, Some(token.logprob), &token.top);
    }
}

fn logprob() -> Schema {
    number(Some(IMPOSSIBLE), None)
}

/// The field that [`Names`] follow.
pub(crate) fn describe_names() -> Members {
    let words = "Tokens of log-probabilities are called `token_id:N`.";
    Members::new().maybe("return_tokens_as_token_ids", boolean(), words)
}

/// [`Lists`].
pub(crate) fn describe_lists() -> Schema {
    Members::new()
        .always("tokens", list(text()), "")
        .always("token_logprobs", list(nullable(logprob())), "ln p; `null` for the first token of a prompt.")
        .always("top_logprobs", list(nullable(map(logprob()))), "ln p of the likeliest tokens and the token itself.")
        .always("text_offset", list(count()), "Characters before the token.")
        .closed()
}

/// What [`chat_entry`] makes.
pub(crate) fn describe_chat_entry() -> Schema {
    let entry = || {
        Members::new().always("token", text(), "").always("logprob", logprob(), "").always(
            "bytes",
            nullable(list(integer(0..=255))),
            "",
        )
    };
    entry().always("top_logprobs", list(entry().closed()), "").closed()
}
