//! What a model says of some positions of given sequences.

use std::ops::Range;

pub use autograd::ops::Precision;

use super::ModelId;

/// Ask what a model says of positions of given sequences.
#[derive(Debug, Clone)]
pub struct GradeRequest {
    /// Which model.
    pub model: ModelId,
    /// The sequences.
    pub sequences: Vec<Span>,
    /// What of it.
    pub wanted: Wanted,
    /// Of the first so many ids alone, as if the head had no others; `None`: of all tokens.
    pub token_ids: Option<usize>,
}

/// A sequence and the positions that are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// All its tokens.
    pub tokens: Vec<u32>,
    /// From 1 on: position i is what the model expects after the first i tokens, and so says of token i. Where no token is
    /// asked about, the position after the last token is one too.
    pub positions: Range<usize>,
}

/// What is asked about every position.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// Log-probabilities of the sequence's own token, of `ids`, and of the `top` most likely tokens.
    LogProbs {
        /// So many of the most likely tokens.
        top: usize,
        /// These besides.
        ids: Vec<u32>,
        /// Of the distribution at this temperature.
        temperature: f64,
        /// Also the rank of the sequence's own token.
        ranks: bool,
    },
    /// All logits.
    Logits(Precision),
    /// The hidden state that the logits come from.
    Hidden {
        /// After the last norm, or before it: the sum that the layers wrote to.
        normalized: bool,
        /// How numbers are written.
        precision: Precision,
    },
}

/// What was asked for, and the version of the weights that said it.
#[derive(Debug, Clone)]
pub struct Graded {
    /// Version of the weights.
    pub version: u64,
    /// The answer.
    pub grades: Grades,
}

/// The answer to a [`Wanted`].
#[derive(Debug, Clone)]
pub enum Grades {
    /// One for each sequence.
    LogProbs(Vec<GradedRows>),
    /// Rows of numbers, of all sequences one after another.
    Rows {
        /// Little-endian.
        bytes: Vec<u8>,
        /// Numbers of a row.
        columns: usize,
    },
}

/// Log-probabilities of a sequence, an element for each position.
#[derive(Debug, Clone, Default)]
pub struct GradedRows {
    /// Of the sequence's own token.
    pub logprobs: Vec<f64>,
    /// Its place among all tokens in the order of `top`, from 1; empty where ranks were not asked for.
    pub ranks: Vec<u32>,
    /// The most likely tokens, the likeliest first (ties to the lower id).
    pub top: Vec<Vec<(u32, f64)>>,
    /// ln of the mass of all tokens that are not among the most likely ones; empty where none were asked for.
    pub tail_logprobs: Vec<f64>,
    /// Of the ids that were asked for; empty where none were.
    pub ids: Vec<Vec<f64>>,
}
