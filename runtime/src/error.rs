//! The one error type of the runtime. Every variant names the value, the limit and, where there is one, the remedy.

use std::path::PathBuf;

/// Result of a runtime call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

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
}
