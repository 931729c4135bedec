//! The scheduler, page pool and prefix cache under a mock model whose "KV" lives in simulated pages: a wrong
//! page table, a missing copy or a stale prefix gives wrong tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use runtime::kv::{CacheKey, PAGE_SIZE};
use runtime::scheduler::{Plan, RequestId, Scheduler, SchedulerConfig, SeqRequest, SubmitError};

/// Mixes one value into a hash (splitmix64).
fn mix(hash: u64, value: u64) -> u64 {
    let mut x = hash ^ value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A small stream of reproducible numbers.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = mix(self.0, 1);
        (self.0 % bound as u64) as usize
    }
}

fn key(weights_version: u64) -> CacheKey {
    CacheKey { slot: 0, weights_version, adapter: 0, tokenizer: 7, kv_format: 1 }
}

/// What attention would do: the KV of a token depends on the KV of all before it, and the next token on all.
fn attend(kv: impl Iterator<Item = u64>, weights: u64, token: u32) -> u64 {
    mix(kv.fold(weights, mix), u64::from(token))
}

/// Token that follows after KV value `kv`; few values, so that sequences share pages by chance too.
fn next_token(kv: u64) -> u32 {
    (kv % 5) as u32
}

/// The continuation computed without pages, batches or caches.
fn alone(prompt: &[u32], new: usize, weights: u64) -> Vec<u32> {
    let (mut tokens, mut kv) = (prompt.to_vec(), Vec::<u64>::new());
    while tokens.len() < prompt.len() + new {
        for position in kv.len()..tokens.len() {
            kv.push(attend(kv.iter().copied(), weights, tokens[position]));
        }
        tokens.push(next_token(kv[kv.len() - 1]));
    }
    tokens.split_off(prompt.len())
}

/// An engine with simulated pages.
struct Engine {
    scheduler: Scheduler,
    pages: Vec<[u64; PAGE_SIZE]>,
    requests: BTreeMap<RequestId, SeqRequest>,
    outputs: BTreeMap<RequestId, Vec<u32>>,
    next_id: u64,
}

impl Engine {
    fn new(config: SchedulerConfig) -> Self {
        Self {
            scheduler: Scheduler::new(config).unwrap(),
            pages: vec![[0; PAGE_SIZE]; config.num_pages],
            requests: BTreeMap::new(),
            outputs: BTreeMap::new(),
            next_id: 0,
        }
    }

    fn submit(&mut self, prompt: &[u32], max_new_tokens: usize, version: u64) -> Result<RequestId, SubmitError> {
        let id = RequestId(self.next_id);
        let request = SeqRequest { id, key: key(version), prompt: Arc::from(prompt), max_new_tokens };
        self.scheduler.submit(request.clone())?;
        self.next_id += 1;
        self.requests.insert(id, request);
        Ok(id)
    }

    fn run(&mut self, plan: &Plan) -> Vec<(RequestId, u32)> {
        for copy in &plan.copies {
            let source = self.pages[copy.src.index()];
            let target = &mut self.pages[copy.dst.index()];
            *target = [u64::MAX; PAGE_SIZE];
            target[..copy.tokens].copy_from_slice(&source[..copy.tokens]);
        }
        let mut sampled = Vec::new();
        for seq in &plan.seqs {
            let weights = self.requests[&seq.id].key.weights_version;
            let tokens = self.scheduler.tokens(seq.id).unwrap();
            let mut last = 0;
            for position in seq.tokens.clone() {
                let at = |p: usize| self.pages[seq.pages[p / PAGE_SIZE].index()][p % PAGE_SIZE];
                last = attend((0..position).map(at), weights, tokens[position]);
                self.pages[seq.pages[position / PAGE_SIZE].index()][position % PAGE_SIZE] = last;
            }
            assert_eq!(seq.sample, seq.tokens.end == tokens.len());
            if seq.sample {
                sampled.push((seq.id, next_token(last)));
            }
        }
        sampled
    }

    fn check_limits(&self, plan: &Plan) {
        let config = self.scheduler.config();
        assert!(plan.num_tokens() <= config.token_budget);
        assert!(plan.seqs.len() <= config.max_running);
        assert_eq!(plan.is_empty(), self.scheduler.is_idle(), "a step must advance somebody");
        for seq in &plan.seqs {
            assert!(!seq.tokens.is_empty());
            assert_eq!(seq.pages.len(), seq.tokens.end.div_ceil(PAGE_SIZE));
        }
    }

    /// One whole step; `false` when idle.
    fn step(&mut self) -> bool {
        let plan = self.scheduler.plan();
        self.check_limits(&plan);
        let sampled = self.run(&plan);
        self.scheduler.commit(&sampled);
        for (id, token) in sampled {
            let output = self.outputs.entry(id).or_default();
            output.push(token);
            if output.len() == self.requests[&id].max_new_tokens {
                assert!(self.scheduler.finish(id));
            }
        }
        !plan.is_empty()
    }

    /// Runs until idle, at most `bound` steps; returns how many.
    fn drain(&mut self, bound: usize) -> usize {
        for step in 0..bound {
            if !self.step() {
                return step;
            }
            self.scheduler.check_integrity();
        }
        panic!("not idle after {bound} steps: {:?}", self.scheduler.stats());
    }

    fn assert_outputs_as_alone(&self, ids: &[RequestId]) {
        for id in ids {
            let request = &self.requests[id];
            let expected = alone(&request.prompt, request.max_new_tokens, request.key.weights_version);
            assert_eq!(self.outputs[id], expected, "{id:?}");
        }
    }

    /// All pages are free or idle, and free once the cache is dropped.
    fn assert_pool_whole(&mut self) {
        let stats = self.scheduler.stats();
        assert_eq!(stats.free_pages + stats.cached_pages, stats.total_pages);
        self.scheduler.publish(0, u64::MAX);
        let stats = self.scheduler.stats();
        assert_eq!((stats.free_pages, stats.cached_pages), (stats.total_pages, 0));
        self.scheduler.check_integrity();
    }
}

fn roomy() -> SchedulerConfig {
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
fn prompts(numbers: &mut Numbers, count: usize, max_len: usize) -> Vec<Vec<u32>> {
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

#[test]
fn batched_and_chunked_equal_alone() {
    for prefix_cache in [false, true] {
        for token_budget in [1, 7, 64] {
            let mut engine = Engine::new(SchedulerConfig { token_budget, prefix_cache, ..roomy() });
            let mut numbers = Numbers(token_budget as u64);
            let ids: Vec<_> = prompts(&mut numbers, 20, 90)
                .iter()
                .map(|prompt| engine.submit(prompt, 1 + numbers.below(40), 1).unwrap())
                .collect();
            engine.drain(5_000);
            engine.assert_outputs_as_alone(&ids);
            assert_eq!(engine.scheduler.stats().preemptions, 0);
            assert_eq!(engine.scheduler.stats().prefix_hit_tokens > 0, prefix_cache);
            engine.assert_pool_whole();
        }
    }
}

#[test]
fn a_prefix_hit_changes_work_and_not_tokens() {
    let mut engine = Engine::new(roomy());
    let prompt: Vec<u32> = (0..100).map(|i| i % 7).collect();
    let first = engine.submit(&prompt, 20, 1).unwrap();
    engine.drain(100);
    let again = engine.submit(&prompt, 20, 1).unwrap();
    engine.drain(100);
    assert_eq!(engine.outputs[&first], engine.outputs[&again]);
    // The generation filled the prompt's last page, so all but the last prompt token was cached.
    assert_eq!(engine.scheduler.stats().prefix_hit_tokens, 99);
    assert_eq!(engine.scheduler.stats().copied_pages, 1);
    let mut conversation = prompt.clone();
    conversation.extend(&engine.outputs[&first]);
    conversation.extend([1, 2, 3]);
    let turn = engine.submit(&conversation, 20, 1).unwrap();
    engine.drain(100);
    assert_eq!(engine.scheduler.stats().prefix_hit_tokens, 99 + 112);
    engine.assert_outputs_as_alone(&[first, again, turn]);
    engine.assert_pool_whole();
}

#[test]
fn a_diverging_page_is_copied_before_it_is_written() {
    let mut engine = Engine::new(roomy());
    let left: Vec<u32> = (0..64).map(|i| i % 11).collect();
    let mut right = left.clone();
    right[25] = 99;
    let ids = [engine.submit(&left, 10, 1).unwrap()];
    engine.drain(50);
    let more = [engine.submit(&right, 10, 1).unwrap(), engine.submit(&left, 10, 1).unwrap()];
    engine.drain(50);
    assert_eq!(engine.scheduler.stats().prefix_hit_tokens, 25 + 63);
    engine.assert_outputs_as_alone(&[ids[0], more[0], more[1]]);
}

#[test]
fn new_weights_never_see_old_pages() {
    let mut engine = Engine::new(roomy());
    let prompt: Vec<u32> = (0..80).collect();
    let old = engine.submit(&prompt, 8, 1).unwrap();
    engine.drain(50);
    let new = engine.submit(&prompt, 8, 2).unwrap();
    engine.drain(50);
    assert_eq!(engine.scheduler.stats().prefix_hit_tokens, 0);
    engine.scheduler.publish(0, 2);
    let stale = engine.submit(&prompt, 8, 1).unwrap();
    engine.drain(50);
    let stale_again = engine.submit(&prompt, 8, 1).unwrap();
    engine.drain(50);
    assert_eq!(engine.scheduler.stats().prefix_hit_tokens, 0, "old pages are neither found nor kept");
    let fresh = engine.submit(&prompt, 8, 2).unwrap();
    engine.drain(50);
    assert_eq!(engine.scheduler.stats().prefix_hit_tokens, 79, "version 2 is not dropped");
    engine.assert_outputs_as_alone(&[old, new, stale, stale_again, fresh]);
}

#[test]
fn publishing_while_sequences_run_leaves_them_their_pages() {
    let mut engine = Engine::new(roomy());
    let prompt: Vec<u32> = (0..70).collect();
    let ids: Vec<_> = (0..4).map(|_| engine.submit(&prompt, 40, 1).unwrap()).collect();
    (0..10).for_each(|_| assert!(engine.step()));
    engine.scheduler.publish(0, 2);
    engine.scheduler.check_integrity();
    assert_eq!(engine.scheduler.stats().cached_pages, 0);
    engine.drain(200);
    engine.assert_outputs_as_alone(&ids);
    assert_eq!(engine.scheduler.stats().free_pages, engine.scheduler.stats().total_pages);
}

#[test]
fn a_group_computes_its_prompt_once() {
    let (group, prompt_len, new) = (8, 130, 12);
    let mut engine = Engine::new(SchedulerConfig { token_budget: 512, ..roomy() });
    let prompt: Vec<u32> = (0..prompt_len as u32).collect();
    let ids: Vec<_> = (0..group).map(|_| engine.submit(&prompt, new, 1).unwrap()).collect();
    engine.drain(100);
    engine.assert_outputs_as_alone(&ids);
    let stats = engine.scheduler.stats();
    // Eight full pages are shared; two tokens of the ninth are computed by each.
    assert_eq!(stats.prefix_hit_tokens, (group as u64 - 1) * 128);
    assert_eq!(stats.planned_tokens_total, 130 + 7 * 2 + 8 * (new as u64 - 1));
    assert_eq!(stats.prefix_waits, group as u64 - 1);
    assert_eq!(stats.steps, new as u64 + 1);
}

#[test]
fn groups_of_other_prompts_do_not_wait() {
    let mut engine = Engine::new(SchedulerConfig { token_budget: 512, ..roomy() });
    for group in 0..4 {
        let prompt: Vec<u32> = (0..64).map(|i| 100 * group + i).collect();
        engine.submit(&prompt, 4, 1).unwrap();
        engine.submit(&prompt, 4, 1).unwrap();
    }
    let plan = engine.scheduler.plan();
    let leaders: Vec<u64> = plan.seqs.iter().map(|seq| seq.id.0).collect();
    assert_eq!(leaders, [0, 2, 4, 6]);
}

#[test]
fn a_tiny_pool_preempts_and_still_ends_with_the_same_tokens() {
    // With a budget of 1 the oldest runs alone and nobody is ever in its way.
    for (prefix_cache, num_pages, token_budget) in
        [(false, 12, 64), (true, 12, 64), (true, 9, 5), (true, 9, 3), (false, 9, 7)]
    {
        let config = SchedulerConfig { num_pages, token_budget, prefix_cache, ..roomy() };
        let mut engine = Engine::new(config);
        let mut numbers = Numbers(num_pages as u64);
        let ids: Vec<_> = prompts(&mut numbers, 40, 30)
            .iter()
            .map(|prompt| engine.submit(prompt, 1 + numbers.below(100), 1).unwrap())
            .collect();
        let useful: u64 = ids
            .iter()
            .map(|id| engine.requests[id].prompt.len() + engine.requests[id].max_new_tokens - 1)
            .sum::<usize>() as u64;
        engine.drain(10_000);
        engine.assert_outputs_as_alone(&ids);
        let stats = engine.scheduler.stats();
        assert!(stats.preemptions > 0, "{stats:?}");
        assert!(stats.planned_tokens_total <= 2 * useful, "{useful} useful of {stats:?}");
        engine.assert_pool_whole();
    }
}

#[test]
fn cached_pages_are_given_up_before_anyone_is_preempted() {
    let mut engine = Engine::new(SchedulerConfig { num_pages: 16, ..roomy() });
    for start in 0..6 {
        let prompt: Vec<u32> = (0..60).map(|i| 1000 * start + i).collect();
        engine.submit(&prompt, 4, 1).unwrap();
        engine.drain(50);
    }
    assert_eq!(engine.scheduler.stats().preemptions, 0);
    assert!(engine.scheduler.stats().evicted_pages >= 6 * 3 - 16);
    let newest: Vec<u32> = (0..60).map(|i| 5000 + i).collect();
    engine.submit(&newest, 4, 1).unwrap();
    engine.drain(50);
    assert!(engine.scheduler.stats().prefix_hit_tokens >= 48, "the most recent prefix is the last to go");
}

#[test]
fn a_request_that_fills_the_pool_runs_even_after_a_partial_hit() {
    let mut engine = Engine::new(SchedulerConfig { num_pages: 4, ..roomy() });
    let mut prompt: Vec<u32> = (0..60).collect();
    engine.submit(&prompt, 5, 1).unwrap();
    engine.drain(50);
    prompt[40] = 99;
    let id = engine.submit(&prompt, 5, 1).unwrap();
    engine.drain(50);
    engine.assert_outputs_as_alone(&[id]);
}

#[test]
fn what_cannot_run_is_refused_with_the_values() {
    let config = SchedulerConfig { max_waiting: 2, num_pages: 4, max_context: 100, ..roomy() };
    let mut engine = Engine::new(config);
    assert_eq!(engine.submit(&[], 1, 1), Err(SubmitError::EmptyPrompt));
    assert_eq!(engine.submit(&[1], 0, 1), Err(SubmitError::NothingToGenerate));
    let refused = engine.submit(&[1; 96], 5, 1).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "a prompt of 96 tokens and 5 new ones exceed the context of 100; \
         shorten the prompt or lower max_new_tokens"
    );
    let refused = engine.submit(&[1; 60], 6, 1).unwrap_err();
    assert!(matches!(refused, SubmitError::PoolTooSmall { needed_pages: 5, total_pages: 4, .. }));
    let overflow = engine.submit(&[1], usize::MAX, 1).unwrap_err();
    assert!(matches!(overflow, SubmitError::ContextTooShort { .. }));
    let fits = engine.submit(&[1; 60], 5, 1).unwrap();
    let again = SeqRequest { id: fits, key: key(1), prompt: Arc::from([1]), max_new_tokens: 1 };
    assert_eq!(engine.scheduler.submit(again), Err(SubmitError::DuplicateId(fits)));
    engine.submit(&[1], 1, 1).unwrap();
    assert_eq!(engine.submit(&[1], 1, 1), Err(SubmitError::QueueFull { max_waiting: 2 }));
    let zero = Scheduler::new(SchedulerConfig { token_budget: 0, ..config }).unwrap_err();
    assert_eq!(zero.field, "token_budget");
}

#[test]
fn a_request_may_leave_between_plan_and_commit() {
    let mut engine = Engine::new(roomy());
    let prompt: Vec<u32> = (0..45).collect();
    engine.submit(&prompt, 8, 1).unwrap();
    engine.drain(50);
    let (gone, stays) = (engine.submit(&prompt, 8, 1).unwrap(), engine.submit(&[3; 20], 8, 1).unwrap());
    let plan = engine.scheduler.plan();
    assert_eq!((plan.seqs.len(), plan.copies.len()), (2, 1));
    let mut sampled = engine.run(&plan);
    assert!(engine.scheduler.cancel(gone));
    assert!(!engine.scheduler.cancel(gone));
    engine.scheduler.check_integrity();
    engine.scheduler.commit(&sampled);
    sampled.retain(|(id, _)| *id == stays);
    engine.outputs.insert(stays, sampled.iter().map(|(_, token)| *token).collect());
    engine.drain(50);
    engine.assert_outputs_as_alone(&[stays]);
    engine.assert_pool_whole();
}

#[test]
fn ten_thousand_random_events_leave_the_pool_whole() {
    let config = SchedulerConfig { num_pages: 40, max_waiting: 30, token_budget: 48, ..roomy() };
    let mut engine = Engine::new(config);
    let mut numbers = Numbers(2024);
    let known = prompts(&mut numbers, 64, 120);
    let (mut live, mut version, mut cancelled, mut stopped) = (Vec::new(), 1, 0, 0);
    for _ in 0..10_000 {
        match numbers.below(20) {
            0..8 => {
                let prompt = &known[numbers.below(known.len())];
                if let Ok(id) = engine.submit(prompt, 1 + numbers.below(60), version) {
                    live.push(id);
                }
            }
            8..10 if !live.is_empty() => {
                let id = live.swap_remove(numbers.below(live.len()));
                cancelled += u64::from(engine.scheduler.cancel(id));
            }
            10 if !live.is_empty() => {
                let id = live.swap_remove(numbers.below(live.len()));
                stopped += u64::from(engine.scheduler.finish(id));
            }
            11 if numbers.below(20) == 0 => {
                version += 1;
                engine.scheduler.publish(0, version);
            }
            _ => {
                engine.step();
            }
        }
        engine.scheduler.check_integrity();
    }
    let stats = engine.scheduler.stats();
    assert!(cancelled > 100 && stopped > 100 && version > 3, "{cancelled} {stopped} {version}");
    assert!(stats.preemptions > 0 && stats.prefix_hit_tokens > 0 && stats.evicted_pages > 0, "{stats:?}");
    engine.drain(5_000);
    let done: Vec<_> = (engine.outputs.iter())
        .filter(|(id, output)| output.len() == engine.requests[id].max_new_tokens)
        .map(|(&id, _)| id)
        .collect();
    assert!(done.len() > 100);
    engine.assert_outputs_as_alone(&done);
    engine.assert_pool_whole();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn any_load_ends_with_the_tokens_of_alone(
        seed in any::<u64>(),
        token_budget in 1usize..40,
        max_running in 1usize..10,
        num_pages in 8usize..40,
        prefix_cache in any::<bool>(),
        arrivals in prop::collection::vec((1usize..70, 1usize..58, 0usize..4), 1..25),
    ) {
        let config = SchedulerConfig { token_budget, max_running, num_pages, prefix_cache, ..roomy() };
        let mut engine = Engine::new(config);
        let mut numbers = Numbers(seed);
        let texts = prompts(&mut numbers, arrivals.len(), 70);
        let mut ids = Vec::new();
        for (text, (len, new, steps)) in texts.iter().zip(&arrivals) {
            ids.push(engine.submit(&text[..*len.min(&text.len())], *new, 1).unwrap());
            (0..*steps).for_each(|_| { engine.step(); });
        }
        let work: usize = arrivals.iter().map(|(len, new, _)| len + new).sum();
        engine.drain(4 * work + 10);
        engine.assert_outputs_as_alone(&ids);
        engine.assert_pool_whole();
    }
}
