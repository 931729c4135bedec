//! The rows of a step that are asked for.

use std::collections::BTreeMap;

use autograd::{Tape, Tensor, ops};
use rayon::prelude::*;

use super::{Output, Row, Said, Scoring};
use crate::Result;
use crate::engine::runner::ModelRunner;
use crate::request::Pooling;
use crate::scheduler::{RequestId, SchedulerOutput};

/// Rows whose logits are held at a time.
const CHUNK: usize = 64;

/// One row of a step that is asked for.
#[derive(Clone, Copy)]
struct Place {
    /// The request.
    id: RequestId,
    /// The sequence's place in it.
    sequence: usize,
    /// Row of the batch.
    row: u32,
    /// The token after it, where there is one.
    target: Option<u32>,
}

/// What a row of logits says.
enum Spoken {
    Row(Row),
    Bytes(Vec<u8>),
}

impl ModelRunner {
    /// Whether `plan` computes rows that are asked for before the last norm.
    pub(in crate::engine) fn wants_residual(&self, plan: &SchedulerOutput) -> bool {
        plan.seqs
            .iter()
            .filter_map(|seq| self.scores.members.get(&seq.id))
            .any(|(id, _)| matches!(self.scores.requests[id].output, Output::Hidden { normalized: false, .. }))
    }

    /// Reads the rows of a step that are asked for; `hidden` `[T, H]` are its final hidden states, `residual` the same before
    /// the last norm.
    pub(in crate::engine) fn score_planned(
        &mut self,
        plan: &SchedulerOutput,
        hidden: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<()> {
        let mut from_logits = Vec::new();
        for (id, places) in self.places(plan) {
            let output = self.scores.requests[&id].output.clone();
            match output {
                Output::LogProbs(_) | Output::Logits(_) => from_logits.extend(places),
                Output::Own(temperature) => self.own_log_probs(&places, hidden, temperature)?,
                Output::Hidden { normalized, precision } => {
                    let hidden = residual.filter(|_| !normalized).unwrap_or(hidden);
                    self.each_row(&places, hidden, |said, row| precision.encode(row, &mut said.bytes))?;
                }
                Output::Pooled(Pooling::Last) => {
                    self.each_row(&places, hidden, |said, row| {
                        said.vector = row.iter().copied().map(f64::from).collect();
                    })?;
                }
                Output::Pooled(Pooling::Mean) => {
                    self.each_row(&places, hidden, |said, row| {
                        said.vector.resize(row.len(), 0.0);
                        said.vector.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
                    })?;
                }
            }
        }
        // Rows of distributions over other numbers of ids are other rows.
        let alike = from_logits.chunk_by(|a, b| self.token_ids(a) == self.token_ids(b));
        let chunks: Vec<&[Place]> = alike.flat_map(|places| places.chunks(CHUNK)).collect();
        chunks.into_iter().try_for_each(|places| self.read_logits(places, hidden))
    }

    /// The rows that are asked for and of which nothing is said yet, by request.
    fn places(&mut self, plan: &SchedulerOutput) -> BTreeMap<RequestId, Vec<Place>> {
        let mut places: BTreeMap<RequestId, Vec<Place>> = BTreeMap::new();
        let mut first = 0;
        for seq in &plan.seqs {
            if let Some(&(id, number)) = self.scores.members.get(&seq.id) {
                let scoring = self.scores.requests.get_mut(&id).expect("a member's request is there");
                let sequence = &mut scoring.sequences[number];
                if !std::mem::replace(&mut sequence.seen, true) {
                    sequence.said.cached_tokens = seq.tokens.start;
                }
                // A sequence that was preempted is computed again.
                let next = sequence.span.positions.start + sequence.said.done - 1;
                let rows = next.max(seq.tokens.start)..seq.tokens.end.max(next);
                sequence.said.done += rows.len();
                let tokens = &sequence.span.tokens;
                let place = |at: usize| Place {
                    id,
                    sequence: number,
                    row: (first + at - seq.tokens.start) as u32,
                    target: tokens.get(at + 1).copied(),
                };
                places.entry(id).or_default().extend(rows.map(place));
            }
            first += seq.tokens.len();
        }
        places.retain(|_, places| !places.is_empty());
        places
    }

    fn token_ids(&self, place: &Place) -> Option<usize> {
        self.scores.requests[&place.id].token_ids
    }

    /// The head of one request's rows.
    fn head_of<'a>(&'a self, hidden: &'a Tensor, place: &Place) -> ops::Head<'a> {
        let head = self.head(hidden);
        ops::Head { ids: self.token_ids(place).unwrap_or(head.ids), ..head }
    }

    fn said(&mut self, place: &Place) -> &mut Said {
        let scoring: Option<&mut Scoring> = self.scores.requests.get_mut(&place.id);
        &mut scoring.expect("a place's request is there").sequences[place.sequence].said
    }

    /// Calls `take` with the rows of `hidden` at `places`, in order.
    fn each_row(&mut self, places: &[Place], hidden: &Tensor, take: impl Fn(&mut Said, &[f32])) -> Result<()> {
        let values = rows_at(places, hidden)?.read()?;
        for (place, row) in places.iter().zip(values.chunks(hidden.cols())) {
            take(self.said(place), row);
        }
        Ok(())
    }

    fn own_log_probs(&mut self, places: &[Place], hidden: &Tensor, temperature: f64) -> Result<()> {
        let targets: Vec<u32> = places.iter().map(own_token).collect();
        let hidden = rows_at(places, hidden)?;
        let logprobs = ops::linear_log_prob(self.head_of(&hidden, &places[0]), &targets, temperature)?;
        for (place, logprob) in places.iter().zip(logprobs) {
            self.said(place).rows.push(Row { logprob: f64::from(logprob), ..Row::default() });
        }
        Ok(())
    }

    fn read_logits(&mut self, places: &[Place], hidden: &Tensor) -> Result<()> {
        let hidden = rows_at(places, hidden)?;
        let logits = ops::logits(self.head_of(&hidden, &places[0]))?.read()?;
        let columns = self.token_ids(&places[0]).unwrap_or(self.config().vocab_size);
        let requests = &self.scores.requests;
        let say = |(place, z): (&Place, &[f32])| match &requests[&place.id].output {
            Output::LogProbs(asked) => Spoken::Row(asked.row(z, own_token(place))),
            Output::Logits(precision) => {
                let mut bytes = Vec::with_capacity(columns * precision.bytes());
                precision.encode(&z[..columns], &mut bytes);
                Spoken::Bytes(bytes)
            }
            Output::Own(_) | Output::Hidden { .. } | Output::Pooled(_) => unreachable!("these need no logits"),
        };
        let rows = places.par_iter().zip(logits.par_chunks(self.config().vocab_size));
        let spoken: Vec<Spoken> = rows.map(say).collect();
        for (place, spoken) in places.iter().zip(spoken) {
            let said = self.said(place);
            match spoken {
                Spoken::Row(row) => said.rows.push(row),
                Spoken::Bytes(bytes) => said.bytes.extend(bytes),
            }
        }
        Ok(())
    }
}

/// The token that a place predicts.
fn own_token(place: &Place) -> u32 {
    place.target.expect("positions that are asked about their token have one")
}

fn rows_at(places: &[Place], hidden: &Tensor) -> Result<Tensor> {
    Ok(ops::select_rows(&mut Tape::off(), hidden, &places.iter().map(|place| place.row).collect())?)
}
