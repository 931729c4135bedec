//! How it learns: `[loss]`, `[optim]`, `[schedule]`.

use serde::{Deserialize, Serialize};

/// `[loss]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLoss {
    /// `reverse_kl`, `forward_kl`, `jsd`, `skewed_forward_kl`, `skewed_reverse_kl`, `top_k`, `policy_gradient` or
    /// `cross_entropy`.
    pub kind: String,
    /// `jsd` and `top_k`: 0 forward KL, 1 reverse KL. Default 0.5 (`jsd`), 1 (`top_k`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// `skewed_*`: weight of the other model in the mixture. Default 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// `top_k`: size of the support; the rest of the mass is one bucket. Default 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Divides both models' logits in the loss. Default 1. (`rollout.sampling.temperature` is for sampling.)
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// `policy_gradient`: factor on the advantage. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coef: Option<f64>,
    /// Probability that a prompt's completions are the student's own. Default 1 (`cross_entropy`: 0).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lmbda: Option<f64>,
    /// The other prompts are completed by the teacher, not by the data. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq_kd: Option<bool>,
    /// Loss of those other prompts: `same` or `cross_entropy`. Default `same`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub off_policy: Option<String>,
}

impl Default for RawLoss {
    fn default() -> Self {
        Self {
            kind: "reverse_kl".to_owned(),
            beta: None,
            alpha: None,
            top_k: None,
            temperature: None,
            coef: None,
            lmbda: None,
            seq_kd: None,
            off_policy: None,
        }
    }
}

/// `[optim]`: AdamW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawOptim {
    /// Learning rate. Default 1e-4 with `[lora]`, 1e-5 without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Decay of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Global norm that gradients are scaled down to; `inf` leaves them.
    pub max_grad_norm: f64,
    /// Keep masters and moments in the host's memory; every step moves them through the GPU a piece at a time. Default
    /// false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload: Option<bool>,
}

impl Default for RawOptim {
    fn default() -> Self {
        Self { lr: None, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0, offload: None }
    }
}

/// `[schedule]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawSchedule {
    /// `constant`, `linear` or `cosine`.
    pub kind: String,
    /// Steps over which the rate rises from 0.
    pub warmup_steps: u64,
    /// Optimizer steps of the run. This or `epochs` is required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Passes over the training rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u64>,
    /// End the run before that after the step in which its steps have taken so many seconds together; held-out
    /// measurements and checkpoints do not count. With `kind = "constant"` alone: no rate follows the clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<f64>,
    /// `linear` and `cosine`: the rate at the end over the rate at the top. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr_ratio: Option<f64>,
}

impl Default for RawSchedule {
    fn default() -> Self {
        Self {
            kind: "constant".to_owned(),
            warmup_steps: 0,
            max_steps: None,
            epochs: None,
            max_seconds: None,
            min_lr_ratio: None,
        }
    }
}
