//! What a scheduler refuses.

use crate::ids::RequestId;

/// A limit of [`crate::scheduler::SchedulerConfig`] with which nothing could ever run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("scheduler: {field} is 0; it must be at least 1")]
pub struct ZeroLimit {
    /// Name of the field.
    pub field: &'static str,
}

/// Why a request was refused. Nothing of it stays in the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// There is nothing to continue.
    #[error("the prompt is empty; it needs at least one token")]
    EmptyPrompt,
    /// There is nothing to do.
    #[error("max_new_tokens is 0; it must be at least 1")]
    NothingToGenerate,
    /// The id is taken.
    #[error("request {0:?} is in the scheduler already")]
    DuplicateId(RequestId),
    /// The request cannot end within the context.
    #[error(
        "a prompt of {prompt_tokens} tokens and {max_new_tokens} new ones exceed the context of \
         {max_context}; shorten the prompt or lower max_new_tokens"
    )]
    ContextTooShort {
        /// Length of the prompt.
        prompt_tokens: usize,
        /// Tokens asked for.
        max_new_tokens: usize,
        /// The limit on their sum.
        max_context: usize,
    },
    /// The request would not fit even with the pool to itself.
    #[error(
        "a prompt of {prompt_tokens} tokens and {max_new_tokens} new ones need {needed_pages} KV pages \
         of {total_pages}; lower max_new_tokens or enlarge the pool"
    )]
    PoolTooSmall {
        /// Length of the prompt.
        prompt_tokens: usize,
        /// Tokens asked for.
        max_new_tokens: usize,
        /// Pages of the finished sequence.
        needed_pages: usize,
        /// Pages of the pool.
        total_pages: usize,
    },
    /// Too many requests wait.
    #[error("the waiting queue is full ({max_waiting} requests); try again later")]
    QueueFull {
        /// The limit.
        max_waiting: usize,
    },
}
