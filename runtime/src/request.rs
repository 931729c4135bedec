//! Requests to the runtime and their results.

mod error;
mod score;
mod spec;
mod stats;

use serde::{Deserialize, Serialize};
use std::sync::Arc;

pub use crate::ids::ModelId;
use crate::sampler::SamplingParams;
use crate::train::{Loss, TeacherSource};
pub use error::RequestError;
pub use score::{
    LogProbs, Pooling, Precision, ScoreOutput, ScoreRequest, ScoreResponse, ScoreSequence, SequenceScores,
};
pub use spec::{EngineConfig, LoraConfig, ModelSpec, Offload, RuntimeSpec, Trainable, Training};
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

/// Which tokens a generation may continue with, decided by all before them: the grammar of structured output.
///
/// The generation's steps wait for its tokens, so it gets at most every other step of an engine that is ahead of them.
pub trait TokenMask: Send + Sync {
    /// Sets the bits of the tokens that may come next: token t is bit `t % 32` of word `t / 32`. All are 0 before.
    fn allowed(&mut self, bits: &mut [u32]);

    /// This token was drawn.
    fn accept(&mut self, token: u32);
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
    /// The most likely tokens with their log-probabilities, when asked for.
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
    /// Their text without the stop string or special tokens; empty when no text was asked for.
    pub text: String,
    /// Why it ended.
    pub reason: FinishReason,
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: usize,
}

/// One sequence of a training or evaluation batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrainSequence {
    /// Prompt and completion as the student sees them.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt; the rest is scored.
    pub prompt_len: usize,
    /// The teacher's prompt, when it differs (privileged context); the completion is the same.
    pub teacher_prompt: Option<Vec<u32>>,
    /// ln p of each completion token when it was sampled (at the sampling temperature); empty when it was not sampled.
    pub sampled_logprobs: Vec<f32>,
    /// ln p(T = 1) of each completion token from the sampler, for `mismatch_kl`; empty when not sampled.
    pub raw_logprobs: Vec<f32>,
    /// Weight of each completion token in the loss before normalization; 0 leaves it out.
    pub weights: Vec<f32>,
}

/// One micro-batch through student and teacher.
#[derive(Clone)]
pub struct TrainRequest {
    /// The sequences; the caller keeps their token total within its budget.
    pub sequences: Vec<TrainSequence>,
    /// The loss.
    pub loss: Arc<dyn Loss>,
    /// The loss is the weighted sum over tokens divided by this: the valid tokens of the *whole* step.
    pub normalizer: f64,
    /// Add gradients; `false` evaluates.
    pub backward: bool,
    /// Keys dropout: the step and micro-batch.
    pub dropout_key: u64,
    /// The teacher of a loss that needs one.
    pub teacher: Option<TeacherSource>,
}

/// Sums over a micro-batch's weighted tokens, and times.
#[derive(Debug, Clone, Default)]
pub struct TrainReport {
    /// The loss (already divided by the normalizer).
    pub loss: f64,
    /// Tokens with a weight.
    pub tokens: f64,
    /// Named sums over tokens (`entropy`, `teacher_kl`, ...); the caller divides.
    pub sums: std::collections::BTreeMap<&'static str, f64>,
    /// The largest of each of those values.
    pub maxima: std::collections::BTreeMap<&'static str, f64>,
    /// Bytes that the forward pass kept for the backward pass.
    pub activation_bytes: u64,
    /// Seconds in the teacher's forward.
    pub teacher_seconds: f64,
    /// Seconds in the student's forward and the loss.
    pub forward_seconds: f64,
    /// Seconds in backward.
    pub backward_seconds: f64,
}

/// One optimizer step on the accumulated gradients.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct OptimStep {
    /// Learning rate.
    pub lr: f64,
    /// AdamW's constants.
    #[serde(with = "crate::engine::order::wire::adamw")]
    pub adamw: autograd::adamw::AdamW,
    /// Gradients are scaled down to this global norm; `None` leaves them.
    pub max_grad_norm: Option<f64>,
}

/// What a step did.
#[derive(Debug, Clone, Copy)]
pub struct OptimReport {
    /// Global norm before clipping.
    pub grad_norm: f64,
    /// False when loss or gradients were not finite: then nothing changed.
    pub applied: bool,
    /// Optimizer steps taken so far.
    pub step: u64,
}

/// A named tensor of an export, row-major on the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NamedTensor {
    /// Name in the file.
    pub name: String,
    /// Shape in the file.
    pub shape: Vec<usize>,
    /// Values.
    pub values: Vec<f32>,
}

/// Everything that training changes, to write or to restore.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TrainState {
    /// Trained weights under their Hugging Face or PEFT names (f32 masters).
    pub weights: Vec<NamedTensor>,
    /// AdamW's moments: `{name}.m` and `{name}.v`.
    pub moments: Vec<NamedTensor>,
    /// Optimizer steps taken.
    pub step: u64,
}
