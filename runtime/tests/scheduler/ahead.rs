//! A step is planned and run while the results of the one before are not known: the tokens stay those of alone.

use proptest::prelude::*;
use runtime::request::ModelId;
use runtime::scheduler::{RequestId, SchedulerConfig};

use crate::engine::{Engine, Numbers, prompts, roomy};

/// Submits, and lets the generation end at a random token, if it comes up.
fn submit(engine: &mut Engine, numbers: &mut Numbers, prompt: &[u32], new: usize, version: u64) -> Option<RequestId> {
    let ahead = numbers.below(5) > 0;
    let id = engine.submit_with(prompt, new, version, ahead).ok()?;
    if numbers.below(2) == 0 {
        engine.stops.insert(id, numbers.below(5) as u32);
    }
    Some(id)
}

#[test]
fn nobody_waits_for_results_and_no_row_is_planned_for_nothing() {
    let mut engine = Engine::one_ahead(SchedulerConfig { token_budget: 512, ..roomy() });
    let new = [1, 2, 7, 40];
    let ids = new.map(|new| engine.submit(&[3, 1, 4], new, 1).unwrap());
    // One more call looks at the last results.
    assert_eq!(engine.drain(100), 40 + 1);
    let stats = engine.scheduler.stats();
    assert_eq!(stats.steps, 40, "{stats:?}");
    assert_eq!(stats.planned_tokens_total, new.iter().map(|new| 3 + new - 1).sum::<usize>() as u64);
    engine.assert_outputs_as_alone(&ids);
    engine.assert_pool_whole();
}

#[test]
fn an_end_that_nobody_foresaw_wastes_one_row() {
    let mut engine = Engine::one_ahead(SchedulerConfig { prefix_cache: false, ..roomy() });
    let ids = [engine.submit(&[1; 20], 50, 1).unwrap(), engine.submit(&[2; 20], 50, 1).unwrap()];
    let first = crate::engine::alone(&[1; 20], 50, 1);
    let stop = first[5];
    let tokens = first.iter().position(|&token| token == stop).unwrap() + 1;
    engine.stops.insert(ids[0], stop);
    engine.drain(100);
    assert_eq!(engine.scheduler.stats().planned_tokens_total, (20 + tokens - 1) as u64 + 1 + (20 + 50 - 1));
    engine.assert_outputs_as_alone(&ids);
    engine.assert_pool_whole();
}

#[test]
fn one_that_has_to_know_its_last_token_runs_every_other_step_and_holds_up_nobody() {
    let mut engine = Engine::one_ahead(roomy());
    let waits = engine.submit_with(&[1, 2], 10, 1, false).unwrap();
    let goes = engine.submit(&[3, 4], 20, 1).unwrap();
    engine.drain(100);
    assert_eq!(engine.scheduler.stats().steps, 20);
    engine.assert_outputs_as_alone(&[waits, goes]);
    // Alone, every step is looked at before the next is planned.
    let alone = engine.submit_with(&[1, 2], 10, 1, false).unwrap();
    assert_eq!(engine.drain(100), 2 * 10);
    engine.assert_outputs_as_alone(&[alone]);
}

#[test]
fn a_group_computes_its_prompt_once() {
    let (group, new) = (8, 12);
    let mut engine = Engine::one_ahead(SchedulerConfig { token_budget: 512, ..roomy() });
    let prompt: Vec<u32> = (0..130).collect();
    let mut ids: Vec<_> = (0..group).map(|_| engine.submit(&prompt, new, 1).unwrap()).collect();
    assert!(engine.step());
    // One more while the prompt is under way.
    ids.push(engine.submit(&prompt, new, 1).unwrap());
    engine.drain(100);
    engine.assert_outputs_as_alone(&ids);
    let stats = engine.scheduler.stats();
    assert_eq!(stats.planned_tokens_total, 130 + group * 2 + (group + 1) * (new as u64 - 1));
    assert_eq!(stats.prefix_waits, group);
}

#[test]
fn a_preempted_sequence_keeps_the_token_that_was_being_drawn() {
    let config = SchedulerConfig { num_pages: 32, token_budget: 512, prefix_cache: false, ..roomy() };
    let mut engine = Engine::one_ahead(config);
    let ids = [engine.submit(&[1], 40, 1).unwrap(), engine.submit(&[2; 480], 30, 1).unwrap()];
    while engine.scheduler.stats().preemptions == 0 {
        assert!(engine.step());
    }
    // The last of sixteen was being drawn when the page was taken.
    engine.settle();
    assert_eq!(engine.outputs[&ids[1]].len(), 16);
    engine.drain(500);
    engine.assert_outputs_as_alone(&ids);
    engine.assert_pool_whole();
}

#[test]
fn ten_thousand_random_events_leave_the_pool_whole() {
    let config = SchedulerConfig { num_pages: 40, max_waiting: 30, token_budget: 48, ..roomy() };
    let mut engine = Engine::one_ahead(config);
    let mut numbers = Numbers(77);
    let known = prompts(&mut numbers, 64, 120);
    let (mut live, mut cancelled, mut version) = (Vec::new(), Vec::new(), 1);
    for _ in 0..10_000 {
        match numbers.below(20) {
            0..8 => {
                let prompt = known[numbers.below(known.len())].clone();
                let new = 1 + numbers.below(60);
                live.extend(submit(&mut engine, &mut numbers, &prompt, new, version));
            }
            8 | 9 if !live.is_empty() => {
                let id = live.swap_remove(numbers.below(live.len()));
                if engine.scheduler.cancel(id) {
                    cancelled.push(id);
                }
            }
            11 if numbers.below(20) == 0 => {
                // Weights change between steps, not under one.
                engine.settle();
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
    assert!(cancelled.len() > 100 && version > 3, "{} {version}", cancelled.len());
    assert!(stats.preemptions > 0 && stats.prefix_hit_tokens > 0 && stats.evicted_pages > 0, "{stats:?}");
    engine.drain(5_000);
    let done: Vec<_> = engine.outputs.keys().copied().filter(|id| !cancelled.contains(id)).collect();
    assert!(done.len() > 100);
    engine.assert_outputs_as_alone(&done);
    engine.assert_pool_whole();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

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
        let mut engine = Engine::one_ahead(config);
        let mut numbers = Numbers(seed);
        let texts = prompts(&mut numbers, arrivals.len(), 70);
        let mut ids = Vec::new();
        for (text, (len, new, steps)) in texts.iter().zip(&arrivals) {
            let prompt = &text[..*len.min(&text.len())];
            ids.push(submit(&mut engine, &mut numbers, prompt, *new, 1).unwrap());
            (0..*steps).for_each(|_| { engine.step(); });
        }
        let work: usize = arrivals.iter().map(|(len, new, _)| len + new).sum();
        engine.drain(8 * work + 10);
        engine.assert_outputs_as_alone(&ids);
        engine.assert_pool_whole();
    }
}
