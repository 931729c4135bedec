//! The response as an object, at any time of its life.

use runtime::request::FinishReason;
use serde_json::{Map, Value, json};

use super::super::envelope::{Envelope, Usage};
use crate::api_error::ApiError;
use crate::ids;

/// What stays the same while a response comes about.
pub(super) struct Head {
    pub(super) envelope: Envelope,
    /// What it repeats of the request.
    pub(super) echo: Map<String, Value>,
}

/// How far it is.
pub(super) enum Status<'a> {
    InProgress,
    /// The model has ended it, or the length has.
    Ended(FinishReason, Usage),
    Failed(&'a ApiError),
}

impl Status<'_> {
    /// The name of the status, and of the event that tells it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Ended(FinishReason::Stop, _) => "completed",
            Self::Ended(..) => "incomplete",
            Self::Failed(_) => "failed",
        }
    }
}

impl Head {
    pub(super) fn object(&self, status: &Status<'_>, output: &[Value], versions: &[u64]) -> Value {
        let Envelope { id, created, name, .. } = &self.envelope;
        let (mut completed, mut incomplete, mut failed, mut usage) = (None, Value::Null, Value::Null, Value::Null);
        match status {
            Status::InProgress => {}
            Status::Ended(reason, counts) => {
                usage = self::usage(*counts);
                match reason {
                    FinishReason::Stop => completed = Some(ids::unix_time()),
                    FinishReason::Length => incomplete = json!({"reason": "max_output_tokens"}),
                    FinishReason::Cancelled => {}
                }
            }
            Status::Failed(error) => failed = self::error(error),
        }
        let mut object = json!({
            "id": id,
            "object": "response",
            "created_at": created,
            "completed_at": completed,
            "status": status.name(),
            "background": false,
            "error": failed,
            "incomplete_details": incomplete,
            "model": name,
            "system_fingerprint": self.envelope.fingerprint(),
            "weights_versions": versions,
            "output": output,
            "previous_response_id": null,
            "store": false,
            "truncation": "disabled",
            "usage": usage,
        });
        if let Some(fields) = object.as_object_mut() {
            fields.extend(self.echo.clone());
        }
        object
    }
}

fn usage(Usage { prompt, cached, completion, reasoning }: Usage) -> Value {
    json!({
        "input_tokens": prompt,
        // Nothing is paid for what a prompt leaves in the cache, so it is not counted.
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + completion,
    })
}

/// OpenAI has few codes for what ends a response; ours is kept beside.
fn error(error: &ApiError) -> Value {
    json!({"code": "server_error", "message": error.message, "param": error.param, "type": error.code})
}
