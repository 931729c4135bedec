//! The losses through the real ops: with an identity head, hidden states are logits.

use std::collections::BTreeMap;

use autograd::ops::Divergence;
use autograd::{Device, Tape, Tensor};
use runtime::train::{LossBatch, Teacher};
use serde_json::Value;

use super::*;

const STUDENT: [f32; 8] = [1.0, -0.5, 0.25, 2.0, 0.0, 0.0, 0.0, 0.0];
const TEACHER: [f32; 8] = [0.5, 1.5, -1.0, 0.0, 3.0, 0.0, -1.0, 0.5];

struct Outcome {
    loss: f64,
    gradient: Vec<f32>,
    rows: BTreeMap<&'static str, Vec<f32>>,
}

fn identity(width: usize) -> Tensor {
    let values = (0..width * width).map(|i| if i % (width + 1) == 0 { 1.0 } else { 0.0 }).collect();
    Tensor::weight(Device::Cpu, values, [width, width]).expect("square")
}

fn run(loss: &dyn Loss, weights: &[f32], targets: &[u32], sampled: &[f32]) -> Outcome {
    let rows = |values: &[f32]| {
        Tensor::new(Device::Cpu, values[..4 * weights.len()].to_vec(), [weights.len(), 4]).expect("fits")
    };
    let (student, teacher, head) = (rows(&STUDENT), rows(&TEACHER), identity(4));
    let mut tape = Tape::recording();
    tape.require_grad(&student);
    let batch = LossBatch {
        student_hidden: &student,
        student_head: &head,
        token_ids: 4,
        teacher: Some(Teacher::Resident([&teacher, &head].into())),
        targets,
        sampled_logprobs: sampled,
        raw_logprobs: sampled,
        weights,
    };
    let value = loss.compute(&mut tape, &batch).expect("computes");
    let seed = Tensor::new(Device::Cpu, vec![1.0], [1, 1]).expect("fits");
    let gradient = tape.backward(&value.loss, seed).expect("recorded").get(&student).expect("watched").to_vec();
    Outcome { loss: f64::from(value.loss.to_vec()[0]), gradient, rows: value.rows }
}

fn divergence(divergence: Divergence, temperature: f64) -> Arc<dyn Loss> {
    build(LossKind::Divergence { divergence, temperature }, 1.0)
}

fn close(got: f64, want: f64) -> bool {
    (got - want).abs() < 1e-6
}

/// The recipe's divergences reach the ops with their settings; `autograd` checks every value and gradient.
#[test]
fn divergences_have_their_golden_values() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/golden_losses.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).expect("a fixture")).expect("JSON");
    for kind in ["jsd", "skew", "top_k"] {
        for case in golden[kind].as_array().expect("cases") {
            let number = |key: &str| case[key].as_f64().expect("a number");
            let kind = match (kind, case["direction"].as_str()) {
                ("jsd", _) => Divergence::Jsd { beta: number("beta") },
                ("top_k", _) => Divergence::TopK { k: number("k") as usize, beta: number("beta") },
                (_, Some("forward")) => Divergence::SkewedForward { alpha: number("alpha") },
                _ => Divergence::SkewedReverse { alpha: number("alpha") },
            };
            let got = run(&*divergence(kind, number("temperature")), &[1.0], &[0], &[]);
            let want = case["loss"][0].as_f64().expect("a number");
            assert!(close(got.loss, want), "{case}: {} is not {want}", got.loss);
            for (i, gradient) in got.gradient.iter().enumerate() {
                assert!(close(f64::from(*gradient), case["gradient"][0][i].as_f64().expect("a number")), "{case}: {i}");
            }
        }
    }
}

#[test]
fn rows_are_summed_with_their_weights_and_a_masked_row_counts_nothing() {
    let reverse = divergence(Divergence::Jsd { beta: 1.0 }, 1.0);
    let both = run(&*reverse, &[0.5, 0.5], &[0, 0], &[]);
    assert!(close(both.loss, 1.018125850), "{}", both.loss);
    let masked = run(&*reverse, &[1.0, 0.0], &[0, 0], &[]);
    assert!(close(masked.loss, 0.907620910), "{}", masked.loss);
    assert!(masked.gradient[4..].iter().all(|g| *g == 0.0), "{:?}", masked.gradient);
    assert_eq!(run(&*reverse, &[0.0, 0.0], &[0, 0], &[]).loss, 0.0);
    assert!(close(f64::from(both.rows["teacher_kl"][0]), 0.907620910));
    assert!(close(f64::from(both.rows["forward_kl"][1]), 0.874398396));
}

/// With ln q_sampled = ln q the ratio is 1: the loss is the negative advantage, the gradient `-A (onehot - q)`.
#[test]
fn policy_gradient_weighs_by_what_the_teacher_thinks() {
    let log_softmax = |z: &[f32]| -> Vec<f32> {
        let sum = z.iter().map(|v| v.exp()).sum::<f32>().ln();
        z.iter().map(|v| v - sum).collect()
    };
    let (q, p) = (log_softmax(&STUDENT[..4]), log_softmax(&TEACHER[..4]));
    let loss = build(LossKind::PolicyGradient { coef: 2.0 }, 1.0);
    let mut expected = [0.0f32; 4];
    for target in 0..4u32 {
        let token = target as usize;
        let got = run(&*loss, &[1.0], &[target], &[q[token]]);
        let advantage = -2.0 * (q[token] - p[token]);
        assert!(close(got.loss, f64::from(-advantage)), "{} is not {}", got.loss, -advantage);
        assert!(close(f64::from(got.rows["teacher_kl"][0]), f64::from(q[token] - p[token])));
        for (sum, gradient) in expected.iter_mut().zip(&got.gradient) {
            *sum += q[token].exp() * gradient;
        }
    }
    // Averaged over the student's own tokens it is the gradient of coef times the reverse KL.
    let analytic = run(&*divergence(Divergence::Jsd { beta: 1.0 }, 1.0), &[1.0], &[0], &[]).gradient;
    assert!(expected.iter().zip(&analytic).all(|(e, a)| (e - 2.0 * a).abs() < 1e-6), "{expected:?} {analytic:?}");
}

#[test]
fn cross_entropy_is_the_negative_log_probability() {
    let got = run(&CrossEntropy, &[1.0], &[3], &[]);
    let sum = STUDENT[..4].iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln();
    assert!(close(got.loss, sum - 2.0), "{}", got.loss);
}

#[test]
fn mismatch_is_the_difference_on_the_sampled_tokens() {
    let watched = Mismatch::new(divergence(Divergence::Jsd { beta: 0.0 }, 1.0), 1.0);
    let sum = STUDENT[..4].iter().map(|v| v.exp()).sum::<f32>().ln();
    let (first, second) = (1.0 - sum, -(4.0f32.ln()));
    let got = run(&watched, &[1.0, 1.0], &[0, 2], &[first, second - 0.25]);
    assert!(got.rows["mismatch"][0].abs() < 1e-6);
    assert!((got.rows["mismatch"][1] + 0.25).abs() < 1e-6);
    assert!((got.rows["mismatch_size"][1] - 0.25).abs() < 1e-6);
}
