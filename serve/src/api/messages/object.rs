//! The message as an object, at its beginning and at its end.

use runtime::request::FinishReason;
use serde_json::{Value, json};

use super::super::envelope::{Envelope, Usage};
use super::blocks::Blocks;

/// What stays the same while a message comes about.
pub(super) struct Head {
    pub(super) envelope: Envelope,
    pub(super) stops: Vec<String>,
    /// Tokens of the answer, at most.
    pub(super) limit: usize,
    /// More were asked for than the context holds.
    pub(super) shortened: bool,
}

/// Why a message has ended, and the text that ended it.
pub(super) struct Ended {
    pub(super) reason: FinishReason,
    pub(super) stop: Option<usize>,
}

impl Head {
    pub(super) fn object(&self, content: &[Value], ended: Option<&Value>, usage: Usage) -> Value {
        let Envelope { id, name, .. } = &self.envelope;
        let mut object = json!({
            "id": id,
            "type": "message",
            "role": "assistant",
            "model": name,
            "content": content,
            "stop_reason": null,
            "stop_sequence": null,
            "usage": self::usage(usage),
        });
        if let (Some(object), Some(Value::Object(ended))) = (object.as_object_mut(), ended) {
            object.extend(ended.clone());
        }
        object
    }

    /// `stop_reason` and what belongs to it.
    pub(super) fn ending(&self, ended: &Ended, blocks: &Blocks, usage: Usage) -> Value {
        let stop = ended.stop.and_then(|which| self.stops.get(which));
        let (reason, stop) = match (blocks.reader.reason(ended.reason), stop) {
            ("tool_calls", _) => ("tool_use", None),
            ("stop", Some(stop)) => ("stop_sequence", Some(stop)),
            ("stop", None) => ("end_turn", None),
            ("length", _) if self.shortened && usage.completion == self.limit => {
                ("model_context_window_exceeded", None)
            }
            ("length", _) => ("max_tokens", None),
            // It was ended from outside, and may be sent back to go on.
            _ => ("pause_turn", None),
        };
        json!({"stop_reason": reason, "stop_sequence": stop})
    }
}

/// What the prefix cache found is not told apart: nobody pays for it.
pub(super) fn usage(Usage { prompt, completion, reasoning, .. }: Usage) -> Value {
    json!({
        "input_tokens": prompt,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": completion,
        "output_tokens_details": {"thinking_tokens": reasoning},
        "service_tier": "standard",
    })
}
