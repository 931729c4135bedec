//! Who answers requests: the runtime of this process, or a server.

mod local;
mod remote;

use std::time::Duration;

use serde_json::{Map, Value};

use crate::Result;
use crate::prompt::context::Render;
use crate::task::question::{EvalRequest, EvalResponse};

pub(super) use local::LocalBackend;
pub use local::LocalSettings;
pub(super) use remote::RemoteBackend;
pub use remote::RemoteSettings;

/// Answers documents' requests, many at a time.
pub(super) trait Backend {
    /// A document's requests, ready to be submitted.
    type EncodedDocument;

    /// Makes the requests of many documents ready, in their order.
    ///
    /// # Errors
    /// Requests that the model cannot see at once, all of them in one message; what the tokenizer refuses.
    fn prepare(&self, requests: Vec<Vec<EvalRequest>>) -> Result<Vec<Self::EncodedDocument>>;

    /// Whether another document should wait for answers first.
    fn is_full(&self) -> bool;

    /// Starts a document.
    ///
    /// # Errors
    /// The runtime has ended.
    fn submit(&mut self, doc: usize, work: Self::EncodedDocument) -> Result<()>;

    /// The answers of a document that is done, waiting for at most `wait`.
    ///
    /// # Errors
    /// A request that failed.
    fn next(&mut self, wait: Duration) -> Result<Option<(usize, Vec<EvalResponse>)>>;

    /// A conversation as the model's chat template renders it; `None` when the server does it itself.
    ///
    /// # Errors
    /// A model without a template; what the template refuses.
    fn render(&self) -> Option<&Render>;

    /// Requests of which something was left out at the beginning, so far.
    fn truncated(&self) -> usize;

    /// Everything about the model and how it is asked that decides its answers.
    fn identity(&self) -> Map<String, Value>;
}
