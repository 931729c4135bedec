//! What is drawn, and how often.

use std::collections::BTreeSet;

use runtime::sampler::{Sampled, SamplingParams, Scratch, TokenHistory, sample};

use crate::{EOS, draw_after, greedy, key};

fn support(logits: &[f32], params: &SamplingParams) -> BTreeSet<u32> {
    let counts = frequencies(logits, params, 4000);
    (0..).zip(counts).filter(|(_, count)| *count > 0.0).map(|(id, _)| id).collect()
}

/// How often each token is drawn at `draws` positions.
fn frequencies(logits: &[f32], params: &SamplingParams, draws: u64) -> Vec<f64> {
    let (history, mut scratch) = (TokenHistory::new(&[]), Scratch::default());
    let mut counts = vec![0.0; logits.len()];
    for position in 0..draws {
        let drawn = sample(logits, params, &EOS, &history, None, key(position), &mut scratch).unwrap();
        counts[drawn.token as usize] += 1.0;
    }
    counts
}

/// Logits with these probabilities.
fn logits_of(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
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
fn a_draw_depends_on_its_key_and_not_on_its_neighbours() {
    let logits: Vec<f32> = (0..5000).map(|i| ((i * 31) % 97) as f32 * 0.1).collect();
    let params = SamplingParams { top_p: 0.9, logprobs: Some(4), ..SamplingParams::default() };
    let history = TokenHistory::new(&[]);
    let alone: Vec<Sampled> = (0..50u64)
        .map(|position| sample(&logits, &params, &EOS, &history, None, key(position), &mut Scratch::default()).unwrap())
        .collect();
    let mut scratch = Scratch::default();
    for (position, expected) in (0..50u64).rev().zip(alone.iter().rev()) {
        let neighbour = SamplingParams { top_k: Some(3), presence_penalty: 1.0, ..SamplingParams::default() };
        sample(&logits[..100], &neighbour, &EOS, &history, None, key(999), &mut scratch).unwrap();
        let drawn = sample(&logits, &params, &EOS, &history, None, key(position), &mut scratch).unwrap();
        assert_eq!(drawn, *expected);
    }
    let distinct: BTreeSet<u32> = alone.iter().map(|drawn| drawn.token).collect();
    assert!(distinct.len() > 40, "positions give different numbers");
}

#[test]
fn truncation_that_removes_nothing_changes_nothing() {
    let mut logits: Vec<f32> = (0..500).map(|i| ((i * 31) % 97) as f32 * 0.05).collect();
    logits[123] = f32::NEG_INFINITY;
    let (plain, history) = (SamplingParams::default(), TokenHistory::new(&[]));
    let vacuous = [
        SamplingParams { top_k: Some(499), ..plain.clone() },
        SamplingParams { top_p: 0.999_999_9, ..plain.clone() },
        SamplingParams { min_p: 1e-9, ..plain.clone() },
    ];
    for position in 0..200 {
        let token = |params| {
            let drawn = sample(&logits, params, &EOS, &history, None, key(position), &mut Scratch::default());
            drawn.unwrap().token
        };
        vacuous.iter().for_each(|params| assert_eq!(token(params), token(&plain), "{params:?}"));
    }
}
