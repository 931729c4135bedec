//! The one error type of evaluation.

use std::path::Path;

/// Result of an evaluation's call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can stop an evaluation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value, a file, a folder or a server that cannot be used.
    #[error(transparent)]
    Input(#[from] command::Error),
    /// Ctrl-C during an evaluation.
    #[error(
        "interrupted after {done} of {of} samples; {}",
        if *kept { "the same command goes on from there" } else { "without --out they are lost" }
    )]
    Interrupted {
        /// Samples that are graded.
        done: usize,
        /// Samples of the whole evaluation.
        of: usize,
        /// Whether they are written.
        kept: bool,
    },
    /// Generated programs cannot be run, or not safely.
    #[error("the sandbox {what}")]
    Sandbox {
        /// What does not work, and the hint.
        what: String,
    },
    /// The model has no token that an empty context could begin with.
    #[error("the model names neither a first nor a last token of texts, so an empty context has none")]
    NoFirstToken,
    /// Prompts and completions of an evaluation are longer than the model's context, or than `--max-length`.
    #[error(
        "{too_long} of {documents} documents do not fit: document {doc} has a prompt of {prompt} tokens and {new} new ones, and \
         --max-length is {limit} (the longest needs {longest}); raise it within the model's context, lower --num-fewshot or \
         --max-gen-toks, or pass --left-truncate to cut prompts at their beginning and count them"
    )]
    DoNotFit {
        /// Documents that do not fit.
        too_long: usize,
        /// Documents of the evaluation.
        documents: usize,
        /// The first that does not fit.
        doc: usize,
        /// Tokens of its prompt.
        prompt: usize,
        /// Tokens of its completion.
        new: usize,
        /// Tokens that fit.
        limit: usize,
        /// Tokens of the longest document.
        longest: usize,
    },
    /// The runtime refused or failed.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
}

impl Error {
    /// Attaches the path to an I/O error.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| command::Error::io(path)(source).into()
    }

    /// A value outside its domain.
    pub(crate) fn value(key: &str, value: impl ToString, rule: impl Into<String>) -> Self {
        command::Error::value(key, value, rule).into()
    }
}
