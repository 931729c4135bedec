//! What every answer of a model carries: id, time, model, weights, token counts.

use std::sync::Arc;

use runtime::request::TokenEvent;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::app::App;
use crate::fields::Fields;
use crate::ids;
use crate::models::Model;
use crate::openapi::Operation;
use crate::openapi::schema::{Members, Schema, boolean, count, integer, list, named, nullable, one_of, text};

/// The constant part of an answer.
pub(super) struct Envelope {
    pub(super) id: String,
    pub(super) created: u64,
    /// The name that the request used.
    pub(super) name: String,
    model: Arc<Model>,
    /// Version of the weights of the newest token.
    version: u64,
}

impl Envelope {
    pub(super) fn new(prefix: &str, app: &App, model: &Arc<Model>, name: Option<String>) -> Self {
        Self {
            id: ids::fresh(prefix),
            created: ids::unix_time(),
            name: name.unwrap_or_else(|| model.name().to_owned()),
            model: Arc::clone(model),
            version: model.of(&app.runtime.snapshot()).version,
        }
    }

    /// A token was computed by the weights of this version.
    pub(super) fn computed_by(&mut self, version: u64) {
        self.version = version;
    }

    /// The model with the weights of the newest token.
    pub(super) fn fingerprint(&self) -> String {
        self.model.fingerprint(self.version)
    }

    /// The object of this kind without its choices.
    pub(super) fn head(&self, kind: &str) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.name,
            "system_fingerprint": self.fingerprint(),
        })
    }

    /// The object of this kind with these choices.
    pub(super) fn object(&self, kind: &str, choices: Value) -> Value {
        let mut object = self.head(kind);
        object["choices"] = choices;
        object
    }
}

/// Versions of the weights that computed a completion, each once.
pub(super) fn versions(tokens: &[TokenEvent]) -> Vec<u64> {
    let mut versions: Vec<u64> = tokens.iter().map(|token| token.version).collect();
    versions.dedup();
    versions
}

pub(super) fn token_ids(tokens: &[TokenEvent]) -> Vec<u32> {
    tokens.iter().map(|token| token.token).collect()
}

/// Tokens so far.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Usage {
    pub(super) prompt: usize,
    pub(super) cached: usize,
    pub(super) completion: usize,
    /// Those of them that were reasoning.
    pub(super) reasoning: usize,
}

impl Usage {
    /// OpenAI's object.
    pub(super) fn body(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        })
    }
}

/// `stream` and `stream_options`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streaming {
    /// A last chunk with the token counts.
    usage: bool,
    /// Token counts in every chunk.
    continuous: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
    /// Asks for padding against observers of an encrypted connection's lengths. It changes no result.
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

impl Streaming {
    /// `None` for one whole answer.
    pub(super) fn take(fields: &mut Fields) -> Result<Option<Self>, ApiError> {
        let stream = fields.take("stream")?.unwrap_or(false);
        let options: Option<StreamOptions> = fields.take("stream_options")?;
        if !stream {
            return match options {
                None => Ok(None),
                Some(_) => Err(ApiError::invalid("stream_options", "`stream_options` needs `stream`: true")),
            };
        }
        let flag = |read: fn(&StreamOptions) -> Option<bool>| options.as_ref().and_then(read).unwrap_or(false);
        let streaming = Self { usage: flag(|o| o.include_usage), continuous: flag(|o| o.continuous_usage_stats) };
        if streaming.continuous && !streaming.usage {
            let message = "`continuous_usage_stats` needs `include_usage`: true";
            return Err(ApiError::invalid("stream_options", message));
        }
        Ok(Some(streaming))
    }

    /// Adds the token counts that belong into a chunk with choices.
    pub(super) fn count(self, mut chunk: Value, usage: Usage) -> Value {
        if self.usage {
            chunk["usage"] = if self.continuous { usage.body() } else { Value::Null };
        }
        chunk
    }

    /// The chunk after all choices, when it was asked for.
    pub(super) fn last(self, mut chunk: Value, usage: Usage) -> Option<Value> {
        self.usage.then(|| {
            chunk["usage"] = usage.body();
            chunk
        })
    }
}

/// The fields that [`Streaming::take`] takes.
pub(super) fn describe_streaming() -> Members {
    let options = Members::new()
        .maybe("include_usage", boolean(), "A last chunk with the token counts.")
        .maybe("continuous_usage_stats", boolean(), "Token counts in every chunk; needs `include_usage`.")
        .maybe("include_obfuscation", boolean(), "Accepted; it changes no result.");
    Members::new().maybe("stream", boolean(), "The answer as server-sent events.").maybe(
        "stream_options",
        options.sent(),
        "Needs `stream`.",
    )
}

/// [`Envelope::object`] of this kind.
pub(super) fn describe_object(kind: &str, choice: Schema) -> Members {
    Members::new()
        .always("id", text(), "")
        .always("object", one_of(&[kind]), "")
        .always("created", count(), "Seconds since 1970.")
        .always("model", text(), "The name that the request used.")
        .always("system_fingerprint", text(), "MODEL@VERSION of the weights.")
        .always("choices", list(choice), "")
}

/// Why a completion has ended.
pub(super) fn describe_finish() -> Schema {
    one_of(&["stop", "length", "tool_calls", "cancelled"])
}

/// The member that says which weights computed a completion.
pub(super) fn describe_versions() -> Schema {
    list(integer(0..))
}

/// Adds the schemas that answers of models share.
pub(super) fn define_shared(operation: Operation) -> Operation {
    let details = |name| Members::new().always(name, count(), "").closed();
    let usage = Members::new()
        .always("prompt_tokens", count(), "")
        .always("completion_tokens", count(), "")
        .always("total_tokens", count(), "")
        .always("prompt_tokens_details", details("cached_tokens"), "Found in the prefix cache.")
        .always("completion_tokens_details", details("reasoning_tokens"), "");
    let prompt = Members::new().always("prompt_tokens", count(), "").always("total_tokens", count(), "");
    operation.defines("Usage", usage.closed()).defines("PromptUsage", prompt.closed())
}

/// The token counts of a chunk: absent, `null` or there, as `stream_options` has it.
pub(super) fn describe_chunk_usage() -> Schema {
    nullable(named("Usage"))
}
