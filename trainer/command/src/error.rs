//! The one error type of what a user gave: values, files, folders, servers. Every variant names the value, the limit and, where there
//! is one, the hint.

use std::path::{Path, PathBuf};

/// Result of a call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A recipe (or an override) is not TOML, or a value has the wrong type.
    #[error("{origin}: {what}")]
    Syntax {
        /// The file, or the override.
        origin: String,
        /// The parser's message.
        what: String,
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
    /// A run folder or checkpoint that cannot be used.
    #[error("{path}: {what}")]
    RunFolder {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong, and the hint.
        what: String,
    },
    /// A server refused, failed or did not answer as it should.
    #[error("{url}: {what}")]
    Server {
        /// What was called.
        url: String,
        /// Its message.
        what: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Handlers of Ctrl-C and SIGTERM cannot be installed.
    #[error("Ctrl-C and SIGTERM cannot be handled: {0}")]
    Signals(ctrlc::Error),
    /// The runtime refused or failed.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
}

impl Error {
    /// Whether the command or its recipe was wrong, which has an exit code of its own.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Syntax { .. } | Self::Value { .. } | Self::NoEffect { .. } | Self::Missing { .. })
    }

    /// Attaches the path to an I/O error.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// A value outside its domain.
    pub fn value(key: &str, value: impl ToString, rule: impl Into<String>) -> Self {
        Self::Value { key: key.to_owned(), value: value.to_string(), rule: rule.into() }
    }
}
