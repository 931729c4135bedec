//! Batches, chunks and shared prefixes give the tokens of a sequence alone.

use runtime::request::ModelId;
use runtime::scheduler::SchedulerConfig;

use crate::engine::{Engine, Numbers, prompts, roomy};

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
    engine.scheduler.publish(ModelId::STUDENT, 2);
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
    engine.scheduler.publish(ModelId::STUDENT, 2);
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
fn other_weights_are_not_waited_for() {
    let mut engine = Engine::new(SchedulerConfig { token_budget: 512, ..roomy() });
    engine.submit(&[7; 64], 4, 1).unwrap();
    engine.submit(&[7; 64], 4, 2).unwrap();
    assert_eq!(engine.scheduler.plan().seqs.len(), 2);
}

#[test]
fn nobody_waits_twice_for_a_prefix() {
    let mut engine = Engine::new(SchedulerConfig { token_budget: 512, ..roomy() });
    let ids: Vec<_> = (0..3).map(|_| engine.submit(&[7; 64], 4, 1).unwrap()).collect();
    let plan = engine.scheduler.plan();
    assert_eq!(plan.seqs.len(), 1);
    let sampled = engine.run(&plan);
    assert!(engine.scheduler.cancel(ids[0]), "the leader goes before it shares anything");
    engine.scheduler.commit(&sampled);
    assert_eq!(engine.scheduler.plan().seqs.len(), 2);
}

#[test]
fn a_short_common_beginning_is_not_worth_a_step() {
    let mut engine = Engine::new(SchedulerConfig { token_budget: 512, ..roomy() });
    for question in 1..5 {
        let mut prompt = vec![7; 32];
        prompt.extend((0..64).map(|i| 100 * question + i));
        engine.submit(&prompt, 4, 1).unwrap();
    }
    assert_eq!(engine.scheduler.plan().seqs.len(), 4);
    assert_eq!(engine.scheduler.stats().prefix_waits, 0);
}
