//! One step: what to compute ([`Scheduler::plan`]).

use serde::{Deserialize, Serialize};
use std::ops::{Bound, Range};

use autograd::ops::Token;

use crate::ids::ModelId;
use crate::kv::{PageId, PrefixMatch, Tail, pages_for};

use super::in_flight::{PlannedSeq, Step};
use super::sequence::{Arrival, Sequence};
use super::{RequestId, Scheduler};

/// Whether generations that came later are admitted before it.
fn stands_back(sequence: &Sequence) -> bool {
    sequence.scored_from.is_some() && sequence.passed < PATIENCE
}

/// So many generations are admitted before a sequence that is scored and came earlier; then it keeps its place.
const PATIENCE: u32 = 64;

/// One step. Do the copies first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SchedulerOutput {
    /// What to compute: at most `max_running` sequences, at most `token_budget` tokens. The sequences of one model stand one
    /// after another.
    pub seqs: Vec<ScheduledSeq>,
    /// The tokens to compute, those of all sequences behind each other. [`Token::Sampled`] is a sample of the step in flight,
    /// counted over its sequences with `sample`.
    #[serde(with = "crate::wire::tokens")]
    pub tokens: Vec<Token>,
    /// Page tables of all sequences behind each other.
    pages: Vec<u32>,
    /// Pages to copy before anything is computed, in any order: no source is another one's target.
    pub copies: Vec<PageCopy>,
}

impl SchedulerOutput {
    /// Whether there is nothing to do: the scheduler is idle, or all that runs has to wait for the step in flight.
    pub fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }

    /// Tokens to compute.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// The parts of the models.
    pub fn groups(&self) -> impl Iterator<Item = ModelGroup<'_>> {
        let (mut first_token, mut first_sample) = (0, 0);
        self.seqs.chunk_by(|a, b| a.model == b.model).map(move |seqs| {
            let (token, sample) = (first_token, first_sample);
            first_token += seqs.iter().map(|seq| seq.tokens.len()).sum::<usize>();
            first_sample += seqs.iter().filter(|seq| seq.sample).count() as u32;
            ModelGroup { model: seqs[0].model, seqs, tokens: &self.tokens[token..first_token], first_sample: sample }
        })
    }

    /// Page table of positions `0..seq.tokens.end` of one of its sequences.
    pub fn pages(&self, seq: &ScheduledSeq) -> &[u32] {
        &self.pages[seq.pages.clone()]
    }
}

/// A model's part of a step.
#[derive(Debug, Clone, Copy)]
pub struct ModelGroup<'a> {
    /// The model.
    pub model: ModelId,
    /// Its sequences.
    pub seqs: &'a [ScheduledSeq],
    /// Their tokens.
    pub tokens: &'a [Token],
    /// Place of their first sample among those of the step.
    pub first_sample: u32,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledSeq {
    /// The request.
    pub id: RequestId,
    /// The model that computes it.
    pub model: ModelId,
    /// Positions to compute.
    pub tokens: Range<usize>,
    /// Whether the last of them is the sequence's last token, so that the next one is to be sampled.
    pub sample: bool,
    /// Its part of the page tables.
    pages: Range<usize>,
}

/// The first `tokens` tokens of page `src` are wanted at the beginning of page `dst`, in every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageCopy {
    /// Shared page; read only.
    pub src: PageId,
    /// Fresh page of one sequence.
    pub dst: PageId,
    /// Valid tokens.
    pub tokens: usize,
}

/// A plan in the making.
#[derive(Default)]
struct PlanBuilder {
    plan: SchedulerOutput,
    budget: usize,
    /// Prompts that will be generated from want tokens of this step: sequences that are scored leave them half.
    prompts: bool,
    samples: u32,
    step: Step,
    /// Retained until the plan is made, so that they are not given out as fresh pages before they are read.
    copy_sources: Vec<PageId>,
}

impl Scheduler {
    /// Plans the next step, also while one step is in flight: its samples are then placeholders. It is not
    /// empty unless the scheduler is idle or everything has to wait for the step in flight.
    ///
    /// Pages that a step in flight uses may be free already, or another sequence's in this plan: steps have to run in the
    /// order of their plans.
    ///
    /// # Panics
    /// If two steps are in flight.
    pub fn plan(&mut self) -> SchedulerOutput {
        self.plan_with_prefill(usize::MAX)
    }

    /// [`Scheduler::plan`] with at most `prefill` tokens besides those of sequences that need one: a step's time grows with
    /// them, and running generations wait for it. With 0 the plan may be empty although there is work.
    ///
    /// # Panics
    /// If two steps are in flight.
    pub fn plan_with_prefill(&mut self, prefill: usize) -> SchedulerOutput {
        assert!(self.in_flight.has_room(), "two steps are in flight: commit one first");
        let mut draft =
            PlanBuilder { budget: self.config.token_budget, prompts: self.prompts_wait(), ..PlanBuilder::default() };
        self.plan_running(&mut draft, |remaining| remaining == 1);
        draft.budget = draft.budget.min(prefill);
        self.plan_running(&mut draft, |remaining| remaining > 1);
        self.admit(&mut draft);
        self.group_by_model(&mut draft);
        for page in draft.copy_sources {
            self.pool.release(page);
        }
        if !draft.plan.is_empty() {
            self.in_flight.push(draft.step);
            self.counters.steps += 1;
        }
        self.counters.planned_tokens_total += draft.plan.num_tokens() as u64;
        draft.plan
    }

    /// Whether a generation has tokens of its prompt to compute.
    fn prompts_wait(&self) -> bool {
        let generates = |sequence: &&Sequence| sequence.scored_from.is_none();
        let mut running = self.running.values().filter(generates);
        running.any(|sequence| sequence.remaining() > 1) || self.waiting.values().any(|sequence| generates(&sequence))
    }

    /// Whether a generation runs whose prompt is computed: its stream waits for the next token.
    pub fn has_decodes(&self) -> bool {
        self.running.values().any(|sequence| sequence.scored_from.is_none() && sequence.len() - sequence.planned <= 1)
    }

    /// Plans the running sequences whose number of remaining tokens is `wanted`, oldest first.
    fn plan_running(&mut self, draft: &mut PlanBuilder, wanted: fn(usize) -> bool) {
        let mut next = self.running.keys().next().copied();
        while let Some(arrival) = next.filter(|_| draft.budget > 0) {
            if wanted(self.running[&arrival].remaining()) && self.grow(arrival) {
                self.plan_tokens(draft, arrival);
            }
            let later = (Bound::Excluded(arrival), Bound::Unbounded);
            next = self.running.range(later).next().map(|(&arrival, _)| arrival);
        }
    }

    /// Plans as many tokens of a running sequence as the budget allows.
    fn plan_tokens(&mut self, draft: &mut PlanBuilder, arrival: Arrival) {
        let sequence = self.running.get_mut(&arrival).expect("it runs");
        let halved = sequence.scored_from.is_some() && draft.prompts && draft.budget > 1;
        let count = sequence.remaining().min(if halved { draft.budget / 2 } else { draft.budget });
        let tokens = sequence.planned..sequence.planned + count;
        let sample = tokens.end == sequence.len() && sequence.scored_from.is_none();
        draft.budget -= count;
        if count > 1 {
            draft.step.prefills.push(arrival);
        }
        let plan = &mut draft.plan;
        plan.tokens.extend(tokens.clone().map(|position| sequence.token(position)));
        let first_page = plan.pages.len();
        plan.pages.extend(sequence.pages[..pages_for(tokens.end)].iter().map(|page| page.0));
        plan.seqs.push(ScheduledSeq {
            id: sequence.id,
            model: sequence.key.model,
            tokens: tokens.clone(),
            sample,
            pages: first_page..plan.pages.len(),
        });
        sequence.planned = tokens.end;
        if sample {
            sequence.placeholders += 1;
            sequence.sample = draft.samples;
            draft.samples += 1;
        }
        let (id, preemptions) = (sequence.id, sequence.preemptions);
        draft.step.planned.push(PlannedSeq {
            id,
            arrival,
            computed: tokens.end,
            sample,
            preemptions,
            forgotten: false,
        });
    }

    /// Puts the sequences of each model one after another; their order is else that of the plan.
    fn group_by_model(&mut self, draft: &mut PlanBuilder) {
        let SchedulerOutput { seqs, tokens, .. } = &mut draft.plan;
        if seqs.is_sorted_by_key(|seq| seq.model) {
            return;
        }
        let mut order: Vec<usize> = (0..seqs.len()).collect();
        order.sort_by_key(|&index| seqs[index].model);
        let mut ends = 0..0;
        let ranges = seqs.iter().map(|seq| {
            ends = ends.end..ends.end + seq.tokens.len();
            ends.clone()
        });
        let ranges: Vec<Range<usize>> = ranges.collect();
        *tokens = order.iter().flat_map(|&index| &tokens[ranges[index].clone()]).copied().collect();
        *seqs = order.iter().map(|&index| seqs[index].clone()).collect();
        draft.step.planned = order.iter().map(|&index| draft.step.planned[index]).collect();
        let sampled = draft.step.planned.iter().filter(|planned| planned.sample);
        for (place, planned) in (0..).zip(sampled) {
            self.running.get_mut(&planned.arrival).expect("what was planned runs").sample = place;
        }
    }

    /// Gives a running sequence the page its last token needs, if any. `false`: it had to be preempted itself.
    /// Victims are younger, and running sequences are planned oldest first: none of them is in this plan yet. One in a
    /// step in flight gets its token all the same.
    fn grow(&mut self, arrival: Arrival) -> bool {
        while self.running[&arrival].needs_page() {
            if self.pool.free_pages() == 0 {
                self.evict(1);
            }
            if let Some(page) = self.pool.allocate() {
                let sequence = self.running.get_mut(&arrival).expect("checked above");
                sequence.pages.push(page);
                continue;
            }
            let (youngest, mut victim) = self.running.pop_last().expect("one runs");
            assert!(!self.running.is_empty(), "submit refuses what does not fit the pool alone");
            victim.release_pages(&mut self.pool);
            victim.preemptions += 1;
            victim.waits_for = None;
            self.waiting.insert(youngest, victim);
            self.counters.preemptions += 1;
            if youngest == arrival {
                return false;
            }
        }
        true
    }

    fn evict(&mut self, pages: usize) {
        let evicted = self.cache.evict(&mut self.pool, pages);
        self.counters.evicted_pages += evicted as u64;
    }

    /// Admits from the waiting queue, in order, while budget, places and pages last: generations, and what they have
    /// passed often enough; then, unless one of these was blocked, what is scored.
    fn admit(&mut self, draft: &mut PlanBuilder) {
        if self.admit_those(draft, |sequence| !stands_back(sequence)) {
            self.admit_those(draft, stands_back);
        }
    }

    /// `false` when one of `those` found no place or pages: it blocks the ones behind it.
    fn admit_those(&mut self, draft: &mut PlanBuilder, those: fn(&Sequence) -> bool) -> bool {
        let mut next = self.first_waiting(None, those);
        while let Some(arrival) = next.filter(|_| draft.budget > 0) {
            if self.running.len() == self.config.max_running {
                return false;
            }
            let mut sequence = self.waiting.remove(&arrival).expect("a key of the map");
            let waits = sequence.waits_for.is_some_and(|step| self.in_flight.holds(step));
            let leader = if waits { None } else { self.step_to_wait_for(&sequence, draft) };
            if waits || leader.is_some() {
                self.counters.prefix_waits += u64::from(leader.is_some());
                sequence.waits_for = leader.or(sequence.waits_for);
                self.waiting.insert(arrival, sequence);
            } else if sequence.placeholders == 0 && self.reserve(&mut sequence, draft) {
                let passes = sequence.scored_from.is_none();
                self.running.insert(arrival, sequence);
                self.plan_tokens(draft, arrival);
                if passes {
                    let passed = self.waiting.range_mut(..arrival).map(|(_, waiting)| waiting);
                    passed.filter(|waiting| waiting.scored_from.is_some()).take(1).for_each(|first| first.passed += 1);
                }
            } else {
                self.waiting.insert(arrival, sequence);
                return false;
            }
            next = self.first_waiting(Some(arrival), those);
        }
        true
    }

    /// The first of `those` that wait, after `arrival`.
    fn first_waiting(&self, arrival: Option<Arrival>, those: fn(&Sequence) -> bool) -> Option<Arrival> {
        let later = (arrival.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        self.waiting.range(later).find(|(_, sequence)| those(sequence)).map(|(&arrival, _)| arrival)
    }

    /// The step, this one or one in flight, that computes pages that `sequence` could share, and most of what it lacks:
    /// a step's delay is not worth a chat template's first words.
    fn step_to_wait_for(&self, sequence: &Sequence, draft: &PlanBuilder) -> Option<u64> {
        if sequence.waits_for.is_some() || !self.shares(sequence) {
            return None;
        }
        let this = draft.step.prefills.iter().map(|&arrival| (self.in_flight.next(), arrival));
        let leaders = self.in_flight.prefills().chain(this);
        let shareable = leaders.filter_map(|(step, arrival)| {
            // One that has ended or was preempted shares nothing.
            let leader = self.running.get(&arrival)?;
            Some((sequence.shareable_with(leader), step))
        });
        let (shareable, step) = shareable.max().filter(|(shareable, _)| *shareable > 0)?;
        let cached = self.cache.peek(sequence.key, sequence.cacheable());
        let lacking = sequence.tokens.len() - cached;
        (2 * shareable.saturating_sub(cached) > lacking).then_some(step)
    }

    /// Whether `sequence` takes part in prefix sharing.
    fn shares(&self, sequence: &Sequence) -> bool {
        self.config.prefix_cache && self.cache.accepts(sequence.key)
    }

    /// Gives a waiting sequence the pages of all its known tokens, cached ones where there are; `false`,
    /// with nothing taken, when that would leave too few for those that run.
    fn reserve(&mut self, sequence: &mut Sequence, draft: &mut PlanBuilder) -> bool {
        let mut found = PrefixMatch::default();
        if self.shares(sequence) {
            found = self.cache.match_prefix(&mut self.pool, sequence.key, sequence.cacheable());
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
        (sequence.computed, sequence.planned) = (found.tokens(), found.tokens());
        sequence.pages = found.pages;
        for index in 0..fresh {
            let page = self.pool.allocate().expect("available pages are free after eviction");
            sequence.pages.push(page);
            if let Some(Tail { page: src, tokens }) = found.tail.filter(|_| index == 0) {
                draft.plan.copies.push(PageCopy { src, dst: page, tokens });
                draft.copy_sources.push(src);
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
            running if sequence.preemptions > 0 => running + self.config.watermark(),
            running => running,
        }
    }
}
