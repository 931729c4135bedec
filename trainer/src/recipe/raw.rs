//! A recipe as it is written. Each section's `Default` is the one place where its defaults stand.
//!
//! A field is an `Option` when its default depends on another field or when it is idle under some settings;
//! `resolve` fills it in or refuses it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::Message;

macro_rules! sections {
    ($($name:literal => $type:ty),* $(,)?) => {
        /// Dotted path of every section, with the keys it knows.
        pub(crate) fn sections() -> Vec<(&'static str, &'static [&'static str])> {
            vec![$(($name, super::keys::fields_of::<$type>())),*]
        }
    };
}

sections! {
    "" => RawRecipe, "student" => RawStudent, "teacher" => RawTeacher, "lora" => Lora, "data" => RawData,
    "rollout" => Rollout, "rollout.sampling" => Sampling, "loss" => RawLoss, "optim" => RawOptim,
    "schedule" => RawSchedule, "eval" => RawEval, "checkpoint" => Checkpoint, "log" => RawLog, "runtime" => RawRuntime,
}

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRecipe {
    /// The model that learns.
    pub student: RawStudent,
    /// The model that grades; absent for plain cross-entropy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<RawTeacher>,
    /// Low-rank branches; absent trains every weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// Prompts, and what is held out of them.
    pub data: RawData,
    /// How the student writes.
    pub rollout: Rollout,
    /// What is minimized.
    pub loss: RawLoss,
    /// AdamW.
    pub optim: RawOptim,
    /// Learning rate over time, and the length of the run.
    pub schedule: RawSchedule,
    /// Held-out measurements.
    pub eval: RawEval,
    /// What is kept on disk.
    pub checkpoint: Checkpoint,
    /// Names and metrics.
    pub log: RawLog,
    /// Device and memory.
    pub runtime: RawRuntime,
}

/// `[student]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawStudent {
    /// A folder, a GGUF file, `hf:org/name[@rev]` or `pypi:package==version`. Required.
    pub model: String,
    /// Keep only these layers of it, in this order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// A PEFT adapter to start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
}

/// `[teacher]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTeacher {
    /// `model`, `self` or `checkpoint`; told from `model` / `path` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// A model source, for `kind = "model"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A checkpoint folder (adapter or full weights), for `kind = "checkpoint"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A system prompt that only the teacher sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// Messages that only the teacher sees, put before the row's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub few_shot: Vec<Message>,
    /// Column of the data with text that only the teacher sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_column: Option<String>,
    /// The text around it; `{context}` stands for the column's value. Default `{context}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_template: Option<String>,
}

/// One value, or a list of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// `key = value`
    One(T),
    /// `key = [value, ...]`
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// The values as a slice.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

/// `[lora]`, with PEFT's names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale `alpha / r`.
    pub alpha: f64,
    /// Probability of zeroing an input of A during training.
    pub dropout: f64,
    /// Scale by `alpha / sqrt(r)`.
    pub rslora: bool,
    /// Module names, or `all-linear`.
    pub target_modules: OneOrMany<String>,
    /// Ranks of single modules.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of single modules.
    pub alpha_pattern: BTreeMap<String, f64>,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            r: 32,
            alpha: 32.0,
            dropout: 0.0,
            rslora: false,
            target_modules: OneOrMany::One("all-linear".to_owned()),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawData {
    /// JSONL or Parquet file, or a list of them. Required.
    pub path: OneOrMany<PathBuf>,
    /// `auto` (by file name), `jsonl` or `parquet`.
    pub format: String,
    /// A system prompt that the student sees (and the teacher, after its own).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// Whether prompts that are strings become a user message; default: when the model has a chat template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat: Option<bool>,
    /// Shuffle every epoch.
    pub shuffle: bool,
    /// Key of the shuffle; default `runtime.seed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Train on the first so many rows only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// File of held-out rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<PathBuf>,
    /// Or: hold out the last so many rows of `path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_rows: Option<usize>,
}

impl Default for RawData {
    fn default() -> Self {
        Self {
            path: OneOrMany::Many(Vec::new()),
            format: "auto".to_owned(),
            system_prompt: None,
            chat: None,
            shuffle: true,
            seed: None,
            limit: None,
            held_out: None,
            eval_rows: None,
        }
    }
}

/// `[rollout]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rollout {
    /// Prompts of one step.
    pub prompts_per_step: usize,
    /// Completions of one prompt.
    pub group_size: usize,
    /// Tokens of a completion, at most.
    pub max_new_tokens: usize,
    /// Tokens of a prompt, at most (the teacher's context not counted); a longer one is an error.
    pub max_prompt_tokens: usize,
    /// Go on after end-of-sequence tokens, so that every training completion has full length (for benchmarks).
    pub ignore_eos: bool,
    /// How tokens are drawn.
    pub sampling: Sampling,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            prompts_per_step: 8,
            group_size: 1,
            max_new_tokens: 128,
            max_prompt_tokens: 1024,
            ignore_eos: false,
            sampling: Sampling::default(),
        }
    }
}

/// `[rollout.sampling]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f64,
    /// Smallest set of tokens with this much probability.
    pub top_p: f64,
    /// The so many most likely tokens; 0 is all.
    pub top_k: usize,
    /// Tokens at least this likely relative to the most likely one.
    pub min_p: f64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0 }
    }
}

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
}

impl Default for RawOptim {
    fn default() -> Self {
        Self { lr: None, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 }
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
    /// `linear` and `cosine`: the rate at the end over the rate at the top. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr_ratio: Option<f64>,
}

impl Default for RawSchedule {
    fn default() -> Self {
        Self { kind: "constant".to_owned(), warmup_steps: 0, max_steps: None, epochs: None, min_lr_ratio: None }
    }
}

/// `[eval]`. Needs held-out rows (`data.held_out` or `data.eval_rows`), and is off without them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawEval {
    /// Measure every so many steps; 0 measures at the ends only. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// How many of the held-out rows. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompts: Option<usize>,
    /// Tokens of a held-out completion, at most. Default `rollout.max_new_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// Measure before the first step. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_start: Option<bool>,
    /// Measure after the last step. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_end: Option<bool>,
    /// Prompts whose greedy completions are shown at every measurement. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sample_prompts: Vec<String>,
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// Save every so many steps; 0 saves at the end (and on Ctrl-C) only.
    pub every: u64,
    /// Checkpoints kept.
    pub keep_last: usize,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every: 50, keep_last: 3 }
    }
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLog {
    /// Name of the run and of its folder under `runs/`. Default: the recipe's file name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Compare the sampler's log-probabilities with the trainer's on every sampled token.
    pub mismatch: bool,
}

impl Default for RawLog {
    fn default() -> Self {
        Self { name: None, mismatch: true }
    }
}

/// `[runtime]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRuntime {
    /// `auto`, `cpu` or `portable`.
    pub device: String,
    /// Key of every random number of the run.
    pub seed: u64,
    /// Tokens of one scheduler step, at most.
    pub token_budget: usize,
    /// Sequences generated at once. Default: those of one step, at most 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<usize>,
    /// Bytes of KV memory per model. Default: what `max_running` sequences of full length need.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_bytes: Option<u64>,
    /// Tokens of one training micro-batch, at most. Default: 2048, or one sequence of full length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_microbatch: Option<usize>,
    /// Keep only each layer's input during the forward pass and compute the layer again in the backward pass.
    pub gradient_checkpointing: bool,
}

impl Default for RawRuntime {
    fn default() -> Self {
        Self {
            device: "auto".to_owned(),
            seed: 0,
            token_budget: 512,
            max_running: None,
            kv_bytes: None,
            tokens_per_microbatch: None,
            gradient_checkpointing: false,
        }
    }
}
