//! `POST /v1/responses/input_tokens`: how many tokens the prompt of a response has. Nothing is computed.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::describe::{describe_conversation, describe_question};
use super::question;
use crate::api_error::ApiError;
use crate::app::Shared;
use crate::fields::Fields;
use crate::openapi::Operation;
use crate::openapi::schema::{Members, count, null, one_of, text};

const KIND: &str = "response.input_tokens";

/// Counts the prompt of a response with the same fields.
pub(crate) async fn count_input(State(app): State<Shared>, mut fields: Fields) -> Result<Json<Value>, ApiError> {
    let model = app.models.find(fields.take::<String>("model")?.as_deref())?;
    let (question, _) = question::take(&mut fields, &model)?;
    fields.only("personality", &[], "models here have no such presets; say it in `instructions`")?;
    fields.finish()?;
    let input_tokens = question.ask().await?.prompt.len();
    Ok(Json(json!({"object": KIND, "input_tokens": input_tokens})))
}

pub(crate) fn describe_count() -> Operation {
    let answer = Members::new().always("object", one_of(&[KIND]), "").always("input_tokens", count(), "");
    Operation::new("countInputTokens", "How many tokens the prompt of a response has")
        .reads(
            Members::new()
                .maybe("model", text(), "The first one when it is left out.")
                .and(describe_conversation())
                .and(describe_question())
                .maybe("personality", null(), "Nothing but `null` is honoured."),
        )
        .finds_model()
        .answers(answer.closed())
}
