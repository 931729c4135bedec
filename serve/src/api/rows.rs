//! Rows of numbers as bytes: logits and hidden states of `/v1/score`, and `POST /v1/raw_logits`.

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderName, HeaderValue, header};
use runtime::request::{Precision, ScoreOutput, ScoreRequest, ScoreResponse, ScoreSequence};
use serde::Deserialize;

use super::score::fits;
use crate::api_error::ApiError;
use crate::app::Shared;
use crate::fields::Fields;
use crate::generation::score;
use crate::limits::memory;
use crate::openapi::Operation;
use crate::openapi::schema::{Members, Schema, count, described, one_of, some, text, token_id};
use crate::prompt::check_ids;

/// `rows`: which numbers.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// The whole rows of logits.
    Logits,
    /// What the layers wrote, before the last norm.
    Hidden,
    /// After it: what the output head multiplies.
    HiddenNormalized,
}

/// What requests call them.
pub(super) const KINDS: [&str; 3] = ["logits", "hidden", "hidden_normalized"];

impl Kind {
    pub(super) fn output(self, precision: Precision) -> ScoreOutput {
        match self {
            Self::Logits => ScoreOutput::Logits(precision),
            Self::Hidden => ScoreOutput::Hidden { normalized: false, precision },
            Self::HiddenNormalized => ScoreOutput::Hidden { normalized: true, precision },
        }
    }
}

/// `dtype`: how numbers are written; `None` when it is left out.
pub(super) fn precision(fields: &mut Fields) -> Result<Option<Precision>, ApiError> {
    let Some(name) = fields.take::<String>("dtype")? else { return Ok(None) };
    let known = || ApiError::invalid("dtype", format!("dtype = {name:?}: must be \"bf16\" or \"f32\""));
    Precision::from_name(&name).map(Some).ok_or_else(known)
}

/// The row of logits after every token of `input_ids`, as the bytes of a matrix.
pub(crate) async fn raw_logits(State(app): State<Shared>, mut fields: Fields) -> Result<Response, ApiError> {
    let model = app.models.find(fields.take::<String>("model")?.as_deref())?;
    let ids: Vec<u32> = fields.need("input_ids")?;
    let positions: Option<Vec<u32>> = fields.take("positions")?;
    let precision = precision(&mut fields)?.unwrap_or(Precision::Bf16);
    fields.finish()?;
    check_ids(&ids, &model, "input_ids")?;
    fits(ids.len(), model.context(), "input_ids")?;
    if let Some(positions) = positions {
        check_positions(&positions, ids.len())?;
    }
    let bytes = check_size(ids.len(), model.vocab_size() * precision.bytes(), app.config.max_score_bytes)?;
    memory::hold_answer(memory::wait(bytes as u64, "the answer").await?);
    let (positions, output) = (1..ids.len() + 1, ScoreOutput::Logits(precision));
    let sequences = vec![ScoreSequence { tokens: ids, positions }];
    let request = ScoreRequest { model: model.id(), sequences, output: output.clone(), token_ids: None };
    Ok(response(&output, score(&app, "score", request).await?))
}

/// Places of the tokens in the sequence: a whole sequence from its beginning.
fn check_positions(positions: &[u32], tokens: usize) -> Result<(), ApiError> {
    if positions.len() != tokens {
        let message = format!("{} positions for {tokens} input_ids; there must be as many", positions.len());
        return Err(ApiError::invalid("positions", message));
    }
    match positions.iter().enumerate().find(|&(place, &position)| position as usize != place) {
        None => Ok(()),
        Some((place, position)) => {
            let message =
                format!("positions[{place}] is {position}: must be 0, 1, 2, ...; send the sequence from its start");
            Err(ApiError::invalid("positions", message))
        }
    }
}

/// Bytes of an answer of `rows` rows of `row` bytes; refuses one that would be longer than `limit`.
pub(super) fn check_size(rows: usize, row: usize, limit: usize) -> Result<usize, ApiError> {
    match rows.checked_mul(row) {
        Some(bytes) if bytes <= limit => Ok(bytes),
        _ => Err(ApiError::answer_too_large(rows, row, limit)),
    }
}

/// The rows with their shape in the headers.
pub(super) fn response(output: &ScoreOutput, scores: ScoreResponse) -> Response {
    let (kind, precision) = match output {
        ScoreOutput::Logits(precision) => ("logits", *precision),
        ScoreOutput::Hidden { precision, .. } => ("hidden", *precision),
        ScoreOutput::TokenLogProbs { .. } | ScoreOutput::LogProbs(_) | ScoreOutput::Pooled(_) => {
            unreachable!("log-probabilities and vectors are JSON")
        }
    };
    let (version, columns, bytes) = (scores.version, scores.columns, scores.into_rows());
    let rows = bytes.len() / (columns * precision.bytes()).max(1);
    let mut response = Response::new(Body::from(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let name = |end: &str| HeaderName::try_from(format!("x-{kind}-{end}")).expect("a fixed name");
    headers.insert(name("rows"), HeaderValue::from(rows));
    headers.insert(name("cols"), HeaderValue::from(columns));
    headers.insert(name("dtype"), HeaderValue::from_static(precision.name()));
    headers.insert("x-weights-version", HeaderValue::from(version));
    response
}

pub(super) fn describe_precision() -> Members {
    Members::new().maybe(
        "dtype",
        one_of(&["bf16", "f32"]),
        "How numbers of rows are written; bf16 when it is left out.",
    )
}

pub(super) fn describe_bytes() -> Schema {
    let words = "Rows of little-endian numbers, one after another; `x-logits-rows`, `x-logits-cols` and `x-logits-dtype` (or \
                 `x-hidden-...`) say how many and which, `x-weights-version` who computed them.";
    described(text(), words)
}

pub(crate) fn describe() -> Operation {
    Operation::new("createRawLogits", "The row of logits after every token")
        .reads(
            Members::new()
                .maybe("model", text(), "The first one when it is left out.")
                .always("input_ids", some(token_id(), None), "A sequence from its beginning.")
                .maybe("positions", some(count(), None), "0, 1, 2, ..., as many as tokens.")
                .and(describe_precision()),
        )
        .refuses(413, "The body is too long, or the answer would be.")
        .finds_model()
        .submits()
        .answers_with("application/octet-stream", describe_bytes())
}
