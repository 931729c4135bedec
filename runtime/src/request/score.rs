//! Scoring: what a model computes for given positions of given sequences, without generating.

use serde::{Deserialize, Serialize};
use std::ops::Range;

pub use autograd::ops::Precision;

use super::ModelId;
use crate::wire;

/// A request for log-probabilities, logits, hidden states or one vector of given sequences.
///
/// The scheduler runs it like a prompt, in the steps of the generations, so that it uses the prefix cache and delays no stream
/// by more than a step.
#[derive(Debug, Clone)]
pub struct ScoreRequest {
    /// Which model.
    pub model: ModelId,
    /// The sequences.
    pub sequences: Vec<ScoreSequence>,
    /// What is computed for each of their positions.
    pub output: ScoreOutput,
    /// The distribution is over the first so many ids alone, as if the head had no others; `None`: over all tokens.
    pub token_ids: Option<usize>,
}

/// A sequence and the positions that are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreSequence {
    /// All its tokens.
    pub tokens: Vec<u32>,
    /// From 1 on: position i is what the model predicts after the first i tokens, so its own token is `tokens[i]`. Outputs that
    /// have no own token (logits, hidden states, vectors) also take the position after the last token.
    pub positions: Range<usize>,
}

impl ScoreSequence {
    /// Every token but the first, which nothing precedes.
    #[must_use]
    pub fn every_token(tokens: Vec<u32>) -> Self {
        Self { positions: 1..tokens.len().max(1), tokens }
    }

    /// What a vector is pooled from: the last position, or all of them.
    #[must_use]
    pub fn pooled(tokens: Vec<u32>, pooling: Pooling) -> Self {
        let first = match pooling {
            Pooling::Last => tokens.len(),
            Pooling::Mean => 1,
        };
        Self { positions: first..tokens.len() + 1, tokens }
    }

    /// The tokens that have to be run: no result depends on what follows the last position.
    pub(crate) fn inputs(&self) -> &[u32] {
        if self.positions.is_empty() { &[] } else { &self.tokens[..self.positions.end - 1] }
    }
}

/// What is computed for each position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ScoreOutput {
    /// ln p of the sequence's own token alone, computed as a loss computes it: the logits do not leave the device.
    TokenLogProbs {
        /// Divisor of the logits.
        temperature: f64,
    },
    /// Log-probabilities in double precision, from logits on the host.
    LogProbs(LogProbs),
    /// All logits.
    Logits(#[serde(with = "wire::precision")] Precision),
    /// The hidden state that the logits are computed from.
    Hidden {
        /// After the last norm, or before it: the sum that the layers wrote to.
        normalized: bool,
        /// How numbers are written.
        #[serde(with = "wire::precision")]
        precision: Precision,
    },
    /// One vector for all positions of a sequence.
    Pooled(Pooling),
}

/// Which log-probabilities besides that of the sequence's own token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogProbs {
    /// So many of the most likely tokens.
    pub top: usize,
    /// These tokens.
    pub ids: Vec<u32>,
    /// Divisor of the logits.
    pub temperature: f64,
    /// Also the rank of the sequence's own token.
    pub ranks: bool,
    /// Also whether no token is likelier than the sequence's own.
    pub greedy: bool,
}

impl Default for LogProbs {
    /// Of the sequence's own token, at temperature 1.
    fn default() -> Self {
        Self { top: 0, ids: vec![], temperature: 1.0, ranks: false, greedy: false }
    }
}

impl From<LogProbs> for ScoreOutput {
    /// Logits leave the device only where more than the tokens' own log-probabilities are requested.
    fn from(log_probs: LogProbs) -> Self {
        let LogProbs { top, ids, temperature, ranks, greedy } = &log_probs;
        if *top == 0 && ids.is_empty() && !ranks && !greedy {
            return Self::TokenLogProbs { temperature: *temperature };
        }
        Self::LogProbs(log_probs)
    }
}

/// How the final hidden states `[T, H]`, after the last norm, become one vector `[H]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pooling {
    /// That of the last position, which alone has seen all tokens.
    Last,
    /// Their mean.
    Mean,
}

/// The results of a [`ScoreRequest`], all computed with one version of the weights.
#[derive(Debug, Clone)]
pub struct ScoreResponse {
    /// Version of the weights.
    pub version: u64,
    /// One for each sequence.
    pub sequences: Vec<SequenceScores>,
    /// Numbers of one row of [`SequenceScores::rows`]; 0 where the output has no rows.
    pub columns: usize,
}

impl ScoreResponse {
    /// The rows of all sequences, one after another.
    #[must_use]
    pub fn into_rows(mut self) -> Vec<u8> {
        if let [one] = &mut self.sequences[..] {
            return std::mem::take(&mut one.rows);
        }
        self.sequences.iter().flat_map(|scores| &scores.rows).copied().collect()
    }
}

/// The results of one sequence. Lists have an element for each position, and are empty where the output does not have them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SequenceScores {
    /// ln p of the sequence's own token, given all before it.
    pub logprobs: Vec<f64>,
    /// Its place among all tokens in the order of `top`, from 1.
    pub ranks: Vec<u32>,
    /// Whether no token is likelier than it.
    pub greedy: Vec<bool>,
    /// The most likely tokens, the likeliest first (ties to the lower id).
    pub top: Vec<Vec<(u32, f64)>>,
    /// ln of the mass of all tokens that are not in `top`.
    pub tail_logprobs: Vec<f64>,
    /// Of the ids in the request.
    pub ids: Vec<Vec<f64>>,
    /// Rows of logits or hidden states, little-endian, one after another.
    pub rows: Vec<u8>,
    /// The pooled vector, of the model's hidden width.
    pub vector: Vec<f64>,
    /// Tokens that came from the prefix cache.
    pub cached_tokens: usize,
}

impl SequenceScores {
    /// Adds the results of the positions after these.
    pub(crate) fn append(&mut self, mut next: Self) {
        self.logprobs.append(&mut next.logprobs);
        self.ranks.append(&mut next.ranks);
        self.greedy.append(&mut next.greedy);
        self.top.append(&mut next.top);
        self.tail_logprobs.append(&mut next.tail_logprobs);
        self.ids.append(&mut next.ids);
        self.rows.append(&mut next.rows);
    }
}
