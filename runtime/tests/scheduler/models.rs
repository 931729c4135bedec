//! Several models in one batch: a base and the adapters on it.

use proptest::prelude::*;
use runtime::kv::CacheKey;
use runtime::request::ModelId;
use runtime::scheduler::SchedulerConfig;

use super::engine::{Engine, Numbers, prompts, roomy};

fn key(model: u32) -> CacheKey {
    CacheKey { model: ModelId(model), weights_version: 1 }
}

#[test]
fn models_share_a_step_and_no_prefix() {
    let mut engine = Engine::new(SchedulerConfig { token_budget: 200, ..roomy() });
    let prompt = [2; 40];
    let ids = [0, 1, 0, 2, 1].map(|model| engine.submit_to(key(model), &prompt, 4, true).expect("submitted"));
    engine.step();
    engine.step();
    // The second sequence of a model waits for the prefix of the first one, and of that alone.
    assert_eq!(engine.scheduler.stats().prefix_waits, 2);
    engine.drain(20);
    let stats = engine.scheduler.stats();
    assert!(stats.steps < 8, "{stats:?}");
    assert_eq!(stats.prefix_hit_tokens, 2 * 32);
    engine.assert_outputs_as_alone(&ids);
    engine.scheduler.forget_model(ModelId(1));
    let again = engine.submit_to(key(1), &prompt, 4, true).expect("submitted");
    engine.drain(20);
    assert_eq!(engine.scheduler.stats().prefix_hit_tokens, 2 * 32, "the model's prefixes are gone");
    engine.assert_outputs_as_alone(&[again]);
    engine.assert_pool_whole();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn any_mixture_of_models_gives_each_its_own_tokens(
        seed in any::<u64>(),
        token_budget in 1usize..40,
        max_running in 1usize..10,
        num_pages in 8usize..40,
        one_ahead in any::<bool>(),
        arrivals in prop::collection::vec((1usize..70, 1usize..58, 0usize..4, 0u32..4), 1..25),
    ) {
        let config = SchedulerConfig { token_budget, max_running, num_pages, ..roomy() };
        let mut engine = if one_ahead { Engine::one_ahead(config) } else { Engine::new(config) };
        let mut numbers = Numbers(seed);
        let texts = prompts(&mut numbers, arrivals.len(), 70);
        let mut ids = Vec::new();
        for (text, &(len, new, steps, model)) in texts.iter().zip(&arrivals) {
            ids.push(engine.submit_to(key(model), &text[..len.min(text.len())], new, true).expect("submitted"));
            (0..steps).for_each(|_| { engine.step(); });
        }
        let work: usize = arrivals.iter().map(|(len, new, ..)| len + new).sum();
        engine.drain(4 * work + 10);
        engine.assert_outputs_as_alone(&ids);
        engine.assert_pool_whole();
    }
}
