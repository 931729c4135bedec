//! Log-probabilities on the wire: chat's objects, the older parallel lists, and prompts'.

use runtime::request::{Score, TokenEvent};
use runtime::text::{Detokenizer, Tokenizer};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::openapi::schema::{Members, Schema, count, integer, list, map, map_from, nullable, number, text};

/// JSON has no infinity; OpenAI writes this for an impossible token.
const IMPOSSIBLE: f64 = -9999.0;

pub(crate) fn finite(logprob: f64) -> f64 {
    if logprob.is_finite() { logprob } else { IMPOSSIBLE }
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
fn entry(tokenizer: &Tokenizer, id: u32, logprob: f64) -> Value {
    json!({"token": spelling(tokenizer, id), "logprob": finite(logprob), "bytes": tokenizer.token_bytes(id)})
}

/// One element of chat's `logprobs.content`.
pub(crate) fn chat_entry(tokenizer: &Tokenizer, token: &TokenEvent) -> Value {
    let mut value = entry(tokenizer, token.token, token.logprob);
    value["top_logprobs"] = token.top.iter().map(|&(id, logprob)| entry(tokenizer, id, logprob)).collect();
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
    fn push(&mut self, tokenizer: &Tokenizer, offset: usize, id: u32, logprob: Option<f64>, top: &[(u32, f64)]) {
        self.tokens.push(spelling(tokenizer, id));
        self.token_logprobs.push(logprob.map(finite));
        self.text_offset.push(offset);
        self.top_logprobs.push(logprob.map(|own| {
            let mut listed = Map::new();
            // The likeliest first: where two ids have one text, it keeps the larger value.
            for &(id, logprob) in top.iter().chain(&[(id, own)]) {
                listed.entry(spelling(tokenizer, id)).or_insert_with(|| json!(finite(logprob)));
            }
            listed
        }));
    }

    /// Appends a prompt with its score; returns its text and its length in characters.
    pub(crate) fn push_prompt(
        &mut self,
        tokenizer: &std::sync::Arc<Tokenizer>,
        ids: &[u32],
        score: &Score,
    ) -> Result<(), ApiError> {
        let mut text = Detokenizer::new(tokenizer.clone(), false);
        let mut offset = 0;
        for ((&id, &logprob), top) in ids.iter().zip(&score.logprobs).zip(&score.top) {
            self.push(tokenizer, offset, id, logprob, top);
            offset += text.push(id)?.map_or(0, |piece| piece.chars().count());
        }
        Ok(())
    }

    /// Appends a sampled token; `offset` as in `push`.
    pub(crate) fn push_sampled(&mut self, tokenizer: &Tokenizer, offset: usize, token: &TokenEvent) {
        self.push(tokenizer, offset, token.token, Some(token.logprob), &token.top);
    }
}

/// vLLM's `prompt_logprobs`: for every token but the first, an object by token id.
pub(crate) fn of_prompt(tokenizer: Option<&Tokenizer>, ids: &[u32], score: &Score) -> Value {
    let one = |id: u32, logprob: Option<f64>, top: &[(u32, f64)]| {
        let Some(logprob) = logprob else { return Value::Null };
        let describe = |id: u32, logprob: f64, rank: Option<usize>| {
            let decoded = tokenizer.map(|tokenizer| spelling(tokenizer, id));
            json!({"logprob": finite(logprob), "rank": rank, "decoded_token": decoded})
        };
        let mut listed = Map::new();
        for (rank, &(id, logprob)) in (1..).zip(top) {
            listed.insert(id.to_string(), describe(id, logprob, Some(rank)));
        }
        listed.entry(id.to_string()).or_insert_with(|| describe(id, logprob, None));
        Value::Object(listed)
    };
    let places = ids.iter().zip(&score.logprobs).zip(&score.top);
    places.map(|((&id, &logprob), top)| one(id, logprob, top)).collect()
}

fn logprob() -> Schema {
    number(Some(IMPOSSIBLE), None)
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

/// What [`of_prompt`] makes.
pub(crate) fn describe_prompt() -> Schema {
    let one = Members::new()
        .always("logprob", logprob(), "")
        .always("rank", nullable(integer(1..)), "")
        .always("decoded_token", nullable(text()), "")
        .closed();
    list(nullable(map_from("^[0-9]+$", one)))
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
