//! Log-probabilities of the end of a sequence, in the steps of the generations. The scheduler computes its tokens like a
//! prompt's; a step that has some of the rows asked for reads their logits before it is done.

use autograd::{Tape, Tensor, ops};
use rayon::prelude::*;

use super::grade::Asked;
use super::score::CHUNK;
use super::slot::{SlotEngine, check_ids};
use crate::handle::Reply;
use crate::request::{Continuation, ContinuationRequest};
use crate::scheduler::{Plan, RequestId, SeqRequest};
use crate::{Error, Result};

/// A sequence whose end is scored.
pub(super) struct Scoring {
    tokens: Vec<u32>,
    from: usize,
    /// ln p of each token from `from` on, and whether none was likelier; NaN until it is computed.
    scores: Vec<(f64, bool)>,
    /// Tokens that the first step did not compute; `None` before it.
    cached_tokens: Option<usize>,
    reply: Reply<Continuation>,
}

/// One row of a step whose logits are asked for.
struct Row {
    id: RequestId,
    /// Row of the batch.
    row: u32,
    /// Position of the token that it predicts.
    position: usize,
    /// That token.
    target: u32,
}

impl SlotEngine {
    /// Queues a sequence, or answers why not.
    pub(super) fn submit_scoring(&mut self, id: RequestId, request: ContinuationRequest, reply: Reply<Continuation>) {
        if let Err(e) = self.try_submit_scoring(id, request, &reply) {
            drop(reply.send(Err(e)));
        }
    }

    fn try_submit_scoring(
        &mut self,
        id: RequestId,
        ContinuationRequest { tokens, from, .. }: ContinuationRequest,
        reply: &Reply<Continuation>,
    ) -> Result<()> {
        check_ids(&tokens, self.config())?;
        if from == 0 || from >= tokens.len() {
            let what =
                format!("from = {from} of {} tokens; it must be at least 1, and below their number", tokens.len());
            return Err(Error::Request(what));
        }
        // Nothing is predicted from the last token.
        let prompt = tokens[..tokens.len() - 1].into();
        let (key, scored_from) = (self.cache_key(), Some(from - 1));
        self.scheduler.submit(SeqRequest { id, key, prompt, max_new_tokens: 0, scored_from, ahead: false })?;
        let scores = vec![(f64::NAN, false); tokens.len() - from];
        self.scoring.insert(id, Scoring { tokens, from, scores, cached_tokens: None, reply: reply.clone() });
        Ok(())
    }

    /// The sequences whose last tokens `plan` computes.
    pub(super) fn completes(&self, plan: &Plan) -> Vec<RequestId> {
        let ends = |seq: &&crate::scheduler::PlanSeq| {
            self.scoring.get(&seq.id).is_some_and(|scoring| seq.tokens.end + 1 == scoring.tokens.len())
        };
        plan.seqs.iter().filter(ends).map(|seq| seq.id).collect()
    }

    /// Scores the rows of a step that are asked for; `hidden` `[T, H]` are its final hidden states.
    pub(super) fn score_planned(&mut self, plan: &Plan, hidden: &Tensor) -> Result<()> {
        let mut rows = Vec::new();
        let mut first = 0;
        for seq in &plan.seqs {
            if let Some(scoring) = self.scoring.get_mut(&seq.id) {
                scoring.cached_tokens.get_or_insert(seq.tokens.start);
                for position in (scoring.from - 1).max(seq.tokens.start)..seq.tokens.end {
                    let row = (first + position - seq.tokens.start) as u32;
                    let position = position + 1;
                    rows.push(Row { id: seq.id, row, position, target: scoring.tokens[position] });
                }
            }
            first += seq.tokens.len();
        }
        rows.chunks(CHUNK).try_for_each(|rows| self.score_continuations(rows, hidden))
    }

    fn score_continuations(&mut self, rows: &[Row], hidden: &Tensor) -> Result<()> {
        let places = rows.iter().map(|row| row.row).collect();
        let hidden = ops::select_rows(&mut Tape::off(), hidden, &places)?;
        let logits = ops::logits(self.head(&hidden))?.read()?;
        let logits = logits.par_chunks(self.config().vocab_size);
        let scores: Vec<(f64, bool)> = rows.par_iter().zip(logits).map(|(row, z)| score(z, row.target)).collect();
        for (row, score) in rows.iter().zip(scores) {
            let scoring = self.scoring.get_mut(&row.id).expect("its rows are in the plan");
            scoring.scores[row.position - scoring.from] = score;
        }
        Ok(())
    }

    /// Answers sequences whose tokens are all computed.
    pub(super) fn answer_scored(&mut self, ids: &[RequestId]) {
        for id in ids {
            let Some(scoring) = self.scoring.remove(id) else { continue };
            self.scheduler.finish(*id);
            // Nobody may listen any more.
            drop(scoring.reply.send(scoring.answer()));
        }
    }

    /// Ends a sequence with an error.
    pub(super) fn fail_scoring(&mut self, id: RequestId, error: &Error) {
        if let Some(scoring) = self.scoring.remove(&id) {
            drop(scoring.reply.send(Err(error.for_another())));
        }
    }
}

impl Scoring {
    fn answer(&self) -> Result<Continuation> {
        if let Some(place) = self.scores.iter().position(|(logprob, _)| logprob.is_nan()) {
            return Err(Error::Request(format!("the logits at position {} are not numbers", self.from + place - 1)));
        }
        let (logprobs, greedy) = self.scores.iter().copied().unzip();
        Ok(Continuation { logprobs, greedy, cached_tokens: self.cached_tokens.unwrap_or(0) })
    }
}

/// ln p of `target`, and whether no token is likelier.
fn score(z: &[f32], target: u32) -> (f64, bool) {
    let own = z[target as usize];
    (Asked::plain().row(z, target).logprob, z.iter().all(|&other| other <= own))
}
