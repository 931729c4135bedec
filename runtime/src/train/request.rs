//! Requests to train, and their reports.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Loss, TeacherSource};

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
    #[serde(with = "crate::wire::adamw")]
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
