//! The tokenizer over HTTP, in the form that lm-evaluation-harness and vLLM's clients use.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::fields::Fields;
use crate::limits::blocking_pool::{in_turn, run_blocking};
use crate::limits::memory;
use crate::logprobs::spelling;
use crate::openapi::Operation;
use crate::openapi::schema::{Members, any, boolean, count, list, map, nullable, text, token_id};
use crate::prompt::{
    Conversation, Prompt, PromptEncoding, TOKENIZE_BYTES, check_ids, describe_ending, describe_messages, ending,
    messages,
};

/// Bytes of a token as a text in an answer.
const STRING_BYTES: u64 = 160;

/// `POST /tokenize`: ids of `prompt`, or of `messages` as the chat template writes them.
pub(crate) async fn tokenize(State(app): State<Shared>, mut fields: Fields) -> Result<Json<Value>, ApiError> {
    let model = app.models.find(fields.take::<String>("model")?.as_deref())?;
    let with_strings: bool = fields.take("return_token_strs")?.unwrap_or(false);
    let Prompt { ids, text } = match (fields.take::<String>("prompt")?, fields.take::<Vec<Value>>("messages")?) {
        (Some(text), None) => {
            let add_special: bool = fields.take("add_special_tokens")?.unwrap_or(true);
            fields.finish()?;
            let model = Arc::clone(&model);
            let bytes = text.len();
            in_turn(bytes, bytes as u64 * TOKENIZE_BYTES, "to tokenize the text", move |_, _| {
                Ok(Prompt { ids: model.tokenizer()?.encode(&text, add_special)?, text: None })
            })
            .await?
        }
        (None, Some(given)) => {
            let conversation = Conversation {
                messages: messages(given)?,
                tools: fields.take("tools")?,
                variables: fields.take("chat_template_kwargs")?.unwrap_or_default(),
                ending: ending(&mut fields)?,
                encoding: PromptEncoding::whole(fields.take("add_special_tokens")?.unwrap_or(false)),
                field: "messages",
            };
            fields.finish()?;
            conversation.encode(&model).await?
        }
        _ => return Err(ApiError::invalid("prompt", "send either `prompt` or `messages`")),
    };
    let mut answer = json!({"count": ids.len(), "max_model_len": model.context(), "tokens": ids});
    if with_strings {
        memory::hold_answer(memory::take(ids.len() as u64 * STRING_BYTES, "the tokens as texts")?);
        let tokenizer = model.tokenizer()?;
        answer["token_strs"] = ids.iter().map(|&id| json!(spelling(tokenizer, id))).collect();
    }
    if let Some(text) = text {
        answer["rendered"] = json!(text);
    }
    Ok(Json(answer))
}

/// `POST /detokenize`: text of `tokens`.
pub(crate) async fn detokenize(State(app): State<Shared>, mut fields: Fields) -> Result<Json<Value>, ApiError> {
    let model = app.models.find(fields.take::<String>("model")?.as_deref())?;
    let tokens: Vec<u32> = fields.need("tokens")?;
    fields.finish()?;
    if !tokens.is_empty() {
        check_ids(&tokens, &model, "tokens")?;
    }
    let text = run_blocking(move || Ok(model.tokenizer()?.decode(&tokens, false)?)).await?;
    Ok(Json(json!({"prompt": text})))
}

/// Whose tokenizer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    model: Option<String>,
}

/// `GET /tokenizer_info`: the special tokens and the chat template, and what a remote student compares with its own.
pub(crate) async fn info(
    State(app): State<Shared>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(which) = which?;
    let model = app.models.find(which.model.as_deref())?;
    let tokenizer = model.tokenizer()?;
    let mut answer: Map<String, Value> = tokenizer.named_tokens();
    // Clients read these three whether the tokenizer has them or not. Without a padding token the end stands for it.
    let eos = tokenizer.eos().and_then(|id| tokenizer.token(id));
    let by_model = || model.files().config.eos_token_ids.first().and_then(|&id| tokenizer.token(id));
    let eos = eos.or_else(by_model);
    answer.entry("eos_token").or_insert_with(|| json!(eos));
    answer.entry("bos_token").or_insert(Value::Null);
    answer.entry("pad_token").or_insert_with(|| json!(eos));
    answer.insert("vocab_size".into(), json!(tokenizer.vocab_size()));
    answer.insert("fingerprint".into(), json!(tokenizer.fingerprint()));
    answer.insert("model_vocab_size".into(), json!(model.vocab_size()));
    answer.insert("eos_token_ids".into(), json!(model.files().config.eos_token_ids));
    answer.insert("max_model_len".into(), json!(model.context()));
    answer.insert("max_score_bytes".into(), json!(app.config.max_score_bytes));
    answer
        .insert("chat_template".into(), json!(model.files().chat_template.as_ref().map(|template| template.source())));
    Ok(Json(Value::Object(answer)))
}

fn model() -> Members {
    Members::new().maybe("model", text(), "The first one when it is left out.")
}

pub(crate) fn describe_tokenize() -> Operation {
    let answer = Members::new()
        .always("count", count(), "")
        .always("max_model_len", count(), "Tokens that the model can see at once.")
        .always("tokens", list(token_id()), "")
        .maybe("token_strs", list(text()), "With `return_token_strs`.")
        .maybe("rendered", text(), "What the chat template made of `messages`.");
    Operation::new("tokenize", "Token ids of a text, or of a conversation")
        .reads(
            model()
                .maybe("prompt", text(), "Either this or `messages`.")
                .maybe(
                    "add_special_tokens",
                    boolean(),
                    "As the tokenizer does by itself: true of a `prompt`, false of `messages` when it is left out.",
                )
                .maybe("messages", describe_messages(), "Either this or `prompt`.")
                .maybe("tools", any(), "Of `messages`: for the chat template.")
                .maybe("chat_template_kwargs", map(any()), "Of `messages`: variables for the chat template.")
                .and(describe_ending())
                .maybe("return_token_strs", boolean(), "The tokens as texts, too."),
        )
        .finds_model()
        .answers(answer.closed())
}

pub(crate) fn describe_detokenize() -> Operation {
    Operation::new("detokenize", "The text of token ids")
        .reads(model().always("tokens", list(token_id()), ""))
        .finds_model()
        .answers(Members::new().always("prompt", text(), "").closed())
}

pub(crate) fn describe_info() -> Operation {
    let answer = Members::new()
        .always("eos_token", nullable(text()), "")
        .always("bos_token", nullable(text()), "")
        .always("pad_token", nullable(text()), "`eos_token` where there is none.")
        .always("vocab_size", count(), "")
        .always("fingerprint", text(), "Equal for tokenizers that map equal texts to equal ids.")
        .always("model_vocab_size", count(), "Logits of a row; more than `vocab_size` where the embedding is padded.")
        .always("eos_token_ids", list(token_id()), "Tokens that end a text.")
        .always("max_model_len", count(), "Tokens that the model can see at once.")
        .always("max_score_bytes", count(), "Longest answer of /v1/score and /v1/raw_logits.")
        .always("chat_template", nullable(text()), "Jinja.");
    Operation::new("getTokenizerInfo", "Special tokens and chat template")
        .query("model", text(), "The first one when it is left out.")
        .refuses(400, "A parameter is unknown, or the model has no tokenizer.")
        .finds_model()
        .answers(answer.open())
}
