//! Sequences that are scored beside generations.

use std::sync::Arc;

use runtime::scheduler::{RequestId, Scheduler, SchedulerConfig, SeqRequest};

use super::engine::{key, roomy};

fn request(id: u64, tokens: usize, scored: bool) -> SeqRequest {
    SeqRequest {
        id: RequestId(id),
        key: key(1),
        prompt: Arc::from(vec![id as u32; tokens]),
        max_new_tokens: usize::from(!scored) * 50,
        scored_from: scored.then_some(0),
        ahead: true,
    }
}

/// Runs one step; request and tokens of each sequence.
fn step(scheduler: &mut Scheduler, prefill: usize) -> Vec<(u64, usize)> {
    let plan = scheduler.plan_with_prefill(prefill);
    if plan.is_empty() {
        return vec![];
    }
    let sampled: Vec<(RequestId, u32)> = plan.seqs.iter().filter(|seq| seq.sample).map(|seq| (seq.id, 1)).collect();
    scheduler.commit(&sampled);
    plan.seqs.iter().map(|seq| (seq.id.0, seq.tokens.len())).collect()
}

#[test]
fn a_prompt_gets_half_of_a_step_that_a_long_score_would_fill() {
    let mut scheduler = Scheduler::new(SchedulerConfig { max_context: 2000, ..roomy() }).expect("limits");
    scheduler.submit(request(1, 1000, true)).expect("room");
    assert_eq!(step(&mut scheduler, usize::MAX), [(1, 64)]);
    scheduler.submit(request(2, 40, false)).expect("room");
    assert_eq!(step(&mut scheduler, usize::MAX), [(1, 32), (2, 32)]);
    assert_eq!(step(&mut scheduler, usize::MAX), [(1, 32), (2, 8)]);
    assert!(scheduler.has_decodes());
    // The generation decodes; the rest of the step is the score's.
    assert_eq!(step(&mut scheduler, usize::MAX), [(2, 1), (1, 63)]);
}

#[test]
fn tokens_of_prompts_beside_decodes_are_bounded() {
    let mut scheduler = Scheduler::new(roomy()).expect("limits");
    scheduler.submit(request(1, 10, false)).expect("room");
    assert_eq!(step(&mut scheduler, usize::MAX), [(1, 10)]);
    scheduler.submit(request(2, 100, true)).expect("room");
    scheduler.submit(request(3, 30, false)).expect("room");
    assert_eq!(step(&mut scheduler, 0), [(1, 1)]);
    assert_eq!(step(&mut scheduler, 8), [(1, 1), (3, 8)]);
    // Once its turn has come, what is scored has half.
    let rest: usize = (0..40).flat_map(|_| step(&mut scheduler, 8)).filter(|(id, _)| *id != 1).map(|(_, n)| n).sum();
    assert!(rest > 100, "both go on: {rest} tokens");
}

#[test]
fn a_score_that_was_passed_often_enough_has_its_turn() {
    // Places for one sequence: every generation that is admitted passes the score.
    let mut scheduler = Scheduler::new(SchedulerConfig { max_running: 1, ..roomy() }).expect("limits");
    scheduler.submit(SeqRequest { max_new_tokens: 1, ..request(0, 4, false) }).expect("room");
    scheduler.submit(request(1, 20, true)).expect("room");
    let mut steps = 0;
    for id in 2.. {
        assert!(id < 200, "the score starves");
        scheduler.submit(SeqRequest { max_new_tokens: 1, ..request(id, 4, false) }).expect("room");
        let ran = step(&mut scheduler, usize::MAX);
        steps += 1;
        if ran.iter().any(|(id, _)| *id == 1) {
            break;
        }
        ran.iter().for_each(|(id, _)| assert!(scheduler.finish(RequestId(*id))));
    }
    assert!(steps > 32, "it stood back for {steps} steps only");
}
