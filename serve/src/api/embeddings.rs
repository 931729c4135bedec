//! `POST /v1/embeddings`

use axum::Json;
use axum::extract::State;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use runtime::request::{Pooling, ScoreOutput, ScoreRequest, ScoreSequence};
use serde::Deserialize;
use serde_json::{Value, json};

use super::score::fits;
use crate::api_error::ApiError;
use crate::app::Shared;
use crate::fields::{Fields, NO_EFFECT, describe_no_effect};
use crate::generation::score;
use crate::models::Model;
use crate::openapi::Operation;
use crate::openapi::schema::{Members, any_of, count, integer, list, named, number, one_of, text};
use crate::prompt::{Input, PromptEncoding, describe_encoding, describe_input};

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Float,
    /// Little-endian f32.
    Base64,
}

/// How hidden states become one vector (a field of ours).
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Pool {
    Last,
    Mean,
}

/// A unit vector for every input.
pub(crate) async fn create(State(app): State<Shared>, mut fields: Fields) -> Result<Json<Value>, ApiError> {
    let name: Option<String> = fields.take("model")?;
    let model = app.models.find(name.as_deref())?;
    let input: Input = fields.need("input")?;
    let encoding = fields.take("encoding_format")?.unwrap_or(Encoding::Float);
    let pooling = match fields.take("pooling")?.unwrap_or(Pool::Last) {
        Pool::Last => Pooling::Last,
        Pool::Mean => Pooling::Mean,
    };
    let dimensions = dimensions(&mut fields, &model)?;
    let prompt_encoding = PromptEncoding::take(&mut fields, &model, true)?;
    fields.accept(NO_EFFECT);
    fields.finish()?;
    let mut data = Vec::new();
    let mut total = 0;
    for (place, prompt) in input.encode(&model, "input", prompt_encoding).await?.into_iter().enumerate() {
        fits(prompt.ids.len(), model.context(), "input")?;
        total += prompt.ids.len();
        let sequences = vec![ScoreSequence::pooled(prompt.ids, pooling)];
        let output = ScoreOutput::Pooled(pooling);
        let request = ScoreRequest { model: model.id(), sequences, output, token_ids: None };
        let response = score(&app, "embed", request).await?;
        let vector = response.sequences.into_iter().next().unwrap_or_default().vector;
        let mut vector: Vec<f32> = vector.into_iter().map(|value| value as f32).collect();
        vector.truncate(dimensions);
        normalize(&mut vector)?;
        data.push(json!({"object": "embedding", "index": place, "embedding": encode(&vector, encoding)}));
    }
    let name = name.unwrap_or_else(|| model.name().to_owned());
    let usage = json!({"prompt_tokens": total, "total_tokens": total});
    Ok(Json(json!({"object": "list", "model": name, "data": data, "usage": usage})))
}

/// The first so many values of each vector; all when it is not said.
fn dimensions(fields: &mut Fields, model: &Model) -> Result<usize, ApiError> {
    let width = model.files().config.hidden_size;
    match fields.take("dimensions")? {
        None => Ok(width),
        Some(count) if (1..=width).contains(&count) => Ok(count),
        Some(count) => Err(ApiError::invalid("dimensions", format!("dimensions = {count}: must be from 1 to {width}"))),
    }
}

/// To length 1, as OpenAI's are, so that a dot product is the cosine.
fn normalize(vector: &mut [f32]) -> Result<(), ApiError> {
    let length = vector.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    if !(length.is_finite() && length > 0.0) {
        return Err(ApiError::internal(format!("the hidden state has length {length}, so it has no direction")));
    }
    vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    Ok(())
}

fn encode(vector: &[f32], encoding: Encoding) -> Value {
    match encoding {
        Encoding::Float => json!(vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            json!(BASE64_STANDARD.encode(bytes))
        }
    }
}

pub(crate) fn describe() -> Operation {
    let vector = any_of([list(number(Some(-1.0), Some(1.0))), text()]);
    let one = Members::new()
        .always("object", one_of(&["embedding"]), "")
        .always("index", count(), "The input's place.")
        .always("embedding", vector, "Numbers, or base64 of little-endian f32; of length 1.")
        .closed();
    let answer = Members::new()
        .always("object", one_of(&["list"]), "")
        .always("model", text(), "")
        .always("data", list(one), "")
        .always("usage", named("PromptUsage"), "");
    Operation::new("createEmbedding", "A unit vector for each input")
        .reads(
            Members::new()
                .maybe("model", text(), "The first one when it is left out.")
                .always("input", describe_input(), "What is embedded.")
                .maybe("encoding_format", one_of(&["float", "base64"]), "")
                .maybe("pooling", one_of(&["last", "mean"]), "Which hidden states make the vector.")
                .maybe("dimensions", integer(1..), "The first so many numbers, at most the model's width.")
                .and(describe_encoding("it does when this is left out"))
                .and(describe_no_effect()),
        )
        .finds_model()
        .submits()
        .answers(answer.closed())
}
