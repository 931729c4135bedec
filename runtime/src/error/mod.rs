//! The one error type of the runtime. Every variant names the value, the limit and, where there is one, the remedy.

mod memory;
mod order;
mod request;
mod sampling;
mod scheduler;
mod train;

use std::path::{Path, PathBuf};

pub use self::memory::Entry;
pub(crate) use self::order::ORDER_VERSION;
pub use self::order::OrderError;
pub use self::request::RequestError;
pub use self::sampling::SamplingError;
pub use self::scheduler::{SubmitError, ZeroLimit};
pub use self::train::TrainError;
use crate::bytes::Bytes;

/// Result of a runtime call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request has a value that is refused every time.
    Invalid,
    /// The request has more tokens than the model's context or the KV memory takes.
    TooLong,
    /// The request names a model that is not loaded.
    NotFound,
    /// The state of the runtime forbids it now.
    Conflict,
    /// The queue is full: the same request may be accepted later.
    Busy,
    /// The device's memory does not hold what the request needs beside the others.
    OutOfMemory,
    /// The device or the thread that owns it is gone.
    Unavailable,
    /// A defect: of a file, of the model or of this program.
    Internal,
}

/// What can go wrong between a model source and a finished request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A path leads to something that is no regular file.
    #[error("{path}: is {kind}, and only regular files are read; give the path of one")]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What is there.
        kind: &'static str,
    },
    /// A file is longer than its purpose can need.
    #[error("{path}: has {length}, more than the {limit} that a file of its kind may have")]
    FileTooLong {
        /// The file.
        path: PathBuf,
        /// Its length, as far as it was read.
        length: Bytes,
        /// The most that is read.
        limit: Bytes,
    },
    /// A line of a file cannot be used.
    #[error("{path}:{line}: {detail}")]
    BadLine {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        detail: String,
    },
    /// A model source could not be turned into files.
    #[error("source \"{model}\": {detail}")]
    Source {
        /// The source as it was written.
        model: String,
        /// What is wrong, and the remedy.
        detail: String,
    },
    /// A file is not what its sum says it should be.
    #[error("{path}: sha256 is {got}, expected {want}; the file was not kept")]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Sum of what was received.
        got: String,
        /// Sum that was asked for.
        want: String,
    },
    /// A file is truncated, corrupt or incomplete.
    #[error("{path}: {detail}")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, where.
        detail: String,
    },
    /// A required key is not in a configuration or in metadata.
    #[error("{path}: required key \"{key}\" is missing")]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A key has a value that is malformed or contradicts another one.
    #[error("{path}: \"{key}\" is {got}; {want}")]
    BadKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        got: String,
        /// What is allowed.
        want: String,
    },
    /// A well-formed file asks for something that is not implemented.
    #[error("{path}: {what} \"{got}\" is not supported; supported: {supported}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The kind of thing.
        what: &'static str,
        /// Which one was asked for.
        got: String,
        /// Those that are implemented.
        supported: String,
    },
    /// A tensor is not in the weights.
    #[error("{path}: there is no tensor \"{name}\"")]
    MissingTensor {
        /// The file or directory.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor's shape contradicts the configuration.
    #[error("{path}: tensor \"{name}\" is {got}, the configuration says {want}")]
    TensorShape {
        /// The file or directory.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Shape in the file.
        got: String,
        /// Shape by the configuration.
        want: String,
    },
    /// The weights hold a tensor that the family does not have.
    #[error("{path}: tensor \"{name}\" is not part of a {family} model, so this is another architecture")]
    UnknownTensor {
        /// The file or directory.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Family of the configuration.
        family: String,
    },
    /// `layers` names a layer that the model does not have.
    #[error("layers: {layer} is not one of the model's {count} layers (0 to {last}), or the list is empty or repeats", last = count.saturating_sub(1))]
    Layers {
        /// The layer.
        layer: usize,
        /// Layers of the model.
        count: usize,
    },
    /// An adapter does not fit its base, or asks for what is not implemented.
    #[error("adapter {path}: {detail}")]
    Adapter {
        /// The adapter's folder.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A LoRA configuration cannot be honoured.
    #[error("lora: {0}")]
    Lora(String),
    /// An op refused its operands.
    #[error(transparent)]
    Op(#[from] autograd::Error),
    /// The scheduler refused a request.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// A limit of the engine is zero.
    #[error(transparent)]
    Limit(#[from] ZeroLimit),
    /// Sampling parameters or logits were refused.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// A request that cannot be answered.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A micro-batch or an optimizer step that cannot be computed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// An order cannot be read.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// A step failed; the text is that of the error, which another request of the step may have.
    #[error("{0}")]
    Step(String),
    /// A share of the free memory was requested where the system does not report it.
    #[error("this system does not report how much memory is free; give the KV memory in bytes (8GiB)")]
    FreeMemoryUnknown,
    /// The device ran out of memory although the plan fits: something took more than was planned for it.
    #[error("{source}; it was allocated for {}, which is more than its share of the memory plan: {}", entry.name(), entry.remedy())]
    OutOfMemory {
        /// What it was for.
        entry: Entry,
        /// What was asked for, and what there was.
        source: autograd::Error,
    },
    /// The KV memory does not hold the longest sequence.
    #[error(
        "the KV memory of each model is {got}, but one sequence of {longest} tokens needs {need}; enlarge it, or generate \
         fewer tokens"
    )]
    KvTooSmall {
        /// Bytes of the pool.
        got: Bytes,
        /// Bytes of the sequence.
        need: Bytes,
        /// Its tokens.
        longest: usize,
    },
    /// Student and teacher cannot be compared token by token.
    #[error("vocabularies differ: student {student}, teacher {teacher}")]
    Vocabulary {
        /// Ids of the student's tokens.
        student: usize,
        /// Ids of the teacher's tokens.
        teacher: usize,
    },
    /// A state to restore does not fit what is trained.
    #[error("restore: {0}")]
    Restore(String),
    /// The thread that owns the device is gone.
    #[error("the device thread has ended: {0}")]
    Stopped(String),
    /// A range of rows reaches outside a tensor.
    #[error("tensor \"{name}\": rows {start}..{end} of {rows} were asked for")]
    RowsOutOfRange {
        /// The tensor.
        name: String,
        /// First row asked for.
        start: usize,
        /// One past the last row asked for.
        end: usize,
        /// Rows there are.
        rows: usize,
    },
    /// A weight is NaN or infinite.
    #[error("tensor \"{name}\": element {index} is {value}; the checkpoint is damaged")]
    NonFiniteWeight {
        /// The tensor.
        name: String,
        /// Position in row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A tokenizer could not be built or applied.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A chat template could not be compiled or rendered.
    #[error("chat template: {0}")]
    ChatTemplate(String),
}

impl Error {
    /// Names the purpose of memory that was not there; other errors stay as they are.
    pub(crate) fn while_allocating(self, entry: Entry) -> Self {
        match self {
            Self::Op(source @ autograd::Error::OutOfMemory { .. }) => Self::OutOfMemory { entry, source },
            other => other,
        }
    }

    /// The same error for another request; one that cannot be copied as its text.
    pub(crate) fn duplicate(&self) -> Self {
        match self {
            Self::Op(error) => Self::Op(error.clone()),
            Self::OutOfMemory { entry, source } => Self::OutOfMemory { entry: *entry, source: source.clone() },
            Self::Submit(error) => Self::Submit(*error),
            Self::Sampling(error) => Self::Sampling(error.clone()),
            Self::Request(error) => Self::Request(*error),
            Self::Train(error) => Self::Train(*error),
            other => Self::Step(other.to_string()),
        }
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            _ if self.is_device_lost() => ErrorKind::Unavailable,
            Self::Stopped(_) => ErrorKind::Unavailable,
            Self::OutOfMemory { .. } => ErrorKind::OutOfMemory,
            Self::Submit(SubmitError::QueueFull { .. }) => ErrorKind::Busy,
            Self::Submit(SubmitError::ContextTooShort { .. } | SubmitError::PoolTooSmall { .. })
            | Self::Request(RequestError::SequenceTooLong { .. })
            | Self::Train(TrainError::TooLong { .. }) => ErrorKind::TooLong,
            Self::Submit(SubmitError::DuplicateId(_)) => ErrorKind::Internal,
            Self::Request(RequestError::NoModel { .. }) => ErrorKind::NotFound,
            Self::Request(
                RequestError::AdapterInUse { .. } | RequestError::BaseIsTrained | RequestError::NotTraining,
            ) => ErrorKind::Conflict,
            Self::Request(RequestError::NonFiniteLogits { .. })
            | Self::Sampling(SamplingError::NonFiniteLogit { .. } | SamplingError::NonFiniteLogits) => {
                ErrorKind::Internal
            }
            Self::Request(_)
            | Self::Train(_)
            | Self::Submit(_)
            | Self::Sampling(_)
            | Self::Adapter { .. }
            | Self::ChatTemplate(_) => ErrorKind::Invalid,
            _ => ErrorKind::Internal,
        }
    }

    /// Whether the device is lost to this process, so that every later request fails as well.
    #[must_use]
    pub fn is_device_lost(&self) -> bool {
        matches!(self, Self::Op(error) if error.is_device_lost())
    }

    /// For `map_err` on a file operation.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn bad_file(path: &Path, detail: impl Into<String>) -> Self {
        Self::BadFile { path: path.to_owned(), detail: detail.into() }
    }

    pub(crate) fn missing_key(path: &Path, key: impl Into<String>) -> Self {
        Self::MissingKey { path: path.to_owned(), key: key.into() }
    }

    pub(crate) fn bad_key(path: &Path, key: impl Into<String>, got: impl ToString, want: impl Into<String>) -> Self {
        Self::BadKey { path: path.to_owned(), key: key.into(), got: got.to_string(), want: want.into() }
    }

    pub(crate) fn unsupported(
        path: &Path,
        what: &'static str,
        got: impl ToString,
        supported: impl Into<String>,
    ) -> Self {
        Self::Unsupported { path: path.to_owned(), what, got: got.to_string(), supported: supported.into() }
    }
}
