//! `POST /v1/score`: what a model thinks of given tokens.

use axum::Json;
use axum::extract::State;
use runtime::request::ScoreRequest;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::fields::Fields;
use crate::generation::score;
use crate::prompt::Input;
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
