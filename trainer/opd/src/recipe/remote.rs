//! A teacher that another process serves.

use std::path::PathBuf;

/// A server that answers for the teacher.
#[derive(Debug, Clone, PartialEq)]
pub struct Remote {
    /// `http://HOST:PORT`, without `/v1` and without a slash at its end.
    pub url: String,
    /// Its protocol.
    pub api: Api,
    /// Which of its models; `None`: its first.
    pub served_model: Option<String>,
    /// File whose first line is its key.
    pub api_key_file: Option<PathBuf>,
    /// File with the certificates of its authority.
    pub ca_file: Option<PathBuf>,
    /// Seconds of one request.
    pub timeout_s: u64,
    /// Repetitions of a lost request.
    pub retries: u32,
    /// Requests at a time.
    pub concurrency: usize,
    /// How distributions travel; `None` where the server has none to give.
    pub rows: Option<RemoteRows>,
}

/// The protocol of a remote teacher's server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// That of `arle serve`.
    Arle,
    /// OpenAI's completions, with `echo` and `logprobs`.
    OpenAi,
}

/// How a remote teacher's distributions travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteRows {
    /// All logits.
    Logits(autograd::ops::Precision),
    /// So many of the likeliest tokens, and a bucket for the others.
    Top(usize),
}

impl RemoteRows {
    /// Bytes of one position of a vocabulary, as they are kept.
    #[must_use]
    pub fn bytes(self, vocab: usize) -> usize {
        match self {
            Self::Logits(precision) => vocab * precision.bytes(),
            Self::Top(k) => 8 * (k + 1),
        }
    }
}

impl std::fmt::Display for RemoteRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Logits(precision) => write!(f, "logits in {}", precision.name()),
            Self::Top(k) => write!(f, "the {k} likeliest tokens and a bucket"),
        }
    }
}
