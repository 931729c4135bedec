//! Continuous batching with chunked prefill over paged KV, for one base model and
//! the adapters on it.
//!
//! Pure and deterministic: no device, no clock, no randomness. The engine repeats [`Scheduler::plan`], run
//! the planned tokens, [`Scheduler::commit`] what was sampled, [`Scheduler::finish`] what has ended.
//!
//! # One step ahead
//! A device that runs steps in order need not wait for the host: one step may be planned while another is in
//! flight. Each sequence's next token is then a *placeholder*: its place in the sequence and in the pages is known, its
//! id is a sample of the step in flight. When a plan is made it is open whether a sequence ends by its next sample, or is
//! cancelled; then its row in the next step is wasted. The row writes to pages that are free, or another sequence's
//! in a later step, which runs later and overwrites them; and only a commit of a sequence that is still here marks
//! tokens as computed, so nothing of a wasted row enters the prefix cache. A request whose next plan needs its last
//! token ([`SeqRequest::ahead`] is false) skips the plans that would be ahead of it.
//!
//! # Order of service
//! Every request gets its place in the order of arrival when it is submitted, and all order is that order. A step takes, while the
//! token budget lasts: sequences that need one token (decodes), running prefills, then admissions from the
//! waiting queue, first come first served. An admission reserves the pages of all tokens known so far, so a
//! running sequence needs a page only when its generation grows into one.
//!
//! Sequences that are scored stand back behind prompts of generations: they take half of what
//! is left of the budget while such prompts have tokens to compute, and a generation is admitted before them. That
//! happens to one of them a bounded number of times; then it has its place in the order of arrival.
//!
//! # Why it cannot livelock
//! 1. *No admission at another sequence's expense.* An admission takes free and idle pages only, keeps one
//!    page of growth for each running sequence, and for a sequence that was preempted before also
//!    [`SchedulerConfig::watermark`] pages. The queue's head blocks those behind it when it does not fit.
//! 2. *Only growth preempts, and only the youngest.* A sequence that grows takes free pages, then idle
//!    cached pages, then those of the youngest running sequence (itself, if it is the youngest). So the
//!    oldest running sequence is never preempted, and since `submit` refuses what does not fit the pool
//!    alone, it always gets its page: it runs to its end.
//! 3. *Every step advances a sequence, and tokens are never lost.* The budget is at least 1 and goes to
//!    running sequences first; a preempted sequence keeps what it generated, so at most `max_new_tokens`
//!    tokens are ever sampled for a request.
//! 4. *Recomputation is bounded.* A sequence is preempted because it, or an older one, grew. Between two
//!    preemptions of one sequence its elders and itself have grown by at least the watermark, because the
//!    pages that younger ones took meanwhile are taken back first. The elders' growth is finite: by
//!    induction over the arrivals (the oldest is preempted 0 times, hence grows a bounded number of times)
//!    so is the number of preemptions of each sequence.
//! 5. *Waiting for a shared prefix is bounded.* A sequence steps aside at most once per admission, for pages that
//!    one step in flight computes, and until that step is committed.

mod in_flight;
mod plan;
mod sequence;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use crate::error::{SubmitError, ZeroLimit};
use crate::ids::ModelId;
pub use crate::ids::RequestId;
use crate::kv::{CacheKey, PagePool, RadixCache, pages_for};
pub use plan::{ModelGroup, PageCopy, ScheduledSeq, SchedulerOutput};
use sequence::{Arrival, Sequence};

/// Limits of one scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Most tokens computed in one step.
    pub token_budget: usize,
    /// Most sequences that hold pages at a time, hence most sequences of one step.
    pub max_running: usize,
    /// Most requests in the waiting queue; more are refused. Preempted sequences return regardless.
    pub max_waiting: usize,
    /// Size of the page pool.
    pub num_pages: usize,
    /// Longest sequence, prompt and generation together.
    pub max_context: usize,
    /// Whether prefixes are shared and kept.
    pub prefix_cache: bool,
}

impl SchedulerConfig {
    /// Pages that stay available when a preempted sequence is admitted again: 1/16 of the pool.
    pub fn watermark(&self) -> usize {
        self.num_pages.div_ceil(16)
    }
}

/// One generation to schedule.
#[derive(Debug, Clone)]
pub struct SeqRequest {
    /// Unique among the requests in the scheduler.
    pub id: RequestId,
    /// With whom pages may be shared.
    pub key: CacheKey,
    /// Token ids, at least one.
    pub prompt: Arc<[u32]>,
    /// Most tokens that will be sampled; at least one, none when the prompt is scored.
    pub max_new_tokens: usize,
    /// The prompt is scored: nothing is sampled, and positions from this one on are computed even where they are cached.
    pub scored_from: Option<usize>,
    /// Whether its next token may be planned while the last one is a placeholder. Not where the host says which tokens are
    /// allowed, given those before.
    pub ahead: bool,
}

/// Gauges of now and counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SchedulerStats {
    /// Sequences that hold pages.
    pub running: usize,
    /// Sequences that wait for pages, preempted ones included.
    pub waiting: usize,
    /// Pages without a reference.
    pub free_pages: usize,
    /// Pages that only the prefix cache refers to.
    pub cached_pages: usize,
    /// Pages of the pool.
    pub total_pages: usize,
    /// Steps planned.
    pub steps: u64,
    /// Tokens planned, recomputed ones included.
    pub planned_tokens_total: u64,
    /// Admissions that looked for a prefix.
    pub prefix_lookups: u64,
    /// Tokens they did not have to compute.
    pub prefix_hit_tokens: u64,
    /// Times a sequence waited a step for a prefix that another one was computing.
    pub prefix_waits: u64,
    /// Pages copied because only their beginning was shared.
    pub copied_pages: u64,
    /// Cached pages given up for running sequences.
    pub evicted_pages: u64,
    /// Sequences put back into the queue because pages ran out.
    pub preemptions: u64,
    /// Requests ended by [`Scheduler::finish`].
    pub finished: u64,
    /// Requests ended by [`Scheduler::cancel`].
    pub cancelled: u64,
}

/// Decides which tokens of which requests the next step computes, and in which pages.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    pool: PagePool,
    cache: RadixCache,
    arrivals: BTreeMap<RequestId, Arrival>,
    next_arrival: Arrival,
    running: BTreeMap<Arrival, Sequence>,
    waiting: BTreeMap<Arrival, Sequence>,
    in_flight: in_flight::InFlight,
    counters: SchedulerStats,
}

impl Scheduler {
    /// An idle scheduler over an empty pool.
    pub fn new(config: SchedulerConfig) -> Result<Self, ZeroLimit> {
        let limits = [
            ("token_budget", config.token_budget),
            ("max_running", config.max_running),
            ("max_waiting", config.max_waiting),
            ("num_pages", config.num_pages),
            ("max_context", config.max_context),
        ];
        if let Some(&(field, _)) = limits.iter().find(|(_, limit)| *limit == 0) {
            return Err(ZeroLimit { field });
        }
        Ok(Self {
            config,
            pool: PagePool::new(config.num_pages),
            cache: RadixCache::new(config.num_pages),
            arrivals: BTreeMap::new(),
            next_arrival: Arrival::default(),
            running: BTreeMap::new(),
            waiting: BTreeMap::new(),
            in_flight: in_flight::InFlight::default(),
            counters: SchedulerStats::default(),
        })
    }

    /// Puts a request at the end of the waiting queue, or refuses it.
    pub fn submit(&mut self, request: SeqRequest) -> Result<(), SubmitError> {
        self.check(&request)?;
        let arrival = self.next_arrival;
        self.next_arrival = arrival.next();
        self.arrivals.insert(request.id, arrival);
        self.waiting.insert(arrival, Sequence::new(request));
        Ok(())
    }

    fn check(&self, request: &SeqRequest) -> Result<(), SubmitError> {
        let &SeqRequest { id, ref prompt, max_new_tokens, scored_from, .. } = request;
        let SchedulerConfig { max_context, max_waiting, num_pages, .. } = self.config;
        let prompt_tokens = prompt.len();
        if prompt_tokens == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if max_new_tokens == 0 && scored_from.is_none() {
            return Err(SubmitError::NothingToGenerate);
        }
        if self.arrivals.contains_key(&id) {
            return Err(SubmitError::DuplicateId(id));
        }
        let total = prompt_tokens.saturating_add(max_new_tokens);
        if total > max_context {
            return Err(SubmitError::ContextTooShort { prompt_tokens, max_new_tokens, max_context });
        }
        // The last sampled token is never computed, so it needs no room.
        let needed_pages = pages_for(total - usize::from(scored_from.is_none()));
        if needed_pages > num_pages {
            return Err(SubmitError::PoolTooSmall {
                prompt_tokens,
                max_new_tokens,
                needed_pages,
                total_pages: num_pages,
            });
        }
        if self.waiting.len() >= max_waiting {
            return Err(SubmitError::QueueFull { max_waiting });
        }
        Ok(())
    }

    /// Ends a request in any state and frees its pages at once; `false` if it is not here (any more).
    /// What its pages hold is valid, so full ones stay in the prefix cache.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let found = self.remove(id);
        self.counters.cancelled += u64::from(found);
        found
    }

    /// Ends a request that met a stop condition or has all its tokens; `false` if it is not here.
    /// Its full pages went to the prefix cache as they were computed; the rest is freed.
    pub fn finish(&mut self, id: RequestId) -> bool {
        let found = self.remove(id);
        self.counters.finished += u64::from(found);
        found
    }

    fn remove(&mut self, id: RequestId) -> bool {
        let Some(arrival) = self.arrivals.remove(&id) else {
            return false;
        };
        self.in_flight.forget(id);
        let sequence = self.running.remove(&arrival).or_else(|| self.waiting.remove(&arrival));
        let mut sequence = sequence.expect("an arrival is running or waiting");
        sequence.release_pages(&mut self.pool);
        true
    }

    /// New weights were published for `model`: prefixes older than `weights_version` are dropped now, and
    /// sequences that still run under such a key neither read nor feed the cache.
    pub fn publish(&mut self, model: ModelId, weights_version: u64) {
        self.cache.drop_version(&mut self.pool, model, weights_version);
    }

    /// A model is gone, and no sequence of it is here: its prefixes are dropped.
    pub fn forget_model(&mut self, model: ModelId) {
        self.cache.forget_model(&mut self.pool, model);
    }

    /// Forgets all cached prefixes; sequences that run keep their pages.
    pub fn reset_prefix_cache(&mut self) {
        self.cache.clear(&mut self.pool);
    }

    /// Prompt and generated tokens of a request, those of steps in flight left out.
    pub fn tokens(&self, id: RequestId) -> Option<&[u32]> {
        let arrival = self.arrivals.get(&id)?;
        let sequence = self.running.get(arrival).or_else(|| self.waiting.get(arrival))?;
        Some(&sequence.tokens)
    }

    /// Whether the waiting queue takes one more request.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < self.config.max_waiting
    }

    /// Whether no request is here and no step in flight.
    pub fn is_idle(&self) -> bool {
        self.arrivals.is_empty() && self.in_flight.is_empty()
    }

    /// The limits it was made with.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Gauges and counters.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            free_pages: self.pool.free_pages(),
            cached_pages: self.pool.idle_pages(),
            total_pages: self.pool.total_pages(),
            ..self.counters
        }
    }

    /// Recounts every reference to every page, O(pages); for tests and idle moments.
    ///
    /// # Panics
    /// If a page is lost, or held by more or fewer than refer to it.
    pub fn check_integrity(&self) {
        self.pool.check_integrity();
        let mut refs = vec![0; self.pool.total_pages()];
        let held = self.running.values().chain(self.waiting.values());
        let pages = (held.flat_map(|sequence| sequence.pages.iter().copied())).chain(self.cache.pages());
        for page in pages {
            refs[page.index()] += 1;
            assert!(refs[page.index()] <= self.pool.refs(page), "{page:?} has an uncounted holder");
        }
        let counted: u32 = refs.iter().sum();
        let claimed: u32 = (0..refs.len() as u32).map(|page| self.pool.refs(crate::kv::PageId(page))).sum();
        assert_eq!(counted, claimed, "a reference has no holder");
    }
}
