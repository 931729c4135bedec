//! The scored rows of a step.

use std::collections::BTreeMap;

use autograd::{Tape, Tensor, ops};
use rayon::prelude::*;

use crate::Result;
use crate::engine::runner::ModelRunner;
use crate::ids::RequestId;
use crate::request::{Pooling, ScoreOutput, SequenceScores};
use crate::scheduler::ModelGroup;

/// Rows whose logits are held at a time.
const CHUNK: usize = 64;

/// One scored row of a step.
#[derive(Clone, Copy)]
struct ScoreRow {
    /// The request.
    id: RequestId,
    /// The sequence's place in it.
    sequence: usize,
    /// Row of the batch.
    row: u32,
    /// The token after it, where there is one.
    target: Option<u32>,
}

impl ModelRunner {
    /// Whether a model's part of a step computes rows whose hidden state before the last norm is requested.
    pub(in crate::engine) fn wants_residual(&self, group: &ModelGroup<'_>) -> bool {
        group
            .seqs
            .iter()
            .filter_map(|seq| self.scores.members.get(&seq.id))
            .any(|(id, _)| matches!(self.scores.requests[id].output, ScoreOutput::Hidden { normalized: false, .. }))
    }

    /// Reads the results of a model's scored rows of a step; `hidden` `[T, H]` are its final hidden states, `residual` the same before
    /// the last norm.
    pub(in crate::engine) fn score_planned(
        &mut self,
        group: &ModelGroup<'_>,
        hidden: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<()> {
        let mut from_logits = Vec::new();
        for (id, rows) in self.score_rows(group) {
            let output = self.scores.requests[&id].output.clone();
            match output {
                ScoreOutput::LogProbs(_) | ScoreOutput::Logits(_) => from_logits.extend(rows),
                ScoreOutput::TokenLogProbs { temperature } => self.token_log_probs(&rows, hidden, temperature)?,
                ScoreOutput::Hidden { normalized, precision } => {
                    let hidden = residual.filter(|_| !normalized).unwrap_or(hidden);
                    self.each_row(&rows, hidden, |scores, row| precision.encode(row, &mut scores.rows))?;
                }
                ScoreOutput::Pooled(Pooling::Last) => {
                    self.each_row(&rows, hidden, |scores, row| {
                        scores.vector = row.iter().copied().map(f64::from).collect();
                    })?;
                }
                ScoreOutput::Pooled(Pooling::Mean) => {
                    self.each_row(&rows, hidden, |scores, row| {
                        scores.vector.resize(row.len(), 0.0);
                        scores.vector.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
                    })?;
                }
            }
        }
        // Rows of distributions over other numbers of ids are other rows.
        let alike = from_logits.chunk_by(|a, b| self.token_ids(a) == self.token_ids(b));
        let chunks: Vec<&[ScoreRow]> = alike.flat_map(|rows| rows.chunks(CHUNK)).collect();
        chunks.into_iter().try_for_each(|rows| self.read_logits(rows, hidden))
    }

    /// The scored rows that have no results yet, by request.
    fn score_rows(&mut self, group: &ModelGroup<'_>) -> BTreeMap<RequestId, Vec<ScoreRow>> {
        let mut scored: BTreeMap<RequestId, Vec<ScoreRow>> = BTreeMap::new();
        let mut first = 0;
        for seq in group.seqs {
            if let Some(&(id, number)) = self.scores.members.get(&seq.id) {
                let scoring = self.scores.requests.get_mut(&id).expect("a member's request is there");
                let pending = &mut scoring.sequences[number];
                if !std::mem::replace(&mut pending.seen, true) {
                    pending.scores.cached_tokens = seq.tokens.start;
                }
                // A sequence that was preempted is computed again.
                let next = pending.sequence.positions.start + pending.done - 1;
                let rows = next.max(seq.tokens.start)..seq.tokens.end.max(next);
                pending.done += rows.len();
                let tokens = &pending.sequence.tokens;
                let row = |at: usize| ScoreRow {
                    id,
                    sequence: number,
                    row: (first + at - seq.tokens.start) as u32,
                    target: tokens.get(at + 1).copied(),
                };
                scored.entry(id).or_default().extend(rows.map(row));
            }
            first += seq.tokens.len();
        }
        scored.retain(|_, rows| !rows.is_empty());
        scored
    }

    fn token_ids(&self, row: &ScoreRow) -> Option<usize> {
        self.scores.requests[&row.id].token_ids
    }

    /// The head of one request's rows.
    fn head_of<'a>(&'a self, hidden: &'a Tensor, row: &ScoreRow) -> ops::Head<'a> {
        let head = self.model(self.scores.requests[&row.id].model).head(hidden);
        ops::Head { ids: self.token_ids(row).unwrap_or(head.ids), ..head }
    }

    /// The results of a row's sequence.
    fn scores_of(&mut self, row: &ScoreRow) -> &mut SequenceScores {
        let pending = self.scores.requests.get_mut(&row.id).expect("a row's request is there");
        &mut pending.sequences[row.sequence].scores
    }

    /// Calls `take` with the values of `hidden` at `rows`, in order.
    fn each_row(
        &mut self,
        rows: &[ScoreRow],
        hidden: &Tensor,
        take: impl Fn(&mut SequenceScores, &[f32]),
    ) -> Result<()> {
        let values = select(rows, hidden)?.read()?;
        for (row, values) in rows.iter().zip(values.chunks(hidden.cols())) {
            take(self.scores_of(row), values);
        }
        Ok(())
    }

    fn token_log_probs(&mut self, rows: &[ScoreRow], hidden: &Tensor, temperature: f64) -> Result<()> {
        let targets: Vec<u32> = rows.iter().map(own_token).collect();
        let hidden = select(rows, hidden)?;
        let logprobs = ops::linear_log_prob(self.head_of(&hidden, &rows[0]), &targets, temperature)?;
        for (row, logprob) in rows.iter().zip(logprobs) {
            self.scores_of(row).logprobs.push(f64::from(logprob));
        }
        Ok(())
    }

    fn read_logits(&mut self, rows: &[ScoreRow], hidden: &Tensor) -> Result<()> {
        let hidden = select(rows, hidden)?;
        let logits = ops::logits(self.head_of(&hidden, &rows[0]))?.read()?;
        let columns = self.token_ids(&rows[0]).unwrap_or(self.config().vocab_size);
        let requests = &self.scores.requests;
        let score = |(row, z): (&ScoreRow, &[f32])| match &requests[&row.id].output {
            ScoreOutput::LogProbs(log_probs) => log_probs.of_row(z, own_token(row)),
            ScoreOutput::Logits(precision) => {
                let mut rows = Vec::with_capacity(columns * precision.bytes());
                precision.encode(&z[..columns], &mut rows);
                SequenceScores { rows, ..SequenceScores::default() }
            }
            ScoreOutput::TokenLogProbs { .. } | ScoreOutput::Hidden { .. } | ScoreOutput::Pooled(_) => {
                unreachable!("these need no logits")
            }
        };
        let with_logits = rows.par_iter().zip(logits.par_chunks(self.config().vocab_size));
        let scores: Vec<SequenceScores> = with_logits.map(score).collect();
        for (row, scores) in rows.iter().zip(scores) {
            self.scores_of(row).append(scores);
        }
        Ok(())
    }
}

/// The token that a row predicts.
fn own_token(row: &ScoreRow) -> u32 {
    row.target.expect("positions whose own token is scored have one")
}

fn select(rows: &[ScoreRow], hidden: &Tensor) -> Result<Tensor> {
    Ok(ops::select_rows(&mut Tape::off(), hidden, &rows.iter().map(|row| row.row).collect())?)
}
