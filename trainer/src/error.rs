//! The one error type of the trainer. Every variant names the value, the limit and, where there is one, the remedy.

use std::path::{Path, PathBuf};

use runtime::memory::Bytes;

/// Result of a trainer call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can stop a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A recipe (or an override) is not TOML, or a value has the wrong type.
    #[error("{origin}: {what}")]
    Syntax {
        /// The file, or the override.
        origin: String,
        /// What the parser said.
        what: String,
    },
    /// A recipe that cannot be read.
    #[error(transparent)]
    UnreadableRecipe(runtime::Error),
    /// A key that no section has.
    #[error("unknown key `{key}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey {
        /// Its dotted path.
        key: String,
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// A value outside its domain.
    #[error("`{key}` is {value}, must be {rule}")]
    Value {
        /// Dotted path of the key.
        key: String,
        /// The value.
        value: String,
        /// The domain, and what to change.
        rule: String,
    },
    /// A key that the other settings leave without effect.
    #[error("`{key}` has no effect {because}; remove it")]
    NoEffect {
        /// Dotted path of the key.
        key: String,
        /// Which setting makes it idle.
        because: String,
    },
    /// A key that the other settings need.
    #[error("`{key}` is missing: {why}")]
    Missing {
        /// Dotted path of the key.
        key: String,
        /// Who needs it.
        why: String,
    },
    /// A data file that cannot be used.
    #[error("{path}{}: {what}", line.map(|n| format!(":{n}")).unwrap_or_default())]
    Data {
        /// The file.
        path: PathBuf,
        /// The line (JSONL) or row (Parquet), from 1.
        line: Option<usize>,
        /// What is wrong with it.
        what: String,
    },
    /// Student and teacher cannot be compared token by token, or a model lacks what the run needs.
    #[error("{what}")]
    Models {
        /// Which probe failed, with both answers.
        what: String,
    },
    /// The run does not fit.
    #[error("the run needs {need} but {have} is available on {device}; most of it, {bytes}, is {entry}: {remedy}")]
    Memory {
        /// The plan.
        need: Bytes,
        /// What the device has.
        have: Bytes,
        /// The device.
        device: autograd::Device,
        /// The largest entry of the plan.
        entry: &'static str,
        /// Its size.
        bytes: Bytes,
        /// Which key to change.
        remedy: &'static str,
    },
    /// The longest sequence does not fit the memory that was given to keys and values.
    #[error("the KV memory of each model is {got}, but one sequence of {longest} tokens needs {need}; {remedy}")]
    KvTooSmall {
        /// The memory.
        got: Bytes,
        /// What the sequence needs.
        need: Bytes,
        /// Its tokens.
        longest: usize,
        /// Which keys to change.
        remedy: &'static str,
    },
    /// A run folder or checkpoint that cannot be used.
    #[error("{path}: {what}")]
    RunFolder {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong, and the remedy.
        what: String,
    },
    /// Three steps in a row were not finite.
    #[error(
        "step {step}: loss or gradient was not finite {times} times in a row; lower `optim.lr` or check the weights"
    )]
    NonFinite {
        /// The last such step.
        step: u64,
        /// How often in a row.
        times: u32,
    },
    /// A run ended with an error after a checkpoint.
    #[error("{source}\nthe checkpoint {checkpoint} of step {step} is whole: go on from there with --resume")]
    Stopped {
        /// What ended it.
        source: Box<Error>,
        /// The newest checkpoint.
        checkpoint: PathBuf,
        /// Its step.
        step: u64,
    },
    /// Ctrl-C: everything is saved.
    #[error("interrupted after step {step}; continue with --resume")]
    Interrupted {
        /// The last complete step.
        step: u64,
    },
    /// Ctrl-C during a held-out measurement.
    #[error("interrupted in a held-out measurement")]
    MeasurementInterrupted,
    /// Ctrl-C during an evaluation.
    #[error(
        "interrupted after {done} of {of} samples; {}",
        if *kept { "the same command goes on from there" } else { "without --out they are lost" }
    )]
    EvaluationInterrupted {
        /// Samples that are graded.
        done: usize,
        /// Samples of the whole evaluation.
        of: usize,
        /// Whether they are written.
        kept: bool,
    },
    /// A server refused, failed or did not answer as it should.
    #[error("{url}: {what}")]
    Server {
        /// What was called.
        url: String,
        /// What it said.
        what: String,
    },
    /// Generated programs cannot be run, or not safely.
    #[error("the sandbox {what}")]
    Sandbox {
        /// What does not work, and the remedy.
        what: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A teacher elsewhere refused, or said what it was not asked.
    #[error("teacher {url}: {what}")]
    Teacher {
        /// Its server.
        url: String,
        /// What it said.
        what: String,
    },
    /// A teacher elsewhere did not answer, however often it was asked.
    #[error(
        "teacher {url} gave no answer in {tries} tries: {what}; nothing of the step that asked it was done. Start it again, or \
         raise `teacher.retries` or `teacher.timeout_s`"
    )]
    TeacherLost {
        /// What was asked.
        url: String,
        /// How the last try ended: a status with its message, or what became of the connection.
        what: String,
        /// Tries.
        tries: u32,
    },
    /// Ctrl-C while a teacher elsewhere was waited for.
    #[error("interrupted while the teacher {url} was waited for")]
    WaitInterrupted {
        /// Its server.
        url: String,
    },
    /// The runtime refused or failed.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// The server did not start or ended early.
    #[error(transparent)]
    Serve(#[from] serve::Error),
}

impl Error {
    /// The exit code of a program that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Syntax { .. }
            | Self::UnreadableRecipe(_)
            | Self::UnknownKey { .. }
            | Self::Value { .. }
            | Self::NoEffect { .. }
            | Self::Missing { .. } => 2,
            _ if self.is_interrupt() => 130,
            Self::Stopped { source, .. } => source.exit_code(),
            Self::Runtime(error) if error.is_device_lost() => 3,
            Self::TeacherLost { .. } => 4,
            Self::Serve(error) if error.is_usage() => 2,
            _ => 1,
        }
    }

    /// Whether someone stopped the program, which is no failure.
    #[must_use]
    pub fn is_interrupt(&self) -> bool {
        match self {
            Self::Interrupted { .. }
            | Self::MeasurementInterrupted
            | Self::EvaluationInterrupted { .. }
            | Self::WaitInterrupted { .. } => true,
            Self::Stopped { source, .. } => source.is_interrupt(),
            _ => false,
        }
    }

    /// Attaches the path to an I/O error.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// A value outside its domain.
    pub(crate) fn value(key: &str, value: impl ToString, rule: impl Into<String>) -> Self {
        Self::Value { key: key.to_owned(), value: value.to_string(), rule: rule.into() }
    }
}
