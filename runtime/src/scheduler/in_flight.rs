//! Steps that are planned and not committed, and what comes of them ([`Scheduler::commit`]).

use std::collections::VecDeque;

use crate::kv::PAGE_SIZE;

use super::sequence::{Arrival, Sequence};
use super::{RequestId, Scheduler};

/// Planned steps whose results are awaited, oldest first.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    steps: VecDeque<Step>,
    next: u64,
}

/// One planned step.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) planned: Vec<PlannedSeq>,
    /// Sequences that compute more than one token: whose prefix may be worth waiting for.
    pub(super) prefills: Vec<Arrival>,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlannedSeq {
    pub(super) id: RequestId,
    pub(super) arrival: Arrival,
    /// Tokens computed after it.
    pub(super) computed: usize,
    pub(super) sample: bool,
    /// The sequence's count when it was planned.
    pub(super) preemptions: u32,
    /// The request has ended: the result is of no interest.
    pub(super) forgotten: bool,
}

impl InFlight {
    /// Most plans without a commit: one that runs and the next.
    const MOST: usize = 2;

    pub(super) fn has_room(&self) -> bool {
        self.steps.len() < Self::MOST
    }

    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Number of the step that is planned next.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn push(&mut self, step: Step) {
        self.steps.push_back(step);
        self.next += 1;
    }

    /// Whether the step of this number is not committed.
    pub(super) fn holds(&self, number: u64) -> bool {
        (self.oldest()..self.next).contains(&number)
    }

    fn oldest(&self) -> u64 {
        self.next - self.steps.len() as u64
    }

    pub(super) fn forget(&mut self, id: RequestId) {
        let all = self.steps.iter_mut().flat_map(|step| &mut step.planned);
        all.filter(|planned| planned.id == id).for_each(|planned| planned.forgotten = true);
    }

    /// Number of the step and arrival of every prefill in flight.
    pub(super) fn prefills(&self) -> impl Iterator<Item = (u64, Arrival)> + '_ {
        let steps = (self.oldest()..).zip(&self.steps);
        steps.flat_map(|(number, step)| step.prefills.iter().map(move |&arrival| (number, arrival)))
    }
}

impl Scheduler {
    /// Takes the results of the oldest step in flight: its tokens are computed, and `sampled` continues the sequences that sample,
    /// in the plan's order. Results of requests that ended since the plan are ignored, and may be left out.
    ///
    /// A sequence that was preempted since keeps its token, but not what was computed: others have the pages.
    ///
    /// # Panics
    /// If no step is in flight, or a planned sequence has a sampled token exactly when it should not.
    pub fn commit(&mut self, sampled: &[(RequestId, u32)]) {
        let step = self.in_flight.steps.pop_front().expect("a commit follows a plan");
        let mut sampled = sampled.iter().peekable();
        for planned in step.planned {
            let token = sampled.next_if(|(id, _)| *id == planned.id).map(|&(_, token)| token);
            if planned.forgotten {
                continue;
            }
            let id = planned.id;
            assert!(planned.sample || token.is_none(), "{id:?} is not at its last token: nothing to sample");
            assert!(!planned.sample || token.is_some(), "no sampled token for {id:?}");
            self.apply_result(planned, token);
        }
        assert!(sampled.next().is_none(), "sampled tokens come in the order of the plan");
    }

    /// Marks tokens as computed, shares the pages that became full, and appends the sampled token.
    fn apply_result(&mut self, planned: PlannedSeq, token: Option<u32>) {
        let arrival = &planned.arrival;
        let sequence = self.running.get_mut(arrival).or_else(|| self.waiting.get_mut(arrival));
        let sequence = sequence.expect("what was planned runs, waits or was forgotten");
        if sequence.preemptions == planned.preemptions {
            let before = sequence.full_pages();
            sequence.computed = planned.computed;
            let full = sequence.full_pages();
            if self.config.prefix_cache && full > before {
                let Sequence { key, tokens, pages, .. } = sequence;
                let (tokens, pages) = (&tokens[..full * PAGE_SIZE], &mut pages[..full]);
                self.cache.insert(&mut self.pool, *key, tokens, pages);
            }
        }
        if let Some(token) = token {
            sequence.placeholders -= 1;
            sequence.tokens.push(token);
        }
    }
}
