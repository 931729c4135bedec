//! Penalties, masks and log-probabilities.

use runtime::sampler::{SamplingError, SamplingParams, TokenHistory};

use crate::{draw_after, greedy, try_draw};

fn log_softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let scaled: Vec<f64> = logits.iter().map(|&logit| f64::from(logit) / temperature).collect();
    let sum: f64 = scaled.iter().map(|x| x.exp()).sum();
    scaled.iter().map(|x| x - sum.ln()).collect()
}

fn assert_close(value: f32, expected: f64) {
    assert!((f64::from(value) - expected).abs() < 1e-6, "{value} is not {expected}");
}

/// The gap between two logits after adjustment, recovered from draws between them alone.
fn adjusted_order(params: &SamplingParams, history: &TokenHistory, logits: &[f32]) -> u32 {
    draw_after(logits, &SamplingParams { temperature: 0.0, ..params.clone() }, history).token
}

/// Asserts that `params` move the logit of token 1 to `expected`: with token 2 just below that it wins, with
/// token 2 just above it loses.
fn assert_adjusted(params: &SamplingParams, history: &TokenHistory, logit: f32, expected: f32) {
    for (rival, winner) in [(expected - 1e-3, 1), (expected + 1e-3, 2)] {
        assert_eq!(adjusted_order(params, history, &[-50.0, logit, rival]), winner, "{params:?}");
    }
}

#[test]
fn penalties_and_bias_have_the_published_values_also_in_greedy() {
    let plain = SamplingParams::default;
    let mut twice = TokenHistory::new(&[]);
    twice.push(1);
    twice.push(1);
    let in_prompt = TokenHistory::new(&[1, 1, 1]);
    let repetition = SamplingParams { repetition_penalty: 1.25, ..plain() };
    assert_adjusted(&repetition, &twice, 3.0, 2.4);
    assert_adjusted(&repetition, &in_prompt, 3.0, 2.4);
    assert_adjusted(&repetition, &in_prompt, -2.0, -2.5);
    assert_adjusted(&repetition, &TokenHistory::new(&[0]), 3.0, 3.0);
    let frequency = SamplingParams { frequency_penalty: 0.75, ..plain() };
    assert_adjusted(&frequency, &twice, 3.0, 1.5);
    assert_adjusted(&frequency, &in_prompt, 3.0, 3.0);
    let presence = SamplingParams { presence_penalty: 0.75, ..plain() };
    assert_adjusted(&presence, &twice, 3.0, 2.25);
    assert_adjusted(&presence, &in_prompt, 3.0, 3.0);
    let bias = SamplingParams { logit_bias: [(1, -1.5)].into(), ..plain() };
    assert_adjusted(&bias, &in_prompt, 3.0, 1.5);
    let all = SamplingParams {
        repetition_penalty: 2.0,
        frequency_penalty: 0.5,
        presence_penalty: -0.25,
        logit_bias: [(1, 1.0)].into(),
        ..plain()
    };
    // (3 + 1) / 2 - 2 * 0.5 + 0.25
    assert_adjusted(&all, &twice, 3.0, 1.25);
}

#[test]
fn min_tokens_masks_the_ids_that_end() {
    let logits = [9.0, 8.0, 7.0];
    let params = SamplingParams { min_tokens: 2, stop_token_ids: vec![1], ..greedy() };
    let mut history = TokenHistory::new(&[0, 1]);
    for expected in [2, 2, 0] {
        assert_eq!(draw_after(&logits, &params, &history).token, expected);
        history.push(2);
    }
    let params = SamplingParams { ignore_eos: true, ..params };
    assert_eq!(draw_after(&logits, &params, &TokenHistory::new(&[])).token, 0);
    let params = SamplingParams { min_tokens: 1, stop_token_ids: vec![1, 2], ..greedy() };
    let refused = try_draw(&logits, &params, &TokenHistory::new(&[])).unwrap_err();
    assert_eq!(refused, SamplingError::NoCandidate { vocab_size: 3, masked: 3 });
}

#[test]
fn log_probabilities_are_the_models_own() {
    let logits: Vec<f32> = (0..300).map(|i| ((i * 71) % 300) as f32 * 0.05 - 30.0).collect();
    let (model, tempered) = (log_softmax(&logits, 1.0), log_softmax(&logits, 0.7));
    let params = SamplingParams {
        temperature: 0.7,
        top_k: Some(40),
        top_p: 0.9,
        repetition_penalty: 1.3,
        logit_bias: [(5, 4.0)].into(),
        logprobs: Some(3),
        logprob_token_ids: vec![7, 0, 7],
        ..SamplingParams::default()
    };
    let drawn = draw_after(&logits, &params, &TokenHistory::new(&[9, 10]));
    assert_close(drawn.logprob, model[drawn.token as usize]);
    assert_close(drawn.sampling_logprob, tempered[drawn.token as usize]);
    let given: Vec<f64> = [7, 0, 7].map(|id: usize| model[id]).to_vec();
    drawn.given.iter().zip(given).for_each(|(&value, expected)| assert_close(value, expected));
    let mut order: Vec<u32> = (0..300).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    assert_eq!(drawn.top.len(), 3);
    for (&(id, logprob), expected) in drawn.top.iter().zip(order) {
        assert_eq!(id, expected);
        assert_close(logprob, model[id as usize]);
    }
    for temperature in [0.0, 1.0] {
        let drawn = draw_after(&logits, &SamplingParams { temperature, ..params.clone() }, &TokenHistory::new(&[]));
        assert_eq!(drawn.sampling_logprob, drawn.logprob);
        assert_close(drawn.logprob, model[drawn.token as usize]);
    }
}

#[test]
fn broken_logits_are_an_error_and_not_a_token() {
    for (bad, params) in [(f32::NAN, greedy()), (f32::INFINITY, SamplingParams::default())] {
        let refused = try_draw(&[1.0, 2.0, bad], &params, &TokenHistory::new(&[])).unwrap_err();
        assert!(matches!(refused, SamplingError::NonFiniteLogit { token: 2, .. }), "{refused}");
    }
    let masked = [f32::NEG_INFINITY; 4];
    let refused = try_draw(&masked, &greedy(), &TokenHistory::new(&[])).unwrap_err();
    assert_eq!(refused, SamplingError::NoCandidate { vocab_size: 4, masked: 0 });
}
