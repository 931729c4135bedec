//! Limits, small pools, preemption and requests that come and go.

use std::sync::Arc;

use proptest::prelude::*;
use runtime::kv::PAGE_SIZE;
use runtime::request::ModelId;
use runtime::scheduler::{Scheduler, SchedulerConfig, SeqRequest, SubmitError};

use crate::engine::{Engine, Numbers, key, prompts, roomy};

#[test]
fn copies_leave_their_sources_alone_when_every_page_is_wanted() {
    let mut engine = Engine::new(SchedulerConfig { num_pages: 8, token_budget: 512, ..roomy() });
    let mut numbers = Numbers(5);
    let mut ids = Vec::new();
    for round in 0..200 {
        let mut prompt = vec![round % 3; 16 + numbers.below(30)];
        prompt.push(9);
        prompt.extend((0..numbers.below(20)).map(|i| i as u32));
        ids.push(engine.submit(&prompt, 1 + numbers.below(3), 1).unwrap());
    }
    engine.drain(2_000);
    assert!(engine.scheduler.stats().copied_pages > 20 && engine.scheduler.stats().evicted_pages > 20);
    engine.assert_outputs_as_alone(&ids);
}

#[test]
fn a_preempted_sequence_may_have_the_whole_pool_when_it_is_alone() {
    let config = SchedulerConfig { num_pages: 32, token_budget: 512, ..roomy() };
    assert_eq!(config.watermark(), 2);
    let mut engine = Engine::new(config);
    // The older one grows into its second page when the other has filled 31.
    let ids = [engine.submit(&[1], 40, 1).unwrap(), engine.submit(&[2; 480], 30, 1).unwrap()];
    engine.drain(500);
    assert_eq!(engine.scheduler.stats().preemptions, 1);
    engine.assert_outputs_as_alone(&ids);
}

#[test]
fn a_preempted_sequence_returns_when_the_watermark_is_free_beside_it() {
    let config = SchedulerConfig { num_pages: 32, token_budget: 512, prefix_cache: false, ..roomy() };
    // Pages that one running sequence may grow into, and the watermark.
    let headroom = 1 + config.watermark();
    let mut spare_pages = Vec::new();
    for third in 1..8 {
        let mut engine = Engine::new(config);
        engine.submit(&vec![1; 16 * (26 - third)], 40, 1).unwrap();
        let third = engine.submit(&vec![2; 16 * third - 8], 40, 1).unwrap();
        let youngest = engine.submit(&[3; 56], 40, 1).unwrap();
        while engine.scheduler.stats().preemptions == 0 {
            assert!(engine.step());
        }
        engine.scheduler.cancel(third);
        let known = engine.scheduler.tokens(youngest).unwrap().len();
        let spare = engine.scheduler.stats().free_pages - known.div_ceil(PAGE_SIZE);
        spare_pages.push(spare);
        let plan = engine.scheduler.plan();
        let returns = plan.seqs.iter().any(|seq| seq.id == youngest);
        assert_eq!(returns, spare >= headroom, "{spare} spare pages");
    }
    assert!(spare_pages.contains(&(headroom - 1)) && spare_pages.contains(&headroom), "{spare_pages:?}");
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
    let (prompt, scored_from) = (Arc::from([1]), None);
    let again = SeqRequest { id: fits, key: key(1), prompt, max_new_tokens: 1, scored_from, ahead: true };
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
                engine.scheduler.publish(ModelId::STUDENT, version);
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
