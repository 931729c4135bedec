//! What the runtime starts from.

use std::path::PathBuf;
use std::sync::Arc;

use autograd::Device;

use crate::files::ModelFiles;

/// Everything the runtime needs to start.
#[derive(Clone)]
pub struct RuntimeSpec {
    /// Where to run.
    pub device: Device,
    /// A sequence gives the same bits alone, in any batch, in chunks, after a prefix hit and in training. The CPU always
    /// does; a GPU is slower with it.
    pub deterministic: bool,
    /// The student, or the only model.
    pub student: ModelSpec,
    /// The teacher. When it names the same files and layers as the student, the base weights exist once, unless it is
    /// offloaded.
    pub teacher: Option<ModelSpec>,
    /// How the student is trained; `None` serves only.
    pub training: Option<Training>,
    /// Scheduler and memory limits.
    pub engine: EngineConfig,
}

impl RuntimeSpec {
    /// Whether requests go to the teacher.
    #[must_use]
    pub fn teacher_generates(&self) -> bool {
        self.training.as_ref().is_none_or(|training| training.teacher_generates)
    }

    /// Whether student and teacher are the same layers of the same files, whose weights are then loaded once. A teacher
    /// that waits on the host has weights of its own.
    #[must_use]
    pub fn teacher_shares_weights(&self) -> bool {
        let offloaded = self.training.as_ref().is_some_and(|training| training.offload.teacher);
        !offloaded
            && self.teacher.as_ref().is_some_and(|teacher| {
                teacher.files.path == self.student.files.path && teacher.layers == self.student.layers
            })
    }
}

/// One model to load.
#[derive(Clone)]
pub struct ModelSpec {
    /// An opened model.
    pub files: Arc<ModelFiles>,
    /// Keep only these layers of it, in this order.
    pub layers: Option<Vec<usize>>,
    /// A PEFT adapter folder to apply on top, frozen unless `training` continues it.
    pub adapter: Option<PathBuf>,
}

/// Limits of the engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Tokens computed in one step, at most (prefill chunks and decodes together).
    pub token_budget: usize,
    /// Sequences running at once.
    pub max_running: usize,
    /// Requests waiting at most; one more is refused.
    pub max_waiting: usize,
    /// Bytes of KV memory of each model.
    pub kv_bytes: usize,
    /// Whether finished prefixes are kept for reuse.
    pub prefix_cache: bool,
    /// Whether a step is launched before the host has processed the results of the one before. The tokens are the same.
    pub async_scheduling: bool,
    /// Whether steps beside running generations take so few tokens of prompts that these wait little more than without.
    /// For streams that somebody reads; a batch of work is done sooner without.
    pub short_steps: bool,
}

impl EngineConfig {
    /// Tokens of one scheduler step that keep `device` busy: a GPU wants whole prompts, a CPU short steps between which
    /// running sequences get their next token.
    #[must_use]
    pub fn default_token_budget(device: Device) -> usize {
        match device {
            Device::Cuda(_) => 16384,
            Device::Cpu | Device::Portable => 512,
        }
    }

    /// A GPU computes while the host looks at results; on a CPU both are the same cores.
    #[must_use]
    pub fn default_async_scheduling(device: Device) -> bool {
        matches!(device, Device::Cuda(_))
    }
}

/// How the student is trained.
#[derive(Debug, Clone)]
pub struct Training {
    /// What is trained.
    pub trainable: Trainable,
    /// Layers, from the first on, that keep only their input during the forward pass and run again during backward.
    /// Backward begins at the last layer, so the memory of the others is free by then.
    pub recomputed_layers: usize,
    /// What waits in the host's memory instead of the card's.
    pub offload: Offload,
    /// The teacher completes prompts as well. One that only scores has KV memory of one page.
    pub teacher_generates: bool,
}

/// What is trained.
#[derive(Debug, Clone)]
pub enum Trainable {
    /// Low-rank branches on frozen weights.
    Lora(LoraConfig),
    /// Every weight of the student.
    Full,
}

/// What lies in pinned memory of the host and passes through the card when it is needed; on a GPU only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// The layers of the teacher, one after another.
    pub teacher: bool,
    /// Masters and moments, a piece at a time.
    pub optimizer: bool,
}

/// Low-rank adaptation (<https://arxiv.org/abs/2106.09685>), with PEFT's names and rules.
#[derive(Debug, Clone)]
pub struct LoraConfig {
    /// Rank of every branch without a pattern of its own.
    pub r: usize,
    /// Numerator of the scale: `alpha / r`, or `alpha / sqrt(r)` with `rslora`.
    pub alpha: f64,
    /// Probability of zeroing an input of A during training.
    pub dropout: f64,
    /// Rank-stabilised scale.
    pub rslora: bool,
    /// Module names (`q_proj`, ...), or the single entry `all-linear`.
    pub target_modules: Vec<String>,
    /// Ranks of modules whose name matches `(.*\.)?KEY$`.
    pub rank_pattern: std::collections::BTreeMap<String, usize>,
    /// Alphas of modules whose name matches `(.*\.)?KEY$`.
    pub alpha_pattern: std::collections::BTreeMap<String, f64>,
    /// Answer requests with the branches added to the weights (on a GPU): faster, but the weights' precision rounds what
    /// the branches add, so that the sampler's log-probabilities differ from the trainer's.
    pub merge_for_requests: bool,
    /// Seed of A's initial values.
    pub seed: u64,
}
