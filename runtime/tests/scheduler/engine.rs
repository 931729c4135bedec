//! A mock model and the engine that runs it in simulated pages.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use autograd::ops::Token;
use runtime::kv::{CacheKey, PAGE_SIZE};
use runtime::request::ModelId;
use runtime::scheduler::{RequestId, Scheduler, SchedulerConfig, SchedulerOutput, SeqRequest, SubmitError};

/// Mixes one value into a hash (splitmix64).
pub(crate) fn mix(hash: u64, value: u64) -> u64 {
    let mut x = hash ^ value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A small stream of reproducible numbers.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = mix(self.0, 1);
        (self.0 % bound as u64) as usize
    }
}

pub(crate) fn key(weights_version: u64) -> CacheKey {
    CacheKey { model: ModelId::STUDENT, weights_version }
}

/// The weights that a key's sequences run with.
fn weights(key: CacheKey) -> u64 {
    key.weights_version ^ u64::from(key.model.0) << 32
}

/// What attention would do: the KV of a token depends on the KV of all before it, and the next token on all.
pub(crate) fn attend(kv: impl Iterator<Item = u64>, weights: u64, token: u32) -> u64 {
    mix(kv.fold(weights, mix), u64::from(token))
}

/// Token that follows after KV value `kv`; few values, so that sequences share pages by chance too.
pub(crate) fn next_token(kv: u64) -> u32 {
    (kv % 5) as u32
}

/// The continuation computed without pages, batches or caches.
pub(crate) fn alone(prompt: &[u32], new: usize, weights: u64) -> Vec<u32> {
    let (mut tokens, mut kv) = (prompt.to_vec(), Vec::<u64>::new());
    while tokens.len() < prompt.len() + new {
        for &token in &tokens[kv.len()..] {
            kv.push(attend(kv.iter().copied(), weights, token));
        }
        tokens.push(next_token(kv[kv.len() - 1]));
    }
    tokens.split_off(prompt.len())
}

/// What a step drew.
pub(crate) type Sampled = Vec<(RequestId, u32)>;

/// An engine with simulated pages.
pub(crate) struct Engine {
    pub(crate) scheduler: Scheduler,
    /// Steps that are planned and run before the results of the one before are looked at: 0 or 1.
    ahead: usize,
    /// Results that nobody has looked at.
    in_flight: VecDeque<Sampled>,
    /// What the last step drew.
    drawn: Vec<u32>,
    /// Requests whose generation ends with this token.
    pub(crate) stops: BTreeMap<RequestId, u32>,
    pages: Vec<[u64; PAGE_SIZE]>,
    pub(crate) requests: BTreeMap<RequestId, SeqRequest>,
    pub(crate) outputs: BTreeMap<RequestId, Vec<u32>>,
    next_id: u64,
}

impl Engine {
    pub(crate) fn new(config: SchedulerConfig) -> Self {
        Self {
            scheduler: Scheduler::new(config).unwrap(),
            ahead: 0,
            in_flight: VecDeque::new(),
            drawn: vec![],
            stops: BTreeMap::new(),
            pages: vec![[0; PAGE_SIZE]; config.num_pages],
            requests: BTreeMap::new(),
            outputs: BTreeMap::new(),
            next_id: 0,
        }
    }

    /// One that plans and runs a step while the results of the one before are not known.
    pub(crate) fn one_ahead(config: SchedulerConfig) -> Self {
        Self { ahead: 1, ..Self::new(config) }
    }

    pub(crate) fn submit(
        &mut self,
        prompt: &[u32],
        max_new_tokens: usize,
        version: u64,
    ) -> Result<RequestId, SubmitError> {
        self.submit_with(prompt, max_new_tokens, version, true)
    }

    pub(crate) fn submit_with(
        &mut self,
        prompt: &[u32],
        max_new_tokens: usize,
        version: u64,
        ahead: bool,
    ) -> Result<RequestId, SubmitError> {
        self.submit_to(key(version), prompt, max_new_tokens, ahead)
    }

    pub(crate) fn submit_to(
        &mut self,
        key: CacheKey,
        prompt: &[u32],
        max_new_tokens: usize,
        ahead: bool,
    ) -> Result<RequestId, SubmitError> {
        let id = RequestId(self.next_id);
        let request = SeqRequest { id, key, prompt: Arc::from(prompt), max_new_tokens, scored_from: None, ahead };
        self.scheduler.submit(request.clone())?;
        self.next_id += 1;
        self.requests.insert(id, request);
        Ok(id)
    }

    /// Runs the steps in the order of the calls, as a device would.
    pub(crate) fn run(&mut self, plan: &SchedulerOutput) -> Sampled {
        for copy in &plan.copies {
            let source = self.pages[copy.src.index()];
            let target = &mut self.pages[copy.dst.index()];
            *target = [u64::MAX; PAGE_SIZE];
            target[..copy.tokens].copy_from_slice(&source[..copy.tokens]);
        }
        let mut sampled = Vec::new();
        let mut tokens = plan.tokens.iter();
        for seq in &plan.seqs {
            let weights = weights(self.requests[&seq.id].key);
            let pages = plan.pages(seq);
            let mut last = 0;
            for position in seq.tokens.clone() {
                let token = match *tokens.next().unwrap() {
                    Token::Known(token) => token,
                    Token::Sampled(draw) => {
                        assert!(self.requests[&seq.id].ahead, "{:?} has to know its last token", seq.id);
                        self.drawn[draw as usize]
                    }
                };
                let at = |p: usize| self.pages[pages[p / PAGE_SIZE] as usize][p % PAGE_SIZE];
                last = attend((0..position).map(at), weights, token);
                self.pages[pages[position / PAGE_SIZE] as usize][position % PAGE_SIZE] = last;
            }
            if seq.sample {
                sampled.push((seq.id, next_token(last)));
            }
        }
        self.drawn = sampled.iter().map(|&(_, token)| token).collect();
        sampled
    }

    pub(crate) fn check_limits(&self, plan: &SchedulerOutput) {
        let config = self.scheduler.config();
        assert!(plan.num_tokens() <= config.token_budget);
        assert!(plan.seqs.len() <= config.max_running);
        if self.in_flight.is_empty() {
            assert_eq!(plan.is_empty(), self.scheduler.is_idle(), "a step must advance somebody");
        }
        for copy in &plan.copies {
            let reads_a_target = plan.copies.iter().any(|other| other.dst == copy.src);
            assert!(!reads_a_target, "copies may run in any order");
        }
        for seq in &plan.seqs {
            assert!(!seq.tokens.is_empty());
            assert_eq!(plan.pages(seq).len(), seq.tokens.end.div_ceil(PAGE_SIZE));
            let request = &self.requests[&seq.id];
            assert!(seq.tokens.end < request.prompt.len() + request.max_new_tokens, "a row for nothing");
            assert_eq!(seq.model, request.key.model);
        }
        let (mut models, mut tokens, mut samples) = (vec![], 0, 0);
        for group in plan.groups() {
            assert_eq!(group.first_sample, samples);
            assert_eq!(group.tokens, &plan.tokens[tokens..tokens + group.tokens.len()]);
            assert!(!models.contains(&group.model), "a model's sequences stand one after another");
            models.push(group.model);
            tokens += group.tokens.len();
            samples += group.seqs.iter().filter(|seq| seq.sample).count() as u32;
        }
        assert_eq!(tokens, plan.num_tokens());
    }

    /// Plans and runs a step, and looks at the results of all but the newest `ahead`; `false` when idle.
    pub(crate) fn step(&mut self) -> bool {
        let plan = self.scheduler.plan();
        self.check_limits(&plan);
        let mut stay = 0;
        if !plan.is_empty() {
            let sampled = self.run(&plan);
            self.in_flight.push_back(sampled);
            stay = self.ahead;
        }
        let settled = self.in_flight.len() > stay;
        while self.in_flight.len() > stay {
            self.commit();
        }
        settled || !plan.is_empty()
    }

    /// Looks at the results of the oldest step in flight.
    pub(crate) fn commit(&mut self) {
        let sampled = self.in_flight.pop_front().unwrap();
        self.scheduler.commit(&sampled);
        for (id, token) in sampled {
            if self.scheduler.tokens(id).is_none() {
                continue;
            }
            let output = self.outputs.entry(id).or_default();
            output.push(token);
            if output.len() == self.requests[&id].max_new_tokens || self.stops.get(&id) == Some(&token) {
                assert!(self.scheduler.finish(id));
            }
        }
    }

    /// Looks at all results.
    pub(crate) fn settle(&mut self) {
        while !self.in_flight.is_empty() {
            self.commit();
        }
    }

    /// Runs until idle, at most `bound` calls of [`Engine::step`]; returns how many.
    pub(crate) fn drain(&mut self, bound: usize) -> usize {
        for step in 0..bound {
            if !self.step() {
                return step;
            }
            self.scheduler.check_integrity();
        }
        panic!("not idle after {bound} steps: {:?}", self.scheduler.stats());
    }

    pub(crate) fn assert_outputs_as_alone(&self, ids: &[RequestId]) {
        for id in ids {
            let request = &self.requests[id];
            let mut expected = alone(&request.prompt, request.max_new_tokens, weights(request.key));
            let stop = self.stops.get(id).and_then(|stop| expected.iter().position(|token| token == stop));
            expected.truncate(stop.map_or(expected.len(), |at| at + 1));
            assert_eq!(self.outputs[id], expected, "{id:?}");
        }
    }

    /// All pages are free or idle, and free once the cache is dropped.
    pub(crate) fn assert_pool_whole(&mut self) {
        let stats = self.scheduler.stats();
        assert_eq!(stats.free_pages + stats.cached_pages, stats.total_pages);
        let models: BTreeSet<ModelId> = self.requests.values().map(|request| request.key.model).collect();
        models.into_iter().for_each(|model| self.scheduler.publish(model, u64::MAX));
        let stats = self.scheduler.stats();
        assert_eq!((stats.free_pages, stats.cached_pages), (stats.total_pages, 0));
        self.scheduler.check_integrity();
    }
}

pub(crate) fn roomy() -> SchedulerConfig {
    SchedulerConfig {
        token_budget: 64,
        max_running: 8,
        max_waiting: 1000,
        num_pages: 256,
        max_context: 512,
        prefix_cache: true,
    }
}

/// Prompts over few tokens, every other one continuing an earlier one.
pub(crate) fn prompts(numbers: &mut Numbers, count: usize, max_len: usize) -> Vec<Vec<u32>> {
    let mut all: Vec<Vec<u32>> = Vec::new();
    for index in 0..count {
        let mut prompt = Vec::new();
        if index % 2 == 1 {
            let earlier = &all[numbers.below(all.len())];
            prompt.extend_from_slice(&earlier[..1 + numbers.below(earlier.len())]);
        }
        let len = (prompt.len() + 1 + numbers.below(max_len)).min(max_len);
        prompt.extend((prompt.len()..len).map(|_| numbers.below(5) as u32));
        all.push(prompt);
    }
    all
}
