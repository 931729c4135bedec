//! `POST /v1/score`: what a model thinks of given tokens.

use axum::Json;
use axum::extract::State;
use runtime::request::ScoreRequest;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::fields::Fields;
use crate::generation::score;
use crate::openapi::Operation;
use crate::openapi::schema::{Members, count, integer, list, named, nullable, number, one_of, text, token_id};
use crate::prompt::{Input, describe_input};
use crate::sampling::MAX_ALTERNATIVES;

/// ln p of every token of `input` but the first, and the `top_k` most likely ones in its place.
pub(crate) async fn create(State(app): State<Shared>, mut fields: Fields) -> Result<Json<Value>, ApiError> {
    let model = app.models.find(fields.take::<String>("model")?.as_deref())?;
    let input: Input = fields.need("input")?;
    let top = alternatives(fields.take("top_k")?, "top_k")?.unwrap_or(0);
    fields.finish()?;
    let version = model.of(&app.runtime.snapshot()).version;
    let mut data = Vec::new();
    let mut total = 0;
    for (place, prompt) in input.encode(&model, "input").await?.into_iter().enumerate() {
        fits(prompt.ids.len(), model.context(), "input")?;
        total += prompt.ids.len();
        let request = ScoreRequest { slot: model.slot(), tokens: prompt.ids.clone(), top };
        let score = score(&app, &model, request).await?;
        let ids = |top: &Vec<(u32, f64)>| top.iter().map(|&(id, _)| id).collect::<Vec<u32>>();
        let values = |top: &Vec<(u32, f64)>| top.iter().map(|&(_, logprob)| logprob).collect::<Vec<f64>>();
        let mut one = json!({"object": "score", "index": place, "tokens": prompt.ids, "logprobs": score.logprobs});
        if top > 0 {
            one["top_ids"] = score.top.iter().map(|top| json!(ids(top))).collect();
            one["top_logprobs"] = score.top.iter().map(|top| json!(values(top))).collect();
        }
        data.push(one);
    }
    let usage = json!({"prompt_tokens": total, "total_tokens": total});
    let fingerprint = model.fingerprint(version);
    Ok(Json(json!({
        "object": "list", "model": model.name(), "system_fingerprint": fingerprint, "data": data, "usage": usage,
    })))
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
    Err(ApiError::too_long(format!("{tokens} tokens exceed the model's context of {context}; send fewer")).about(field))
}

pub(crate) fn describe() -> Operation {
    let list_of_logprobs = || list(list(number(None, Some(0.0))));
    let first_is_null = "of the first token: `null`";
    let one = Members::new()
        .always("object", one_of(&["score"]), "")
        .always("index", count(), "The input's place.")
        .always("tokens", list(token_id()), "")
        .always("logprobs", list(nullable(number(None, Some(0.0)))), &format!("ln p of every token; {first_is_null}."))
        .maybe("top_ids", list(list(token_id())), "The likeliest tokens in each place, with `top_k`.")
        .maybe("top_logprobs", list_of_logprobs(), "Their ln p.")
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
                .maybe("top_k", integer(0..=MAX_ALTERNATIVES as i128), "Alternatives to each token."),
        )
        .finds_model()
        .submits()
        .answers(answer.closed())
}
