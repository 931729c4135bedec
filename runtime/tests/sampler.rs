//! The sampler against distributions, supports and penalties worked out by hand.

use std::collections::BTreeSet;

use runtime::sampler::{RngKey, Sampled, SamplingError, SamplingParams, Scratch, TokenHistory, sample};

const EOS: [u32; 1] = [0];

fn key(position: u64) -> RngKey {
    RngKey { seed: 11, request: 3, position }
}

fn try_draw(logits: &[f32], params: &SamplingParams, history: &TokenHistory) -> Result<Sampled, SamplingError> {
    sample(logits, params, &EOS, history, key(0), &mut Scratch::default())
}

fn draw_after(logits: &[f32], params: &SamplingParams, history: &TokenHistory) -> Sampled {
    try_draw(logits, params, history).unwrap()
}

/// How often each token is drawn at `draws` positions.
fn frequencies(logits: &[f32], params: &SamplingParams, draws: u64) -> Vec<f64> {
    let (history, mut scratch) = (TokenHistory::new(&[]), Scratch::default());
    let mut counts = vec![0.0; logits.len()];
    for position in 0..draws {
        let drawn = sample(logits, params, &EOS, &history, key(position), &mut scratch).unwrap();
        counts[drawn.token as usize] += 1.0;
    }
    counts
}

fn support(logits: &[f32], params: &SamplingParams) -> BTreeSet<u32> {
    let counts = frequencies(logits, params, 4000);
    (0..).zip(counts).filter(|(_, count)| *count > 0.0).map(|(id, _)| id).collect()
}

fn log_softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let scaled: Vec<f64> = logits.iter().map(|&logit| f64::from(logit) / temperature).collect();
    let sum: f64 = scaled.iter().map(|x| x.exp()).sum();
    scaled.iter().map(|x| x - sum.ln()).collect()
}

/// Logits with these probabilities.
fn logits_of(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

fn assert_close(value: f32, expected: f64) {
    assert!((f64::from(value) - expected).abs() < 1e-6, "{value} is not {expected}");
}

/// Chi-square of `counts` against probabilities, and its degrees of freedom.
fn chi_square(counts: &[f64], probabilities: &[f64]) -> (f64, f64) {
    let draws: f64 = counts.iter().sum();
    let expected = probabilities.iter().map(|p| p * draws);
    let cells = counts.iter().zip(expected).filter(|(_, expected)| *expected > 0.0);
    let terms: Vec<f64> = cells.map(|(n, expected)| (n - expected).powi(2) / expected).collect();
    (terms.iter().sum(), terms.len() as f64 - 1.0)
}

#[test]
fn draws_follow_the_tempered_and_truncated_distribution() {
    let logits: Vec<f32> = (0..40).map(|i| ((i * 17) % 40) as f32 * 0.1 - 2.0).collect();
    let kept = |params: SamplingParams, threshold: f32| {
        let temperature = f64::from(params.temperature);
        let weights: Vec<f64> = (logits.iter())
            .map(|&logit| if logit >= threshold { (f64::from(logit) / temperature).exp() } else { 0.0 })
            .collect();
        let total: f64 = weights.iter().sum();
        let expected: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
        let counts = frequencies(&logits, &params, 50_000);
        let outside = counts.iter().zip(&expected).any(|(n, p)| *n > 0.0 && *p == 0.0);
        assert!(!outside, "{params:?}");
        let (chi_square, freedom) = chi_square(&counts, &expected);
        // Mean `freedom`, variance `2 freedom`: four deviations.
        assert!(chi_square < freedom + 4.0 * (2.0 * freedom).sqrt(), "{chi_square} for {params:?}");
    };
    let plain = SamplingParams::default;
    kept(plain(), f32::MIN);
    kept(SamplingParams { temperature: 0.5, ..plain() }, f32::MIN);
    kept(SamplingParams { temperature: 1.7, ..plain() }, f32::MIN);
    // Logits are -2.0, -1.9, .. 1.9: the ten largest begin at 1.0.
    kept(SamplingParams { top_k: Some(10), ..plain() }, 0.95);
    kept(SamplingParams { min_p: (-1.025f32).exp(), ..plain() }, 0.875);
    // At temperature 2 the threshold is half as far away in scaled logits.
    kept(SamplingParams { min_p: (-1.025f32).exp(), temperature: 2.0, ..plain() }, -0.15);
}

#[test]
fn supports_are_exact() {
    let logits = logits_of(&[0.05, 0.4, 0.15, 0.3, 0.1]);
    let plain = SamplingParams::default;
    let of = |params: SamplingParams| support(&logits, &params).into_iter().collect::<Vec<_>>();
    assert_eq!(of(plain()), [0, 1, 2, 3, 4]);
    assert_eq!(of(SamplingParams { top_k: Some(2), ..plain() }), [1, 3]);
    assert_eq!(of(SamplingParams { top_k: Some(50), ..plain() }), [0, 1, 2, 3, 4]);
    assert_eq!(of(SamplingParams { top_p: 0.69, ..plain() }), [1, 3]);
    assert_eq!(of(SamplingParams { top_p: 0.71, ..plain() }), [1, 2, 3]);
    assert_eq!(of(SamplingParams { top_p: 1e-6, ..plain() }), [1]);
    assert_eq!(of(SamplingParams { min_p: 0.3, ..plain() }), [1, 2, 3]);
    assert_eq!(of(SamplingParams { min_p: 0.9, ..plain() }), [1]);
    // Of the best three (0.85 in all) the first two are 0.82: top-p counts after top-k.
    assert_eq!(of(SamplingParams { top_k: Some(3), top_p: 0.81, ..plain() }), [1, 3]);
    assert_eq!(of(SamplingParams { top_k: Some(3), top_p: 0.83, ..plain() }), [1, 2, 3]);
    // Min-p comes last and compares with the best.
    assert_eq!(of(SamplingParams { top_k: Some(3), min_p: 0.5, ..plain() }), [1, 3]);
    // At temperature 0.5 the probabilities are squared: 0.16 of 0.285, 0.25 with the next.
    assert_eq!(of(SamplingParams { top_p: 0.56, temperature: 0.5, ..plain() }), [1]);
    assert_eq!(of(SamplingParams { top_p: 0.57, temperature: 0.5, ..plain() }), [1, 3]);
}

#[test]
fn ties_go_to_the_lowest_id() {
    let logits = [0.0, 2.0, 2.0, -1.0, 2.0];
    assert_eq!(draw_after(&logits, &greedy(), &TokenHistory::new(&[])).token, 1);
    let params = SamplingParams { top_k: Some(2), ..SamplingParams::default() };
    assert_eq!(support(&logits, &params), [1, 2].into());
    let params = SamplingParams { top_p: 0.3, ..SamplingParams::default() };
    assert_eq!(support(&logits, &params), [1].into());
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
    }
}

#[test]
fn extreme_logits_and_temperatures_stay_finite() {
    let logits = [f32::NEG_INFINITY, 3.0e38, -3.0e38, 3.0e38];
    for temperature in [1e-40, 1e-3, 1.0, 1e30] {
        let params = SamplingParams { temperature, ..SamplingParams::default() };
        let seen = support(&logits, &params);
        assert!(seen.is_superset(&[1, 3].into()) && !seen.contains(&0), "{seen:?} at {temperature}");
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

#[test]
fn a_draw_depends_on_its_key_and_not_on_its_neighbours() {
    let logits: Vec<f32> = (0..5000).map(|i| ((i * 31) % 97) as f32 * 0.1).collect();
    let params = SamplingParams { top_p: 0.9, logprobs: Some(4), ..SamplingParams::default() };
    let history = TokenHistory::new(&[]);
    let alone: Vec<Sampled> = (0..50u64)
        .map(|position| sample(&logits, &params, &EOS, &history, key(position), &mut Scratch::default()).unwrap())
        .collect();
    let mut scratch = Scratch::default();
    for (position, expected) in (0..50u64).rev().zip(alone.iter().rev()) {
        let neighbour = SamplingParams { top_k: Some(3), presence_penalty: 1.0, ..SamplingParams::default() };
        sample(&logits[..100], &neighbour, &EOS, &history, key(999), &mut scratch).unwrap();
        let drawn = sample(&logits, &params, &EOS, &history, key(position), &mut scratch).unwrap();
        assert_eq!(drawn, *expected);
    }
    let distinct: BTreeSet<u32> = alone.iter().map(|drawn| drawn.token).collect();
    assert!(distinct.len() > 40, "positions give different numbers");
}
