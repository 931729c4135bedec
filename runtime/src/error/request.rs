//! Why a request is refused.

use crate::ids::ModelId;

/// A request that cannot be answered. Every variant carries the value and the limit.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// Text or stop strings need a tokenizer.
    #[error("text or stop strings were requested, but the model has no tokenizer")]
    NoTokenizer,
    /// The model is not there, or not any more.
    #[error("{model} is not loaded (any more)")]
    NoModel {
        /// Its id.
        model: ModelId,
    },
    /// Training needs a runtime that was started for it.
    #[error("this runtime was started without training")]
    NotTraining,
    /// Adapters need base weights that do not change.
    #[error("the student's base may change while it is trained, so no adapter is loaded onto it")]
    BaseIsTrained,
    /// Only adapters are replaced and removed.
    #[error("{model} is no adapter; only adapters are replaced or removed")]
    NotAnAdapter {
        /// The model.
        model: ModelId,
    },
    /// An adapter that requests run with is not removed.
    #[error("requests run with this adapter; remove it when they have ended")]
    AdapterInUse {
        /// The adapter.
        model: ModelId,
    },
    /// An id that the embedding has no row for.
    #[error("token id {id} is outside the model's vocabulary of {vocab_size}")]
    TokenId {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// A distribution over too few or too many ids.
    #[error("token_ids = {token_ids}: must be from 1 to {vocab_size}")]
    TokenIds {
        /// Ids of the distribution.
        token_ids: usize,
        /// Rows of the head.
        vocab_size: usize,
    },
    /// More of the most likely tokens than there are.
    #[error("top = {top}: exceeds the vocabulary of {vocab_size}")]
    Top {
        /// Tokens requested.
        top: usize,
        /// Tokens there are.
        vocab_size: usize,
    },
    /// A divisor of logits that is not positive.
    #[error("temperature = {temperature}: must be positive")]
    Temperature {
        /// The temperature.
        temperature: f64,
    },
    /// A sequence without tokens.
    #[error("sequence {sequence} has no tokens")]
    EmptySequence {
        /// Its place in the request.
        sequence: usize,
    },
    /// Positions that the sequence does not have, or none.
    #[error("sequence {sequence}: positions {start}..{end} are not within 1..{last}")]
    Positions {
        /// Its place in the request.
        sequence: usize,
        /// First position.
        start: usize,
        /// One past the last position.
        end: usize,
        /// The end of those that can be scored.
        last: usize,
    },
    /// More tokens than the model's context.
    #[error("sequence {sequence}: {tokens} tokens exceed the model's context of {max}; send shorter pieces")]
    SequenceTooLong {
        /// Its place in the request.
        sequence: usize,
        /// Its tokens.
        tokens: usize,
        /// The context.
        max: usize,
    },
    /// The forward pass gave values that are not numbers.
    #[error("sequence {sequence}: the logits at position {position} are not numbers")]
    NonFiniteLogits {
        /// Its place in the request.
        sequence: usize,
        /// The position of the input token.
        position: usize,
    },
}
