//! Why a server does not start or ends early. What a client did wrong is in `api_error`.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Result of starting or running a server.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What stops a server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not this machine's.
    #[error("cannot listen on {address}: {source}; choose another --host or --port (0 takes a free one)")]
    Listen {
        /// Where.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A socket or a thread could not be had.
    #[error("the server cannot run: {0}")]
    System(#[from] std::io::Error),
    /// A file that cannot be read.
    #[error(transparent)]
    File(#[from] runtime::Error),
    /// A key file that cannot be used.
    #[error("{path}: {what}")]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// An address that other machines reach, and no key.
    #[error(
        "{address} can be reached from other machines, and there is no key; give --api-key-file, or listen on 127.0.0.1"
    )]
    Open {
        /// The address.
        address: SocketAddr,
    },
    /// A certificate or a private key that cannot be read.
    #[error("{0} (--tls-cert, --tls-key)")]
    TlsFile(runtime::Error),
    /// A certificate or a private key that cannot be used.
    #[error("{path}: {what} (--tls-cert, --tls-key)")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// An address of a training run that is none.
    #[error("--train-control-url \"{url}\": {what}; expected http://HOST[:PORT][/BASE]")]
    TrainUrl {
        /// The address.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// Two models under one name, or none at all.
    #[error("{0}")]
    Models(String),
    /// An origin for CORS that is no header value.
    #[error("CORS origin \"{0}\" is no origin such as https://example.org")]
    Origin(String),
    /// The warm-up failed: the model cannot answer.
    #[error("the warm-up of {model} failed: {source}")]
    WarmUp {
        /// Name of the model.
        model: String,
        /// Why.
        source: Box<runtime::Error>,
    },
}

impl Error {
    /// Whether an option or an environment variable has a value that it cannot have.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Open { .. } | Self::TrainUrl { .. } | Self::Models(_) | Self::Origin(_))
    }
}
