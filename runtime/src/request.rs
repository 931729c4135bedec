//! Requests to the runtime and their results.

mod score;
mod spec;
mod stats;

pub use crate::error::RequestError;
pub use crate::ids::ModelId;
pub use crate::model::LoraConfig;
use crate::sampler::SamplingParams;
pub use crate::sampler::TokenMask;
pub use crate::train::{
    NamedTensor, Offload, OptimReport, OptimStep, TrainReport, TrainRequest, TrainSequence, TrainState, Trainable,
    Training,
};
pub use score::{
    LogProbs, Pooling, Precision, ScoreOutput, ScoreRequest, ScoreResponse, ScoreSequence, SequenceScores,
};
pub use spec::{EngineConfig, ModelSpec, RuntimeSpec};
pub use stats::{GpuStats, ModelSnapshot, ModelStats, RuntimeStats, Snapshot, StepStats};

/// The text of a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompletionText {
    /// Not wanted: the tokenizer runs for stop strings only.
    None,
    /// As it follows the prompt: the decoding of both, less that of the prompt.
    AfterPrompt,
    /// As if it stood alone, where some vocabularies drop the first space (lm-evaluation-harness reads it so).
    Alone,
}

/// A request for a continuation.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// Which model.
    pub model: ModelId,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// How to sample and when to stop. `seed` and `index` key the random numbers.
    pub params: SamplingParams,
    /// Distinguishes requests with one seed (the index in a batch or group).
    pub index: u64,
    /// Whether its text is wanted, and how.
    pub text: CompletionText,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-sequence or stop token, or a stop string.
    Stop,
    /// `max_tokens`, or the model's context, was reached.
    Length,
    /// The request was cancelled.
    Cancelled,
}

impl FinishReason {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a pause does with running generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseMode {
    /// They go on afterwards.
    Keep,
    /// They end as [`FinishReason::Cancelled`], with what they have.
    Abort,
}

/// One sampled token.
#[derive(Debug, Clone)]
pub struct TokenEvent {
    /// The token.
    pub token: u32,
    /// ln p(token) under the model, T = 1, before penalties and truncation.
    pub logprob: f64,
    /// ln p(token) of the logits divided by the sampling temperature, without truncation.
    pub sampling_logprob: f64,
    /// The most likely tokens with their log-probabilities, when requested.
    pub top: Vec<(u32, f64)>,
    /// Log-probabilities of the tokens that the request named, in its order.
    pub given: Vec<f64>,
    /// Text that this token completed; empty while a character or a possible stop string is incomplete.
    pub text: String,
    /// Version of the weights that computed it.
    pub version: u64,
}

/// What arrives on a generation's stream.
#[derive(Debug)]
pub enum GenerateEvent {
    /// Its first step begins.
    Started {
        /// Seconds since its arrival at the device thread.
        queue_seconds: f64,
    },
    /// The next token.
    Token(TokenEvent),
    /// The end. `text` is what the detokenizer still held.
    Done {
        /// Why it ended.
        reason: FinishReason,
        /// Text held back until now.
        text: String,
        /// The stop string that ended it, by its place among those of the request.
        stop: Option<usize>,
        /// Prompt tokens that came from the prefix cache.
        cached_tokens: usize,
    },
    /// The request failed; nothing follows.
    Failed(crate::Error),
}

/// A finished generation.
#[derive(Debug, Clone)]
pub struct Generated {
    /// Sampled tokens, the stop token included.
    pub tokens: Vec<TokenEvent>,
    /// Their text without the stop string or special tokens; empty when no text was requested.
    pub text: String,
    /// Why it ended.
    pub reason: FinishReason,
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: usize,
}
