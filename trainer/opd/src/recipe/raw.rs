//! A recipe as it is written. Each section's `Default` is the one place where its defaults stand.
//!
//! A field is an `Option` when its default depends on another field or when it is idle under some settings;
//! `resolve` fills it in or refuses it.

mod checkpointing;
mod models;
mod training;

use std::path::PathBuf;

use runtime::memory::KvSize;
use serde::{Deserialize, Serialize};

pub use checkpointing::GradientCheckpointing;
pub use models::{Lora, OneOrMany, RawStudent, RawTeacher};
pub use training::{RawLoss, RawOptim, RawSchedule};

macro_rules! sections {
    ($($name:literal => $type:ty),* $(,)?) => {
        /// Dotted path of every section, with its keys.
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
    /// How the student generates.
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

/// `[eval]`. Needs held-out rows (`data.held_out` or `data.eval_rows`) or `eval.tasks`, and is off without them.
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
    /// Measure before the first step, and ask the teacher the tasks. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_start: Option<bool>,
    /// Measure after the last step. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_end: Option<bool>,
    /// Prompts whose greedy completions are shown at every measurement, and once the teacher's (not with
    /// `teacher.context_column`: these prompts have no columns). Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sample_prompts: Vec<String>,
    /// Tasks of `arle eval` that the student is asked at every measurement, and the teacher at the start. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<String>,
    /// Folder with the tasks' data, or a data set of the hub with the same files: `hf:org/name[@revision]`; `hf:` takes each
    /// task's own from the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Take data files that are not the known ones. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub any_data: Option<bool>,
    /// Only the first documents of each task. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Few-shot examples. Default: each task's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_fewshot: Option<usize>,
    /// New tokens of an answer. Default: each task's number, else 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_gen_toks: Option<usize>,
    /// Tokens of prompt and answer together. Default 2048, or the model's context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// Put questions into the model's chat template. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apply_chat_template: Option<bool>,
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// Save every so many steps; 0 saves at the end (and on Ctrl-C) only.
    pub every: u64,
    /// Checkpoints kept.
    pub keep_last: usize,
    /// Keep besides, as `best`, the one with the best value of a measurement, such as `eval/kl` or `eval/arc_easy/acc`; a
    /// better one is saved as it is measured. Default: none is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<String>,
    /// Type of the weights of a full fine-tune: `float32`, `bfloat16` or `float16`. Default: that of the student's files
    /// (`float32` of a GGUF file). A run continues from weights in f32, which are kept beside others. Adapters are
    /// `float32`, as PEFT writes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<SavedDtype>,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every: 50, keep_last: 3, best: None, dtype: None }
    }
}

/// Type of saved weights, by PyTorch's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SavedDtype {
    /// IEEE 754, 32 bits.
    #[serde(alias = "f32")]
    Float32,
    /// The upper half of a `float32`.
    #[serde(alias = "bf16")]
    Bfloat16,
    /// IEEE 754, 16 bits.
    #[serde(alias = "f16")]
    Float16,
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
    /// `auto`, `cpu`, `cuda`, `cuda:N` or `reference`.
    pub device: String,
    /// Key of every random number of the run.
    pub seed: u64,
    /// Tokens of one scheduler step, at most. Default: 512, on a GPU 16384.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_budget: Option<usize>,
    /// Sequences generated at once. Default: those of one step, at most 64, on a GPU 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<usize>,
    /// KV memory: bytes of each model (`8589934592` or `"8GiB"`), or a share of the memory that everything else leaves, for
    /// all models together (`"60%"`; layers are then kept from what is left beside it). Default: what `max_running`
    /// sequences of full length need.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_bytes: Option<KvSize>,
    /// Tokens of one training micro-batch, at most. Default: 2048, on a GPU 4096 and with a
    /// `[lora]` 8192, or one sequence of full length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_microbatch: Option<usize>,
    /// Keep only each layer's input during the forward pass and compute the layer again in the backward pass: `true` for
    /// all layers, `false` for none, `"auto"` for as few as the memory demands.
    pub gradient_checkpointing: GradientCheckpointing,
    /// Generate with the adapter added to the weights, rounded to bf16 (on a GPU): faster rollouts, and sampler and
    /// trainer no longer compute the same numbers; `mismatch_kl` shows by how much.
    pub merge_adapter: bool,
    /// A sequence gives the same bits in any batch, in training and in generation, so that `mismatch_kl` is 0. The CPU
    /// always does so; a GPU is slower with it. Not on `reference`, nor with `merge_adapter`.
    pub deterministic: bool,
}

impl Default for RawRuntime {
    fn default() -> Self {
        Self {
            device: "auto".to_owned(),
            seed: 0,
            token_budget: None,
            max_running: None,
            kv_bytes: None,
            tokens_per_microbatch: None,
            gradient_checkpointing: GradientCheckpointing::default(),
            merge_adapter: false,
            deterministic: false,
        }
    }
}
