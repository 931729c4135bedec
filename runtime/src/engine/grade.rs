//! What a model says of positions of given sequences: packed forwards, and a few rows of logits at a time.

use autograd::ops::{self, Sequences};
use autograd::{Index, Tape, Tensor};
use rayon::prelude::*;

use super::score::CHUNK;
use super::slot::{SlotEngine, check_ids};
use crate::request::{GradeRequest, Graded, GradedRows, Grades, Span, Wanted};
use crate::{Error, Result};

impl SlotEngine {
    /// Runs all sequences, as many at a time as the model's context has tokens.
    pub(super) fn grade(&self, request: &GradeRequest) -> Result<Graded> {
        self.check_grade(request)?;
        let mut grades = match request.wanted {
            Wanted::LogProbs { .. } => Grades::LogProbs(Vec::with_capacity(request.sequences.len())),
            Wanted::Logits(_) => {
                Grades::Rows { bytes: vec![], columns: request.token_ids.unwrap_or(self.config().vocab_size) }
            }
            Wanted::Hidden { .. } => Grades::Rows { bytes: vec![], columns: self.config().hidden_size },
        };
        let mut rest = &request.sequences[..];
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = |span: &&Span| {
                tokens += inputs(span).len();
                tokens <= self.config().max_position_embeddings
            };
            // One always fits: it was checked.
            let count = rest.iter().take_while(fits).count().max(1);
            let (batch, later) = rest.split_at(count);
            self.grade_batch(batch, request, &mut grades)?;
            rest = later;
        }
        Ok(Graded { version: self.version, grades })
    }

    /// The head with `token_ids`, where they are given.
    fn head_of<'a>(&'a self, hidden: &'a Tensor, token_ids: Option<usize>) -> ops::Head<'a> {
        let head = self.head(hidden);
        ops::Head { ids: token_ids.unwrap_or(head.ids), ..head }
    }

    fn check_grade(&self, request: &GradeRequest) -> Result<()> {
        let config = self.config();
        if let Some(ids) = request.token_ids.filter(|&ids| ids == 0 || ids > config.vocab_size) {
            return Err(Error::Request(format!("{ids} ids are to be compared, of 1 to {}", config.vocab_size)));
        }
        let about_tokens = matches!(request.wanted, Wanted::LogProbs { .. });
        for (number, span) in request.sequences.iter().enumerate() {
            check_ids(&span.tokens, config)?;
            let (positions, len) = (&span.positions, span.tokens.len());
            let last = if about_tokens { len } else { len + 1 };
            let refuse = |what: String| Err(Error::Request(format!("sequence {number}: {what}")));
            if positions.start == 0 || positions.start >= positions.end || positions.end > last {
                return refuse(format!("positions {}..{} are not within 1..{last}", positions.start, positions.end));
            }
            if inputs(span).len() > config.max_position_embeddings {
                let max = config.max_position_embeddings;
                return refuse(format!("{} tokens exceed the model's context of {max}", inputs(span).len()));
            }
        }
        if let Wanted::LogProbs { top, ids, temperature, .. } = &request.wanted {
            check_ids(ids, config)?;
            let compared = request.token_ids.unwrap_or(config.vocab_size);
            if *top > compared {
                return Err(Error::Request(format!("top {top} exceeds the vocabulary of {compared}")));
            }
            if !(*temperature > 0.0 && temperature.is_finite()) {
                return Err(Error::Request(format!("temperature {temperature} must be positive")));
            }
        }
        Ok(())
    }

    fn grade_batch(&self, batch: &[Span], request: &GradeRequest, grades: &mut Grades) -> Result<()> {
        let wanted = &request.wanted;
        let (mut ids, mut lengths, mut rows) = (vec![], vec![], vec![]);
        for span in batch {
            // Position i is the row of the token before it.
            rows.extend(span.positions.clone().map(|i| (ids.len() + i - 1) as u32));
            ids.extend_from_slice(inputs(span));
            lengths.push(inputs(span).len());
        }
        let (ids, sequences, mut tape) = (Index::from(ids), Sequences::from_lengths(&lengths), Tape::off());
        let (decoder, pass) = (&self.decoder, &self.serving);
        let hidden = match wanted {
            Wanted::Hidden { normalized: false, .. } => decoder.residual_packed(&mut tape, pass, &ids, &sequences)?,
            _ => decoder.forward_packed(&mut tape, pass, &ids, &sequences)?,
        };
        let hidden = ops::select_rows(&mut tape, &hidden, &rows.into())?;
        match (wanted, grades) {
            (Wanted::Hidden { precision, .. }, Grades::Rows { bytes, .. }) => {
                precision.encode(&hidden.read()?, bytes);
            }
            (Wanted::Logits(precision), Grades::Rows { bytes, .. }) => {
                let columns = request.token_ids.unwrap_or(self.config().vocab_size);
                self.each_logits(&hidden, request.token_ids, |_, z| {
                    z.chunks(self.config().vocab_size).for_each(|row| precision.encode(&row[..columns], bytes));
                    Ok(())
                })?;
            }
            (Wanted::LogProbs { top, ids, temperature, ranks }, Grades::LogProbs(graded)) => {
                let token_ids = request.token_ids;
                let asked = Asked { top: *top, ids, temperature: *temperature, ranks: *ranks, token_ids };
                graded.extend(self.log_probs(&hidden, batch, &asked)?);
            }
            _ => unreachable!("the grades were made for what is wanted"),
        }
        Ok(())
    }

    /// Calls `take(first row, logits)` for some rows of `hidden` after others.
    fn each_logits(
        &self,
        hidden: &Tensor,
        token_ids: Option<usize>,
        mut take: impl FnMut(usize, Vec<f32>) -> Result<()>,
    ) -> Result<()> {
        for first in (0..hidden.rows()).step_by(CHUNK) {
            let places: Vec<u32> = (first..(first + CHUNK).min(hidden.rows())).map(|row| row as u32).collect();
            let rows = ops::select_rows(&mut Tape::off(), hidden, &places.into())?;
            take(first, ops::logits(self.head_of(&rows, token_ids))?.read()?)?;
        }
        Ok(())
    }

    fn log_probs(&self, hidden: &Tensor, batch: &[Span], asked: &Asked<'_>) -> Result<Vec<GradedRows>> {
        let targets: Vec<u32> = batch.iter().flat_map(|span| &span.tokens[span.positions.clone()]).copied().collect();
        let rows: Vec<Row> = if asked.top == 0 && asked.ids.is_empty() && !asked.ranks {
            // What a loss would be told, without the logits leaving the device.
            let logprobs = ops::linear_log_prob(self.head_of(hidden, asked.token_ids), &targets, asked.temperature)?;
            let row = |logprob| Row { logprob: f64::from(logprob), ..Row::default() };
            logprobs.into_iter().map(row).collect()
        } else {
            let (mut rows, vocab) = (Vec::with_capacity(targets.len()), self.config().vocab_size);
            self.each_logits(hidden, asked.token_ids, |first, z| {
                let part = z.par_chunks(vocab).enumerate().map(|(i, z)| asked.row(z, targets[first + i]));
                rows.par_extend(part);
                Ok(())
            })?;
            rows
        };
        if let Some(place) = rows.iter().position(|row| row.logprob.is_nan()) {
            return Err(Error::Request(format!("the logits of position {place} of the request are not numbers")));
        }
        let mut rows = rows.into_iter();
        Ok(batch.iter().map(|span| asked.collect(rows.by_ref().take(span.positions.len()))).collect())
    }
}

/// The tokens that have to be run.
fn inputs(span: &Span) -> &[u32] {
    &span.tokens[..span.positions.end - 1]
}

/// What [`Wanted::LogProbs`] asks of a row.
pub(super) struct Asked<'a> {
    pub(super) top: usize,
    pub(super) ids: &'a [u32],
    pub(super) temperature: f64,
    pub(super) ranks: bool,
    pub(super) token_ids: Option<usize>,
}

/// What is said of one position.
#[derive(Default)]
pub(super) struct Row {
    pub(super) logprob: f64,
    rank: u32,
    pub(super) top: Vec<(u32, f64)>,
    tail: f64,
    ids: Vec<f64>,
}

impl Asked<'_> {
    /// The own token alone, of the model's own distribution.
    pub(super) fn plain() -> Self {
        Self { top: 0, ids: &[], temperature: 1.0, ranks: false, token_ids: None }
    }

    /// From logits, in double precision.
    pub(super) fn row(&self, z: &[f32], target: u32) -> Row {
        // At temperature 1 these are the roundings of the sampler, so that both give one token the same number.
        let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = z.iter().map(|&v| (f64::from(v - max) / self.temperature).exp()).sum();
        let log_sum = f64::from(max) / self.temperature + sum.ln();
        let logprob = |id: u32| f64::from(z[id as usize]) / self.temperature - log_sum;
        let ids = self.ids.iter().map(|&id| logprob(id)).collect();
        let mut row = Row { logprob: logprob(target), ids, ..Row::default() };
        if self.ranks {
            row.rank = rank(z, target);
        }
        if self.top > 0 {
            let mut order: Vec<u32> = (0..z.len() as u32).collect();
            let before = |a: &u32, b: &u32| z[*b as usize].total_cmp(&z[*a as usize]).then(a.cmp(b));
            if self.top < order.len() {
                order.select_nth_unstable_by(self.top - 1, before);
            }
            // By addition: one minus the rest would cancel.
            row.tail = order[self.top..].iter().map(|&id| logprob(id).exp()).sum::<f64>().ln();
            order.truncate(self.top);
            order.sort_unstable_by(before);
            row.top = order.into_iter().map(|id| (id, logprob(id))).collect();
        }
        row
    }

    fn collect(&self, rows: impl Iterator<Item = Row>) -> GradedRows {
        let mut graded = GradedRows::default();
        for row in rows {
            graded.logprobs.push(row.logprob);
            if self.ranks {
                graded.ranks.push(row.rank);
            }
            if self.top > 0 {
                graded.top.push(row.top);
                graded.tail_logprobs.push(row.tail);
            }
            if !self.ids.is_empty() {
                graded.ids.push(row.ids);
            }
        }
        graded
    }
}

/// A token's place by falling logit, ties by rising id, from 1.
fn rank(z: &[f32], target: u32) -> u32 {
    let (lower, own) = (target as usize, z[target as usize]);
    let likelier = z.iter().filter(|&&other| other > own).count();
    let equal = z[..lower].iter().filter(|&&other| other == own).count();
    (1 + likelier + equal) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_places_in_the_list_of_the_likeliest() {
        let z = [0.5, 2.0, -1.0, 2.0, f32::NEG_INFINITY, 0.5, 3.0, f32::NEG_INFINITY];
        let asked = Asked { top: z.len(), ids: &[], temperature: 0.7, ranks: true, token_ids: None };
        for target in 0..z.len() as u32 {
            let row = asked.row(&z, target);
            assert_eq!(row.top[row.rank as usize - 1].0, target);
        }
    }
}
