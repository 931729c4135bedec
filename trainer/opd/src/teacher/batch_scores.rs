//! Scores of the parts of a micro-batch, put together in the format of its loss.

use std::sync::Arc;

use autograd::ops::{LogitRows, TeacherRows, TopRows};
use runtime::train::PrecomputedTeacher;

use super::{ScoreFormat, TeacherScores};

/// Rows of a micro-batch, in order.
pub(super) struct BatchScores {
    format: ScoreFormat,
    bytes: Vec<u8>,
    own: Vec<f32>,
    ids: Vec<u32>,
    logprobs: Vec<f32>,
    tails: Vec<f32>,
}

impl BatchScores {
    pub(super) fn new(format: ScoreFormat) -> Self {
        Self { format, bytes: vec![], own: vec![], ids: vec![], logprobs: vec![], tails: vec![] }
    }

    /// Appends the rows of an ask whose tokens have these weights; a row without a weight is left out.
    pub(super) fn push(&mut self, scores: TeacherScores, weights: &[f32]) {
        let kept = || weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0).map(|(row, _)| row);
        match scores {
            TeacherScores::Logits(bytes) if weights.iter().all(|weight| *weight != 0.0) => self.bytes.extend(bytes),
            TeacherScores::Logits(bytes) => {
                let row = bytes.len() / weights.len().max(1);
                kept().for_each(|at| self.bytes.extend_from_slice(&bytes[at * row..(at + 1) * row]));
            }
            TeacherScores::LogProbs { own, ids, logprobs, tails } => {
                let k = ids.len() / weights.len().max(1);
                for row in kept() {
                    self.own.push(own[row]);
                    self.ids.extend_from_slice(&ids[row * k..(row + 1) * k]);
                    self.logprobs.extend_from_slice(&logprobs[row * k..(row + 1) * k]);
                    self.tails.extend(tails.get(row));
                }
            }
        }
    }

    /// All rows; `vocab` is the number of logits of one.
    pub(super) fn finish(self, vocab: usize) -> PrecomputedTeacher {
        match self.format {
            ScoreFormat::Logits(precision) => {
                let rows = LogitRows { bytes: self.bytes, precision, vocab };
                PrecomputedTeacher {
                    logprobs: vec![],
                    temperature: 1.0,
                    rows: Some(Arc::new(TeacherRows::Logits(rows))),
                }
            }
            ScoreFormat::Top { k, temperature } => {
                let (ids, logprobs, tail_logprobs) = (self.ids, self.logprobs, self.tails);
                let top = TopRows { k, ids, logprobs, tail_logprobs, temperature };
                PrecomputedTeacher { logprobs: self.own, temperature, rows: Some(Arc::new(TeacherRows::Top(top))) }
            }
            ScoreFormat::Own { temperature } => PrecomputedTeacher { logprobs: self.own, temperature, rows: None },
        }
    }
}
