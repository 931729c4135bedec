//! One step: what to compute ([`Scheduler::plan`]) and what came of it ([`Scheduler::commit`]).

use std::collections::BTreeMap;
use std::ops::{Bound, Range};

use crate::kv::{PAGE_SIZE, PageId, PrefixMatch, Tail, pages_for};

use super::sequence::{Sequence, Ticket};
use super::{RequestId, Scheduler};

/// One step. Do the copies first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What to compute: at most `max_running` sequences, at most `token_budget` tokens.
    pub seqs: Vec<PlanSeq>,
    /// Pages to copy before anything is computed, in any order: no source is another one's target.
    pub copies: Vec<PageCopy>,
}

impl Plan {
    /// Whether there is nothing to do; only an idle scheduler plans nothing.
    pub fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }

    /// Tokens to compute.
    pub fn num_tokens(&self) -> usize {
        self.seqs.iter().map(|seq| seq.tokens.len()).sum()
    }
}

/// One sequence's part of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanSeq {
    /// The request.
    pub id: RequestId,
    /// Positions to compute; their ids are `Scheduler::tokens(id)[tokens]`.
    pub tokens: Range<usize>,
    /// Page table of positions `0..tokens.end`.
    pub pages: Vec<PageId>,
    /// Whether the last of them is the last known token, so that the next one is to be sampled.
    pub sample: bool,
}

/// The first `tokens` tokens of page `src` are wanted at the beginning of page `dst`, in every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageCopy {
    /// Shared page; read only.
    pub src: PageId,
    /// Fresh page of one sequence.
    pub dst: PageId,
    /// Valid tokens.
    pub tokens: usize,
}

/// What a plan has promised and no commit has settled.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    seqs: BTreeMap<RequestId, Promise>,
    /// Retained, so that nobody gets them as fresh pages before they are read.
    copy_sources: Vec<PageId>,
}

#[derive(Debug, Clone, Copy)]
struct Promise {
    ticket: Ticket,
    computed: usize,
    sample: bool,
}

impl InFlight {
    /// The request ended: its results are of no interest.
    pub(super) fn forget(&mut self, id: RequestId) {
        self.seqs.remove(&id);
    }

    pub(super) fn copy_sources(&self) -> impl Iterator<Item = PageId> + '_ {
        self.copy_sources.iter().copied()
    }
}

/// A plan in the making.
#[derive(Default)]
struct Draft {
    plan: Plan,
    budget: usize,
    /// Planned sequences that compute more than one token: whose prefix may be worth waiting for.
    prefills: Vec<Ticket>,
}

impl Scheduler {
    /// Plans the next step. It is not empty unless the scheduler is idle.
    ///
    /// # Panics
    /// If the step before was not committed.
    pub fn plan(&mut self) -> Plan {
        assert!(
            self.in_flight.seqs.is_empty() && self.in_flight.copy_sources.is_empty(),
            "commit the previous plan first"
        );
        let mut draft = Draft { budget: self.config.token_budget, ..Draft::default() };
        self.plan_running(&mut draft, |remaining| remaining == 1);
        self.plan_running(&mut draft, |remaining| remaining > 1);
        self.admit(&mut draft);
        self.counters.steps += u64::from(!draft.plan.is_empty());
        self.counters.planned_tokens_total += draft.plan.num_tokens() as u64;
        draft.plan
    }

    /// Settles the step: its tokens are computed, and `sampled` continues the sequences that asked for it.
    /// Results of requests that ended since the plan are ignored.
    ///
    /// # Panics
    /// If a planned sequence has a sampled token exactly when it should not, or was not finished at its limit.
    pub fn commit(&mut self, sampled: &[(RequestId, u32)]) {
        for page in self.in_flight.copy_sources.drain(..) {
            self.pool.release(page);
        }
        let mut promised = std::mem::take(&mut self.in_flight.seqs);
        for promise in promised.values() {
            self.settle(promise.ticket, promise.computed);
        }
        for &(id, token) in sampled {
            let Some(promise) = promised.remove(&id) else {
                continue;
            };
            assert!(promise.sample, "{id:?} is not at its last token: nothing to sample");
            let sequence = self.running.get_mut(&promise.ticket).expect("planned sequences run");
            assert!(sequence.tokens.len() < sequence.limit, "{id:?} has all its tokens: finish it");
            sequence.tokens.push(token);
        }
        for (id, promise) in promised {
            assert!(!promise.sample, "no sampled token for {id:?}");
        }
    }

    /// Marks tokens as computed and shares the pages that became full.
    fn settle(&mut self, ticket: Ticket, computed: usize) {
        let sequence = self.running.get_mut(&ticket).expect("planned sequences run");
        let before = sequence.full_pages();
        sequence.computed = computed;
        let full = sequence.full_pages();
        if self.config.prefix_cache && full > before {
            let Sequence { key, tokens, pages, .. } = sequence;
            let (tokens, pages) = (&tokens[..full * PAGE_SIZE], &mut pages[..full]);
            self.cache.insert(&mut self.pool, *key, tokens, pages);
        }
    }

    /// Plans the running sequences whose number of remaining tokens is `wanted`, oldest first.
    fn plan_running(&mut self, draft: &mut Draft, wanted: fn(usize) -> bool) {
        let mut next = self.running.keys().next().copied();
        while let Some(ticket) = next.filter(|_| draft.budget > 0) {
            if wanted(self.running[&ticket].remaining()) && self.grow(ticket) {
                self.plan_tokens(draft, ticket);
            }
            let later = (Bound::Excluded(ticket), Bound::Unbounded);
            next = self.running.range(later).next().map(|(&ticket, _)| ticket);
        }
    }

    /// Plans as many tokens of a running sequence as the budget allows.
    fn plan_tokens(&mut self, draft: &mut Draft, ticket: Ticket) {
        let sequence = &self.running[&ticket];
        let count = sequence.remaining().min(draft.budget);
        let end = sequence.computed + count;
        let sample = end == sequence.tokens.len();
        draft.budget -= count;
        if count > 1 {
            draft.prefills.push(ticket);
        }
        draft.plan.seqs.push(PlanSeq {
            id: sequence.id,
            tokens: sequence.computed..end,
            pages: sequence.pages[..pages_for(end)].to_vec(),
            sample,
        });
        let promise = Promise { ticket, computed: end, sample };
        self.in_flight.seqs.insert(sequence.id, promise);
    }

    /// Gives a running sequence the page its last token needs, if any. `false`: it had to be preempted itself.
    /// Victims are younger, and running sequences are planned oldest first: none of them is planned yet.
    fn grow(&mut self, ticket: Ticket) -> bool {
        while self.running[&ticket].needs_page() {
            if self.pool.free_pages() == 0 {
                self.evict(1);
            }
            if let Some(page) = self.pool.allocate() {
                let sequence = self.running.get_mut(&ticket).expect("checked above");
                sequence.pages.push(page);
                continue;
            }
            let (youngest, mut victim) = self.running.pop_last().expect("one runs");
            assert!(!self.running.is_empty(), "submit refuses what does not fit the pool alone");
            victim.release_pages(&mut self.pool);
            victim.preempted = true;
            victim.stepped_aside = false;
            self.waiting.insert(youngest, victim);
            self.counters.preemptions += 1;
            if youngest == ticket {
                return false;
            }
        }
        true
    }

    fn evict(&mut self, pages: usize) {
        let evicted = self.cache.evict(&mut self.pool, pages);
        self.counters.evicted_pages += evicted as u64;
    }

    /// Admits from the waiting queue, in order, while budget, places and pages last.
    fn admit(&mut self, draft: &mut Draft) {
        let mut next = self.waiting.keys().next().copied();
        while let Some(ticket) = next.filter(|_| draft.budget > 0) {
            if self.running.len() == self.config.max_running {
                return;
            }
            let mut sequence = self.waiting.remove(&ticket).expect("a key of the map");
            if self.steps_aside(&sequence, &draft.prefills) {
                sequence.stepped_aside = true;
                self.counters.prefix_waits += 1;
                self.waiting.insert(ticket, sequence);
            } else if self.reserve(&mut sequence, &mut draft.plan.copies) {
                self.running.insert(ticket, sequence);
                self.plan_tokens(draft, ticket);
            } else {
                self.waiting.insert(ticket, sequence);
                return;
            }
            let later = (Bound::Excluded(ticket), Bound::Unbounded);
            next = self.waiting.range(later).next().map(|(&ticket, _)| ticket);
        }
    }

    /// Whether this step computes pages that `sequence` could share, and most of what it lacks: a step's
    /// delay is not worth a chat template's first words. Budget is left for it, so every prefill planned
    /// so far completes in this step: one step is enough.
    fn steps_aside(&self, sequence: &Sequence, prefills: &[Ticket]) -> bool {
        if sequence.stepped_aside || !self.shares(sequence) {
            return false;
        }
        let leaders = prefills.iter().map(|ticket| &self.running[ticket]);
        let shareable = leaders.map(|leader| sequence.shareable_with(leader)).max().unwrap_or(0);
        if shareable == 0 {
            return false;
        }
        let cached = self.cache.peek(sequence.key, &sequence.tokens);
        let lacking = sequence.tokens.len() - cached;
        2 * shareable.saturating_sub(cached) > lacking
    }

    /// Whether `sequence` takes part in prefix sharing.
    fn shares(&self, sequence: &Sequence) -> bool {
        self.config.prefix_cache && self.cache.accepts(sequence.key)
    }

    /// Gives a waiting sequence the pages of all its known tokens, cached ones where there are; `false`,
    /// with nothing taken, when that would leave too few for those that run.
    fn reserve(&mut self, sequence: &mut Sequence, copies: &mut Vec<PageCopy>) -> bool {
        let mut found = PrefixMatch::default();
        if self.shares(sequence) {
            found = self.cache.match_prefix(&mut self.pool, sequence.key, &sequence.tokens);
        }
        let fresh = pages_for(sequence.tokens.len()) - found.pages.len();
        let wanted = fresh + self.headroom(sequence);
        if wanted > self.pool.available_pages() {
            // The source of a copy is one page more than the sequence needs; it can do without.
            if let Some(tail) = found.tail.take() {
                self.pool.release(tail.page);
            }
        }
        if wanted > self.pool.available_pages() {
            for page in found.pages {
                self.pool.release(page);
            }
            return false;
        }
        self.evict(fresh.saturating_sub(self.pool.free_pages()));
        self.counters.prefix_lookups += u64::from(self.shares(sequence));
        self.counters.prefix_hit_tokens += found.tokens() as u64;
        sequence.computed = found.tokens();
        sequence.pages = found.pages;
        for index in 0..fresh {
            let page = self.pool.allocate().expect("available pages are free after eviction");
            sequence.pages.push(page);
            if let Some(Tail { page: src, tokens }) = found.tail.filter(|_| index == 0) {
                copies.push(PageCopy { src, dst: page, tokens });
                self.in_flight.copy_sources.push(src);
                self.counters.copied_pages += 1;
            }
        }
        true
    }

    /// Pages that must stay available beside those of a sequence to be admitted, so that it does not run
    /// into its own preemption at once. None when nothing runs: then it may have the whole pool.
    fn headroom(&self, sequence: &Sequence) -> usize {
        match self.running.len() {
            0 => 0,
            running if sequence.preempted => running + self.config.watermark(),
            running => running,
        }
    }
}
