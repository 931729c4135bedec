//! From texts and conversations to token ids, off the event loop.

mod conversation;
mod input;

use std::fmt::Display;
use std::sync::Arc;

use crate::api_error::ApiError;
use crate::fields::Fields;
use crate::limits::blocking_pool::{Abandoned, SHORT, in_turn};
use crate::limits::memory::Share;
use crate::models::Model;
use crate::openapi::schema::{Members, boolean, integer};
use telemetry::Scope;

pub(crate) use conversation::{Conversation, conversation, describe_ending, describe_messages, ending, messages};
pub(crate) use input::{Input, describe_input};

/// A prompt and, where it was given whole, its text.
#[derive(Debug)]
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    pub(crate) text: Option<String>,
}

/// How texts become tokens, as far as a request has a say in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PromptEncoding {
    /// The tokenizer adds its special tokens, such as the one that begins a text.
    special: bool,
    /// Of longer prompts only the last tokens are kept, this many.
    keep: Option<usize>,
}

/// Texts of this many contexts are encoded where all but their end is dropped.
const MAX_DROPPED: usize = 64;

impl PromptEncoding {
    /// All of the text, with or without special tokens.
    pub(crate) fn whole(special: bool) -> Self {
        Self { special, keep: None }
    }

    /// Takes `add_special_tokens`, which is `special` where it is left out, and `truncate_prompt_tokens`.
    pub(crate) fn take(fields: &mut Fields, model: &Model, special: bool) -> Result<Self, ApiError> {
        const KEEP: &str = "truncate_prompt_tokens";
        let special = fields.take("add_special_tokens")?.unwrap_or(special);
        let context = model.context();
        let keep = match fields.take::<i64>(KEEP)? {
            None => None,
            Some(-1) => Some(context),
            Some(keep) => match usize::try_from(keep) {
                Ok(keep) if (1..=context).contains(&keep) => Some(keep),
                _ => {
                    let message =
                        format!("{KEEP} = {keep}: must be from 1 to the context of {context}, or -1 for all of it");
                    return Err(ApiError::invalid(KEEP, message));
                }
            },
        };
        Ok(Self { special, keep })
    }

    /// Ids of a text, which is checked for what the model can see; `share` is the memory for it.
    fn encode(self, text: String, model: &Model, field: &'static str, share: &mut Share) -> Result<Prompt, ApiError> {
        let limit = if self.keep.is_some() { model.context().saturating_mul(MAX_DROPPED) } else { model.context() };
        may_fit(&text, limit, model, field)?;
        to_tokenize(&text, share)?;
        let ids = model.tokenizer()?.encode(&text, self.special)?;
        Ok(self.cut(Prompt { ids, text: Some(text) }))
    }

    fn cut(self, mut prompt: Prompt) -> Prompt {
        let dropped = self.keep.map_or(0, |keep| prompt.ids.len().saturating_sub(keep));
        if dropped > 0 {
            prompt.ids.drain(..dropped);
            prompt.text = None;
        }
        prompt
    }
}

/// The fields that [`PromptEncoding::take`] takes.
pub(crate) fn describe_encoding(special: &str) -> Members {
    Members::new()
        .maybe(
            "add_special_tokens",
            boolean(),
            &format!("Whether the tokenizer adds its special tokens to a text; {special}."),
        )
        .maybe(
            "truncate_prompt_tokens",
            integer(-1..=i128::from(u32::MAX)),
            "Of a longer prompt only the last so many tokens are kept; -1 is the context.",
        )
}

/// Bytes that it takes to look at a byte of text, and to make tokens of it: the tokenizer keeps where each came from.
const LOOK_BYTES: u64 = 48;
pub(crate) const TOKENIZE_BYTES: u64 = 220;

/// Takes the memory for making tokens of a text, where that is worth counting.
fn to_tokenize(text: &str, share: &mut Share) -> Result<(), ApiError> {
    if text.len() <= SHORT {
        return Ok(());
    }
    let more = (text.len() as u64 * TOKENIZE_BYTES).saturating_sub(share.bytes());
    share.grow(more, "to tokenize the text")
}

impl Input {
    /// All prompts as token ids; `field` is the name of the input.
    pub(crate) async fn encode(
        self,
        model: &Arc<Model>,
        field: &'static str,
        encoding: PromptEncoding,
    ) -> Result<Vec<Prompt>, ApiError> {
        let model = Arc::clone(model);
        let bytes = self.longest_text();
        let work = in_turn(bytes, bytes as u64 * LOOK_BYTES, "the text", move |abandoned, share| {
            self.encode_now(&model, field, encoding, share, abandoned)
        });
        Scope::current().time("tokenize", work).await
    }

    /// Bytes of the longest text.
    fn longest_text(&self) -> usize {
        match self {
            Self::Text(one) => one.len(),
            Self::Texts(some) => some.iter().map(String::len).max().unwrap_or(0),
            Self::Ids(_) | Self::IdLists(_) => 0,
        }
    }

    fn encode_now(
        self,
        model: &Model,
        field: &'static str,
        encoding: PromptEncoding,
        mut share: Share,
        abandoned: &Abandoned,
    ) -> Result<Vec<Prompt>, ApiError> {
        let mut text = |text: String| -> Result<Prompt, ApiError> {
            abandoned.check()?;
            encoding.encode(text, model, field, &mut share)
        };
        let ids = |ids| encoding.cut(Prompt { ids, text: None });
        let prompts = match self {
            Self::Text(one) => vec![text(one)?],
            Self::Texts(some) => some.into_iter().map(text).collect::<Result<_, _>>()?,
            Self::Ids(one) => vec![ids(one)],
            Self::IdLists(some) => some.into_iter().map(ids).collect(),
        };
        if prompts.is_empty() {
            return Err(ApiError::invalid(field, format!("`{field}` is empty")));
        }
        for prompt in &prompts {
            check_ids(&prompt.ids, model, field)?;
        }
        Ok(prompts)
    }
}

/// Refuses what is longer than the model's context; `tokens` says how long it is.
pub(crate) fn too_long(tokens: impl Display, context: usize, field: &'static str) -> ApiError {
    ApiError::too_long(format!("{tokens} tokens exceed the model's context of {context}; send fewer")).about(field)
}

/// Refuses a text that is far too long before its tokens are made, which would take seconds.
fn may_fit(text: &str, limit: usize, model: &Model, field: &'static str) -> Result<(), ApiError> {
    match model.tokenizer()?.surely_exceeds(text, limit) {
        true => Err(too_long(format!("more than {limit}"), model.context(), field)),
        false => Ok(()),
    }
}

/// There must be something, and the model must know it.
pub(crate) fn check_ids(ids: &[u32], model: &Model, field: &'static str) -> Result<(), ApiError> {
    if ids.is_empty() {
        return Err(ApiError::invalid(field, format!("`{field}` has no token; at least one is needed")));
    }
    let vocab_size = model.vocab_size();
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        None => Ok(()),
        Some(id) => {
            Err(ApiError::invalid(field, format!("`{field}`: token id {id} is outside the vocabulary of {vocab_size}")))
        }
    }
}

/// Tokens that may follow a prompt, by the model's context and by the pages that there are.
pub(crate) fn room(model: &Model, total_pages: usize, prompt: usize) -> usize {
    // The last sampled token is never computed, so it needs no page.
    let pages = (total_pages * runtime::kv::PAGE_SIZE + 1).saturating_sub(prompt);
    model.context().saturating_sub(prompt).min(pages)
}
