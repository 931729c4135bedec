//! Recipes: TOML in, checked and complete settings out.
//!
//! [`raw`] is the file with its defaults, `resolve` checks every range and refuses idle keys, and the result can
//! write itself as a recipe again ([`Recipe::to_toml`]).

mod differences;
pub(crate) mod keys;
mod names;
mod overrides;
mod paths;
pub mod raw;
mod remote;
mod resolve;
mod shortened;
mod source;

use std::path::{Path, PathBuf};

use runtime::memory::{Checkpointing, KvSize};
use runtime::read;
use runtime::request::{LoraConfig, Offload, Trainable, Training};

pub use overrides::Override;
pub use raw::{Lora, OneOrMany, Rollout, Sampling, SavedDtype};
pub use remote::{Api, Remote, RemoteRows};
pub(crate) use resolve::learning_rate;
pub use source::RecipeSource;

use crate::schedule::Schedule;
use crate::{Error, Result};
use command::device::DeviceChoice;
use data::{FileFormat, Message};

/// A complete, checked run.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Name of the run.
    pub name: String,
    /// The model that learns.
    pub student: Student,
    /// The model that scores, when the loss needs one.
    pub teacher: Option<Teacher>,
    /// `None` trains every weight.
    pub lora: Option<Lora>,
    /// Where prompts come from.
    pub data: Data,
    /// How the student generates.
    pub rollout: Rollout,
    /// What is minimized.
    pub objective: Objective,
    /// AdamW.
    pub optim: Optim,
    /// Learning rate over time.
    pub schedule: Schedule,
    /// How long the run is.
    pub length: Length,
    /// Seconds of steps after which it ends before that.
    pub max_seconds: Option<f64>,
    /// Held-out measurements; `None` without held-out rows.
    pub eval: Option<Eval>,
    /// What is kept on disk.
    pub checkpoint: raw::Checkpoint,
    /// Whether the sampler's and the trainer's log-probabilities are compared at every step.
    pub mismatch: bool,
    /// Device and memory.
    pub runtime: Runtime,
    /// What was made of its changes, for people.
    pub notes: Vec<String>,
    /// The recipe with every default that applies filled in.
    filled: raw::RawRecipe,
}

/// The model that learns.
#[derive(Debug, Clone)]
pub struct Student {
    /// Model source.
    pub model: String,
    /// Layers kept.
    pub layers: Option<Vec<usize>>,
    /// PEFT adapter to start from.
    pub adapter: Option<PathBuf>,
    /// Tokens that end a completion; none: those of the model's files.
    pub eos_tokens: Vec<String>,
}

/// The model that scores.
#[derive(Debug, Clone)]
pub struct Teacher {
    /// Its weights.
    pub weights: TeacherWeights,
    /// What only it sees.
    pub context: Option<TeacherContext>,
}

/// Whose weights the teacher has.
#[derive(Debug, Clone, PartialEq)]
pub enum TeacherWeights {
    /// Another model source.
    Model(String),
    /// What the student starts from.
    Student,
    /// A folder with an adapter on the student's base, or with full weights.
    Checkpoint(PathBuf),
    /// Another process serves it.
    Remote(Remote),
}

/// Privileged context: seen by the teacher, not by the student.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TeacherContext {
    /// System prompt.
    pub system_prompt: Option<String>,
    /// Messages before the row's own.
    pub few_shot: Vec<Message>,
    /// Column and template of per-row text.
    pub column: Option<(String, String)>,
}

/// Where prompts come from.
#[derive(Debug, Clone)]
pub struct Data {
    /// Files.
    pub paths: Vec<PathBuf>,
    /// Their format; `None` infers it from each name.
    pub format: Option<FileFormat>,
    /// A column that is used besides prompts and completions.
    pub context_column: Option<String>,
    /// System prompt that the student sees.
    pub system_prompt: Option<String>,
    /// Whether string prompts become user messages; `None`: when there is a chat template.
    pub chat: Option<bool>,
    /// Shuffle every epoch.
    pub shuffle: bool,
    /// Key of the shuffle.
    pub seed: u64,
    /// Training rows used.
    pub limit: Option<usize>,
    /// Rows that are never trained on.
    pub held_out: Option<HeldOut>,
}

/// Where held-out rows come from.
#[derive(Debug, Clone, PartialEq)]
pub enum HeldOut {
    /// A file of their own.
    File(PathBuf),
    /// The last rows of the training files.
    LastRows(usize),
}

/// What is minimized.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// The loss of the student's own completions.
    pub loss: LossKind,
    /// Probability that a prompt's completions are the student's own.
    pub lmbda: f64,
    /// What the other prompts get.
    pub off_policy: OffPolicy,
}

/// The losses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LossKind {
    /// A divergence between the two next-token distributions.
    Divergence {
        /// Which one.
        divergence: autograd::ops::Divergence,
        /// Divides both models' logits.
        temperature: f64,
    },
    /// Per-token policy gradient towards the teacher's log-probabilities.
    PolicyGradient {
        /// Factor on the advantage.
        coef: f64,
    },
    /// Cross-entropy on given completions.
    CrossEntropy,
}

/// Completions that are not the student's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffPolicy {
    /// From the teacher (sequence-level distillation) instead of the data.
    pub from_teacher: bool,
    /// Trained with cross-entropy instead of the loss.
    pub cross_entropy: bool,
}

/// AdamW.
#[derive(Debug, Clone, Copy)]
pub struct Optim {
    /// Learning rate at the top of the schedule.
    pub lr: f64,
    /// Its constants.
    pub adamw: autograd::adamw::AdamW,
    /// Gradients are scaled down to this norm.
    pub max_grad_norm: Option<f64>,
}

/// Length of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Optimizer steps.
    Steps(u64),
    /// Passes over the training rows.
    Epochs(u64),
}

impl Length {
    /// Optimizer steps of a run over `rows` training rows; a last, smaller step is not taken short: the rows of the
    /// next pass fill it.
    #[must_use]
    pub fn steps(self, rows: usize, prompts_per_step: usize) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Epochs(epochs) => (epochs * rows as u64).div_ceil(prompts_per_step as u64),
        }
    }
}

/// Held-out measurements.
#[derive(Debug, Clone, PartialEq)]
pub struct Eval {
    /// Every so many steps; 0: at the ends only.
    pub every: u64,
    /// Rows used; `None`: all.
    pub prompts: Option<usize>,
    /// Tokens of a completion, at most.
    pub max_new_tokens: usize,
    /// Before the first step.
    pub at_start: bool,
    /// After the last step.
    pub at_end: bool,
    /// Prompts whose greedy completions are shown.
    pub sample_prompts: Vec<String>,
    /// Tasks of `arle eval`.
    pub benchmark: Option<Benchmark>,
}

/// Tasks of `arle eval` during a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Benchmark {
    /// Names of tasks, groups, or .toml files.
    pub tasks: Vec<String>,
    /// Folder with their data.
    pub data: PathBuf,
    /// Whether files that are not the known ones are taken.
    pub any_data: bool,
    /// Only the first documents of each.
    pub limit: Option<usize>,
    /// Few-shot examples instead of each task's number.
    pub num_fewshot: Option<usize>,
    /// New tokens instead of each task's number.
    pub max_gen_toks: Option<usize>,
    /// Tokens of prompt and answer together, at most; `None`: 2048, or the model's context.
    pub max_length: Option<usize>,
    /// Whether prompts are conversations.
    pub chat: bool,
}

/// Device and memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Runtime {
    /// Where to run.
    pub device: DeviceChoice,
    /// Key of every random number.
    pub seed: u64,
    /// Tokens of one scheduler step.
    pub token_budget: usize,
    /// Sequences generated at once.
    pub max_running: usize,
    /// Size of the KV memory; `None`: as much as the sequences need.
    pub kv_bytes: Option<KvSize>,
    /// Tokens of one training micro-batch.
    pub tokens_per_microbatch: usize,
    /// Which layers run again in the backward pass.
    pub gradient_checkpointing: Checkpointing,
    /// What waits in the host's memory.
    pub offload: Offload,
    /// Generate with the adapter added to the weights.
    pub merge_adapter: bool,
    /// Results of a sequence do not depend on its batch.
    pub deterministic: bool,
}

impl Recipe {
    /// Reads, overrides, checks and completes the recipe at `path`.
    ///
    /// Relative paths in the file are relative to its folder; those in `overrides` to the current one.
    ///
    /// # Errors
    /// Whatever is wrong with it, by key.
    pub fn load(path: &Path, overrides: &[Override]) -> Result<Self> {
        let text = read::text(path, read::CONFIGURATION).map_err(Error::UnreadableRecipe)?;
        let name = path.file_stem().map_or_else(|| "run".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, &path.display().to_string(), &name, folder, overrides)
    }

    /// [`Recipe::load`] on text.
    ///
    /// # Errors
    /// Whatever is wrong with it, by key.
    pub fn parse(text: &str, origin: &str, name: &str, folder: &Path, overrides: &[Override]) -> Result<Self> {
        let syntax = |what: String| Error::from(command::Error::Syntax { origin: origin.to_owned(), what });
        let mut table: toml::Table =
            text.parse().map_err(|e: toml::de::Error| syntax(command::parse_errors::plain(&e.to_string())))?;
        paths::make_absolute(&mut table, folder)?;
        Self::from_table(table, origin, name, overrides)
    }

    /// [`Recipe::parse`] on a table with absolute paths.
    fn from_table(mut table: toml::Table, origin: &str, name: &str, overrides: &[Override]) -> Result<Self> {
        let written = table.clone();
        for change in overrides {
            change.apply(&mut table)?;
        }
        let notes = shortened::apply(&mut table, &written, overrides);
        paths::make_absolute(&mut table, Path::new("."))?;
        keys::check(&table)?;
        let syntax = |e: toml::de::Error| {
            Error::from(command::Error::Syntax {
                origin: origin.to_owned(),
                what: command::parse_errors::plain(&e.to_string()),
            })
        };
        let raw: raw::RawRecipe = table.try_into().map_err(syntax)?;
        Ok(Self { notes: notes.into_iter().collect(), ..resolve::resolve(raw, name)? })
    }

    /// Refuses overrides of keys that no recipe has.
    ///
    /// # Errors
    /// The first such key.
    pub fn check_keys(overrides: &[Override]) -> Result<()> {
        let mut table = toml::Table::new();
        overrides.iter().try_for_each(|change| change.apply(&mut table))?;
        keys::check(&table)
    }

    /// The recipe with every default filled in; parses to the same run.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(&self.filled).expect("a recipe holds only what TOML can write")
    }

    /// What the runtime has to train; the memory plan decides how many layers are recomputed.
    #[must_use]
    pub fn training(&self) -> Training {
        let trainable = match &self.lora {
            None => Trainable::Full,
            Some(lora) => Trainable::Lora(LoraConfig {
                r: lora.r,
                alpha: lora.alpha,
                dropout: lora.dropout,
                rslora: lora.rslora,
                target_modules: lora.target_modules.as_slice().to_vec(),
                rank_pattern: lora.rank_pattern.clone(),
                alpha_pattern: lora.alpha_pattern.clone(),
                seed: self.runtime.seed,
                merge_for_requests: self.runtime.merge_adapter,
            }),
        };
        let sampled = self.objective.lmbda < 1.0 && self.objective.off_policy.from_teacher;
        Training {
            trainable,
            recomputed_layers: 0,
            offload: self.runtime.offload,
            teacher_generates: sampled || self.eval.is_some(),
        }
    }

    /// Name of the loss.
    #[must_use]
    pub fn loss(&self) -> &str {
        &self.filled.loss.kind
    }

    /// Sequences generated in one step.
    #[must_use]
    pub fn sequences_per_step(&self) -> usize {
        self.rollout.prompts_per_step * self.rollout.group_size
    }
}

#[cfg(test)]
mod tests;
