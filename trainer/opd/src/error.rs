//! The one error type of a run. Every variant names the value, the limit and, where there is one, the hint.

use std::path::{Path, PathBuf};

use runtime::memory::Bytes;

/// Result of a run's call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can stop a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value, a file, a folder or a server that cannot be used.
    #[error(transparent)]
    Input(#[from] command::Error),
    /// An evaluation refused or failed.
    #[error(transparent)]
    Eval(#[from] eval::Error),
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
    /// Student and teacher cannot be compared token by token.
    #[error(
        "student and teacher cannot be compared token by token: {what} differ\n  student: {student}\n  teacher: {teacher}\n\
         choose models of one tokenizer and chat template"
    )]
    TokenizersDiffer {
        /// What was compared.
        what: String,
        /// The student's.
        student: String,
        /// The teacher's.
        teacher: String,
    },
    /// Student and teacher end texts with other tokens.
    #[error(
        "end-of-sequence ids differ: student and teacher end texts with other tokens\n  student: {student}\n  teacher: {teacher}\n\
         set `student.eos_token` to what is to end a completion of this run, such as {suggestion:?}"
    )]
    EndTokensDiffer {
        /// The student's, spelled.
        student: String,
        /// The teacher's, spelled.
        teacher: String,
        /// A token that may be meant.
        suggestion: String,
    },
    /// No end-of-sequence token of the model ends an answer of its chat template.
    #[error(
        "the chat template of {model} ends an answer with {token:?}, which is not among the model's end-of-sequence tokens ({eos}), \
         so that its answers run on to the limit; {hint}"
    )]
    TurnEnd {
        /// The model's folder or file.
        model: PathBuf,
        /// What ends an answer of its template.
        token: String,
        /// Its end-of-sequence tokens, spelled.
        eos: String,
        /// What to set.
        hint: String,
    },
    /// A key that only a chat template gives a meaning.
    #[error("`{key}` needs a chat template, and {model} is used without one")]
    NoChatTemplate {
        /// Dotted path of the key.
        key: &'static str,
        /// The model's folder or file.
        model: PathBuf,
    },
    /// Sequences are longer than a remote teacher's context.
    #[error("sequences of {longest} tokens exceed the teacher's context of {context} (`teacher.url`)")]
    TeacherContext {
        /// Tokens of the longest sequence.
        longest: usize,
        /// Tokens that the teacher sees at once.
        context: usize,
    },
    /// The student's configuration has dropout, which training does not do.
    #[error(
        "the student's config.json has attention_dropout = {dropout}, which training does not do; set it to 0 there"
    )]
    AttentionDropout {
        /// Its value.
        dropout: f64,
    },
    /// A sequence of a command is longer than the model's context.
    #[error(
        "{tokens} tokens (prompt and new ones together) exceed the model's context of {context}; shorten the prompt or lower the \
         number of new ones"
    )]
    ContextExceeded {
        /// Tokens of the sequence.
        tokens: usize,
        /// Tokens that the model sees at once.
        context: usize,
    },
    /// A measurement's sequences are empty or longer than the model's context.
    #[error("{tokens} tokens a sequence, {prompt} of the prompt; the model takes 1 to {context}")]
    BenchSequence {
        /// Tokens of a sequence.
        tokens: usize,
        /// Tokens of its prompt.
        prompt: usize,
        /// Tokens that the model sees at once.
        context: usize,
    },
    /// `generation_config.json` of the model has a value that no request may have.
    #[error("generation_config.json of the model has {field} = {value}, must be {allowed}")]
    GenerationConfig {
        /// Its key.
        field: &'static str,
        /// The value.
        value: String,
        /// The domain.
        allowed: String,
    },
    /// Requests may take more memory than the host has beside the plan.
    #[error("requests may take {need}, but {available} are left; lower --request-memory")]
    RequestMemory {
        /// What they may take.
        need: Bytes,
        /// What is left.
        available: Bytes,
    },
    /// The run does not fit.
    #[error("the run needs {need} but {have} is available on {device}; most of it, {bytes}, is {entry}: {hint}")]
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
        hint: &'static str,
    },
    /// The longest sequence does not fit the memory that was given to keys and values.
    #[error("the KV memory of each model is {got}, but one sequence of {longest} tokens needs {need}; {hint}")]
    KvTooSmall {
        /// The memory.
        got: Bytes,
        /// What the sequence needs.
        need: Bytes,
        /// Its tokens.
        longest: usize,
        /// Which keys to change.
        hint: &'static str,
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
    /// A remote teacher refused, or returned something else than was requested.
    #[error("teacher {url}: {what}")]
    Teacher {
        /// Its server.
        url: String,
        /// Its message.
        what: String,
    },
    /// A remote teacher did not answer, however often it was tried.
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
    /// Ctrl-C while a remote teacher was waited for.
    #[error("interrupted while the teacher {url} was waited for")]
    WaitInterrupted {
        /// Its server.
        url: String,
    },
    /// The runtime refused or failed.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// A setting of traces that cannot be honoured.
    #[error(transparent)]
    Telemetry(#[from] telemetry::Error),
    /// The server did not start or ended early.
    #[error(transparent)]
    Serve(#[from] serve::Error),
}

impl Error {
    /// The exit code of a program that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input(error) | Self::Eval(eval::Error::Input(error)) if error.is_usage() => 2,
            Self::UnreadableRecipe(_) | Self::UnknownKey { .. } | Self::Telemetry(_) => 2,
            _ if self.is_interrupt() => 130,
            Self::Stopped { source, .. } => source.exit_code(),
            _ if self.is_device_lost() => 3,
            Self::TeacherLost { .. } => 4,
            Self::Serve(error) if error.is_usage() => 2,
            _ => 1,
        }
    }

    fn is_device_lost(&self) -> bool {
        use command::Error::Runtime;
        match self {
            Self::Runtime(error)
            | Self::Input(Runtime(error))
            | Self::Eval(eval::Error::Runtime(error) | eval::Error::Input(Runtime(error))) => error.is_device_lost(),
            _ => false,
        }
    }

    /// Whether an operator stopped the program, which is no failure.
    #[must_use]
    pub fn is_interrupt(&self) -> bool {
        match self {
            Self::Interrupted { .. }
            | Self::MeasurementInterrupted
            | Self::Eval(eval::Error::Interrupted { .. })
            | Self::WaitInterrupted { .. } => true,
            Self::Stopped { source, .. } => source.is_interrupt(),
            _ => false,
        }
    }

    /// A row of data that cannot be used.
    pub(crate) fn row(origin: &data::Origin, what: impl Into<String>) -> Self {
        origin.error(what).into()
    }

    /// Attaches the path to an I/O error.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| command::Error::io(path)(source).into()
    }

    /// A value outside its domain.
    pub fn value(key: &str, value: impl ToString, rule: impl Into<String>) -> Self {
        command::Error::value(key, value, rule).into()
    }
}
