//! Published values of the losses, and what holds for every one of them.
//!
//! The golden values are those of `scripts/fixtures/make_golden_losses.py` (generalized JSD as TRL defines it); an identity head
//! makes hidden states and logits one thing.

use autograd::ops::{self, Distill, Divergence, Rows};
use autograd::{Device, Gradients, Tape, Tensor};
use serde_json::Value;

use super::support::{Operand, assert_close, bits, random};
use super::table::divergences;

const STUDENT: [f32; 4] = [1.0, -0.5, 0.25, 2.0];
const TEACHER: [f32; 4] = [0.5, 1.5, -1.0, 0.0];
const DEVICES: [Device; 2] = [Device::Cpu, Device::Reference];

fn identity(device: Device, vocab: usize) -> Tensor {
    let values = (0..vocab * vocab).map(|i| if i / vocab == i % vocab { 1.0 } else { 0.0 }).collect();
    Tensor::weight(device, values, [vocab, vocab]).expect("square")
}

/// Loss, rows and gradient of the student's logits.
struct Graded {
    loss: f32,
    rows: Rows,
    dz: Vec<f32>,
}

/// Runs a loss on logits `[T, vocab]` through an identity head.
fn grade(
    device: Device,
    student: &[f32],
    vocab: usize,
    loss: impl FnOnce(&mut Tape, [&Tensor; 2]) -> autograd::Result<(Tensor, Rows)>,
) -> Graded {
    let (head, mut tape) = (identity(device, vocab), Tape::recording());
    let z = Tensor::new(device, student.to_vec(), [student.len() / vocab, vocab]).expect("whole rows");
    tape.require_grad(&z);
    let (loss, rows) = loss(&mut tape, [&z, &head]).expect("a valid loss");
    let one = Tensor::new(device, vec![1.0], [1, 1]).expect("one value");
    let dz = tape.backward(&loss, one).expect("z is watched").remove(&z).expect("the loss depends on z");
    Graded { loss: loss.to_vec()[0], rows, dz: dz.to_vec() }
}

fn distill(device: Device, [student, teacher]: [&[f32]; 2], vocab: usize, weights: &[f32], d: Distill) -> Graded {
    let teacher = Tensor::new(device, teacher.to_vec(), [weights.len(), vocab]).expect("whole rows");
    grade(device, student, vocab, |tape, pair| {
        ops::linear_distill(tape, pair, [&teacher, &identity(device, vocab)], &vec![0; weights.len()], weights, &d)
    })
}

fn at_one(divergence: Divergence) -> Distill {
    Distill { divergence, temperature: 1.0 }
}

fn jsd(beta: f64) -> Divergence {
    Divergence::Jsd { beta }
}

/// The first position alone, weight 1, on both devices.
fn first_position(d: Distill) -> [Graded; 2] {
    DEVICES.map(|device| distill(device, [&STUDENT, &TEACHER], 4, &[1.0], d))
}

fn assert_near(what: &str, got: f32, want: f64) {
    assert!((f64::from(got) - want).abs() <= 1e-6, "{what}: {got}, not {want}");
}

/// The divergences of `golden_losses.json`; loss and gradient of each of its two positions.
#[test]
fn golden_values_and_gradients() {
    let golden = golden();
    let (student, teacher) = (numbers(&golden["student"]), numbers(&golden["teacher"]));
    assert_eq!((&student[..4], &teacher[..4]), (&STUDENT[..], &TEACHER[..]));
    for kind in ["jsd", "skew", "top_k"] {
        for case in golden[kind].as_array().expect("cases") {
            let beta = || number(&case["beta"]);
            let divergence = match (kind, case["direction"].as_str()) {
                ("jsd", _) => jsd(beta()),
                ("top_k", _) => Divergence::TopK { k: number(&case["k"]) as usize, beta: beta() },
                (_, Some("forward")) => Divergence::SkewedForward { alpha: number(&case["alpha"]) },
                _ => Divergence::SkewedReverse { alpha: number(&case["alpha"]) },
            };
            let d = Distill { divergence, temperature: number(&case["temperature"]) };
            let (losses, gradient) = (numbers(&case["loss"]), numbers(&case["gradient"]));
            for device in DEVICES {
                let both = distill(device, [&student, &teacher], 4, &[0.5, 0.5], d);
                let mean = f64::from(losses[0] + losses[1]) / 2.0;
                assert_near(&format!("{d:?}, mean of both"), both.loss, mean);
                assert_close(&format!("{d:?}, rows"), &both.rows["loss"], &losses, 1e-6);
                let halves: Vec<f32> = gradient.iter().map(|g| g / 2.0).collect();
                assert_close(&format!("{d:?}, gradient"), &both.dz, &halves, 1e-6);
                let masked = distill(device, [&student, &teacher], 4, &[1.0, 0.0], d);
                assert_near(&format!("{d:?}, second masked"), masked.loss, losses[0].into());
                assert_close(&format!("{d:?}, first gradient"), &masked.dz[..4], &gradient[..4], 1e-6);
                assert_eq!(masked.dz[4..], [0.0; 4]);
            }
        }
    }
}

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden_losses.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("a fixture")).expect("JSON")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// The numbers of a list, or of a list of lists one after the other.
fn numbers(value: &Value) -> Vec<f32> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        one => vec![number(one) as f32],
    }
}

#[test]
fn values_of_two_tokens_and_of_the_limits() {
    let logs = |p: [f32; 2]| p.map(f32::ln);
    for device in DEVICES {
        for (beta, want) in [(0.0, 1.757779662), (1.0, 1.757779662), (0.5, 0.368064207)] {
            let rows = [&logs([0.1, 0.9])[..], &logs([0.9, 0.1])[..]];
            assert_near("two tokens", distill(device, rows, 2, &[1.0], at_one(jsd(beta))).loss, want);
        }
    }
    // JSD / beta and JSD / (1 - beta) approach the two KL divergences.
    for (beta, want) in [(1e-4, 1.227134842), (1.0 - 1e-4, 0.907505161)] {
        let [native, _] = first_position(at_one(jsd(beta)));
        let ratio = f64::from(native.loss) / beta.min(1.0 - beta);
        assert!((ratio - want).abs() < 5e-3, "beta {beta}: {ratio}, not {want}");
    }
}

#[test]
fn equal_distributions_have_no_loss_and_no_gradient() {
    let z: Vec<f32> = random(5 * 40, 1).iter().map(|v| 6.0 * v).collect();
    for divergence in divergences(40) {
        for temperature in [1.0, 2.0] {
            let g = distill(Device::Cpu, [&z, &z], 40, &[1.0; 5], Distill { divergence, temperature });
            assert!(g.loss.abs() < 1e-6, "{divergence:?}: loss {}", g.loss);
            assert!(g.dz.iter().all(|d| d.abs() < 1e-7), "{divergence:?}: {:?}", g.dz);
            assert_eq!(g.rows["agreement"], [1.0; 5]);
        }
    }
}

/// Two rows, the first so extreme that its divergence is far out of any use, and masked.
#[test]
fn a_masked_row_adds_nothing_whatever_it_holds() {
    let student = [[1e30, -1e30, 3e38, f32::NEG_INFINITY], STUDENT].concat();
    let teacher = [[f32::NEG_INFINITY, 1e30, -3e38, 1e30], TEACHER].concat();
    for divergence in divergences(4) {
        let d = at_one(divergence);
        let masked = distill(Device::Cpu, [&student, &teacher], 4, &[0.0, 1.0], d);
        let alone = distill(Device::Cpu, [&STUDENT, &TEACHER], 4, &[1.0], d);
        assert_eq!(masked.loss.to_bits(), alone.loss.to_bits(), "{divergence:?}");
        assert_eq!(masked.dz, [vec![0.0; 4], alone.dz].concat(), "{divergence:?}");
    }
    let all_masked = distill(Device::Cpu, [&STUDENT, &TEACHER], 4, &[0.0], at_one(jsd(0.5)));
    assert_eq!((all_masked.loss, all_masked.dz), (0.0, vec![0.0; 4]));
}

#[test]
fn not_a_number_is_not_hidden() {
    let student = [1.0, f32::NAN, 0.0, 1.0];
    for divergence in divergences(4) {
        let g = distill(Device::Cpu, [&student, &TEACHER], 4, &[1.0], at_one(divergence));
        assert!(g.loss.is_nan(), "{divergence:?}: {}", g.loss);
        let g = distill(Device::Cpu, [&TEACHER, &student], 4, &[1.0], at_one(divergence));
        assert!(g.loss.is_nan(), "{divergence:?}, teacher: {}", g.loss);
    }
}

#[test]
fn the_whole_vocabulary_as_support_is_the_full_divergence() {
    let z = [7, 8].map(|key| random(6 * 50, key).iter().map(|v| 5.0 * v).collect::<Vec<_>>());
    for beta in [0.0, 0.3, 1.0] {
        let run = |divergence| distill(Device::Cpu, [&z[0], &z[1]], 50, &[1.0; 6], at_one(divergence));
        let (top, full) = (run(Divergence::TopK { k: 50, beta }), run(jsd(beta)));
        assert_close("rows", &top.rows["loss"], &full.rows["loss"], 1e-6);
        assert_close("gradient", &top.dz, &full.dz, 1e-6);
    }
}

/// A run over real hidden states and heads: the loss, the rows and the gradients of hidden states and head.
fn from_hidden(rows: std::ops::Range<usize>, scale: f32) -> (f32, Rows, Gradients, [Tensor; 2]) {
    const ALL: usize = 600;
    let cut = |operand: Operand| {
        let width = operand.shape[1];
        let values = operand.values[rows.start * width..rows.end * width].to_vec();
        Operand { values, shape: [rows.len(), width], weight: false }.on(Device::Cpu)
    };
    let student = [cut(Operand::rows([ALL, 24], 50).times(2.0)), Operand::weight([70, 24], 51).on(Device::Cpu)];
    let teacher = [cut(Operand::rows([ALL, 20], 52).times(2.0)), Operand::weight([70, 20], 53).on(Device::Cpu)];
    let weights: Vec<f32> = random(ALL, 54)[rows].iter().map(|w| (w + 1.0) * scale).collect();
    let mut tape = Tape::recording();
    student.iter().for_each(|t| tape.require_grad(t));
    let [hidden, head] = &student;
    let d = at_one(jsd(0.5));
    let (loss, rows) = ops::linear_distill(
        &mut tape,
        [hidden, head],
        [&teacher[0], &teacher[1]],
        &vec![0; weights.len()],
        &weights,
        &d,
    )
    .expect("shapes fit");
    let one = Tensor::new(Device::Cpu, vec![1.0], [1, 1]).expect("one value");
    let grads = tape.backward(&loss, one).expect("watched");
    (loss.to_vec()[0], rows, grads, student)
}

/// Sums over micro-batches of any size are the whole batch's; values and gradients of a row are bit for bit its own.
#[test]
fn splits_of_a_batch_give_the_same_gradient() {
    let (whole_loss, whole_rows, whole, [hidden, head]) = from_hidden(0..600, 1e-2);
    let dhidden = bits(whole.get(&hidden).expect("watched"));
    for cuts in [vec![0, 600], vec![0, 150, 300, 450, 600], vec![0, 1, 8, 260, 517, 600]] {
        let (mut loss, mut row, mut dhead) = (0.0, 0, vec![0.0f32; 70 * 24]);
        for cut in cuts.windows(2) {
            let (part, rows, grads, [hidden, head]) = from_hidden(cut[0]..cut[1], 1e-2);
            loss += part;
            for (key, values) in &rows {
                assert_eq!(values[..], whole_rows[key][cut[0]..cut[1]], "{key}");
            }
            let part = bits(grads.get(&hidden).expect("watched"));
            assert_eq!(part, dhidden[row..row + part.len()]);
            row += part.len();
            let part = grads.get(&head).expect("watched").to_vec();
            dhead.iter_mut().zip(part).for_each(|(sum, g)| *sum += g);
        }
        assert!((loss - whole_loss).abs() < 1e-5 * whole_loss, "{loss} against {whole_loss}");
        assert_close("head gradient", &dhead, &whole.get(&head).expect("watched").to_vec(), 1e-6);
    }
}

#[test]
fn another_token_is_another_loss() {
    let z = random(3 * 9, 60);
    let run = |targets: &[u32]| {
        grade(Device::Cpu, &z, 9, |tape, pair| ops::linear_cross_entropy(tape, pair, targets, &[1.0; 3])).loss
    };
    assert!((run(&[1, 2, 3]) - run(&[2, 3, 4])).abs() > 1e-3);
}

/// ln q of the sampled tokens -1.2, -0.3, -2; sampled at -1.1, -0.35, -2; the teacher gives them -0.7, -0.5, -3.
#[test]
fn policy_gradient_of_the_worked_example() {
    let logprobs = [-1.2f32, -0.3, -2.0];
    let z: Vec<f32> = logprobs.iter().flat_map(|l| [*l, (-l.exp_m1() / 2.0).ln(), (-l.exp_m1() / 2.0).ln()]).collect();
    for device in DEVICES {
        let graded = grade(device, &z, 3, |tape, pair| {
            let sampled = [[-1.1, -0.35, -2.0], [0.4, -0.15, -1.0]];
            ops::linear_policy_gradient(tape, pair, &[0; 3], [&sampled[0], &sampled[1]], &[1.0; 3], 1.0)
        });
        assert_near("loss", graded.loss, 0.795755697);
        assert_close("logprob", &graded.rows["logprob"], &logprobs, 1e-6);
    }
}

/// The expectation over tokens drawn from q, taken exactly: every token once, weighted with q.
#[test]
fn the_policy_gradient_is_the_reverse_kl_gradient_in_expectation() {
    const V: usize = 30;
    for temperature in [1.0, 0.8] {
        let [z, zt] = [70, 71].map(|key| random(V, key).iter().map(|v| 3.0 * v).collect::<Vec<_>>());
        let logs = |z: &[f32]| {
            let scaled: Vec<f64> = z.iter().map(|&v| f64::from(v) / temperature).collect();
            let sum = scaled.iter().map(|v| v.exp()).sum::<f64>().ln();
            scaled.iter().map(|v| (v - sum) as f32).collect::<Vec<_>>()
        };
        let (lq, lp) = (logs(&z), logs(&zt));
        let q: Vec<f32> = lq.iter().map(|l| l.exp()).collect();
        let advantages: Vec<f32> = lq.iter().zip(&lp).map(|(q, p)| p - q).collect();
        let tokens: Vec<u32> = (0..V as u32).collect();
        let sampled = grade(Device::Cpu, &z.repeat(V), V, |tape, pair| {
            ops::linear_policy_gradient(tape, pair, &tokens, [&lq, &advantages], &q, temperature)
        });
        let expected: Vec<f32> = (0..V).map(|v| (0..V).map(|row| sampled.dz[row * V + v]).sum()).collect();
        let d = Distill { divergence: jsd(1.0), temperature };
        let exact = distill(Device::Cpu, [&z, &zt], V, &[1.0], d);
        assert_close("gradient", &expected, &exact.dz, 2e-6);
    }
}

#[test]
fn log_probabilities_sum_to_one() {
    let z: Vec<f32> = random(40, 80).iter().map(|v| 8.0 * v).collect();
    for temperature in [1.0, 0.5] {
        let z = Tensor::new(Device::Cpu, z.repeat(40), [40, 40]).expect("whole rows");
        let tokens: Vec<u32> = (0..40).collect();
        let logs = ops::linear_log_prob([&z, &identity(Device::Cpu, 40)], &tokens, temperature).expect("valid");
        let total: f64 = logs.iter().map(|&l| f64::from(l).exp()).sum();
        assert!((total - 1.0).abs() < 1e-5, "{total}");
    }
}
