//! The kernels of a GPU against burn, on inputs that bf16 holds exactly. `scripts/check/gpu` runs these where there is a
//! GPU; they are ignored elsewhere.

#![allow(clippy::print_stdout)]

use std::sync::Arc;

use autograd::adamw::{AdamW, Moments, Step, global_norm};
use autograd::kv::{KvPool, KvShape, PAGE_TOKENS, PagedBatch, PagedRows};
use autograd::ops::{
    self, Attention, Distill, Dropout, LowRank, PendingSamples, Projection, QkRope, RopeTable, SampleArgs,
    SampleBuffer, SampleParams, SampleResult, Sequences, Token,
};
use autograd::rng::uniform;
use autograd::{Device, Index, Tape, Tensor};

use super::gradients::{Ran, run, variables};
use super::support::{Operand, random, write};
use super::table::{Case, divergences};
use super::teacher_rows;

pub(crate) const GPU: Device = Device::Cuda(0);

/// Nearest bf16.
pub(crate) fn rounded(v: f32) -> f32 {
    let bits = v.to_bits();
    f32::from_bits((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000)
}

/// `|got - want| / |want|`; infinite where a value is not finite.
pub(crate) fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths");
    if got.iter().any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = square(&mut got.iter().zip(want).map(|(&g, &w)| f64::from(g) - f64::from(w)));
    let size = square(&mut want.iter().map(|&w| f64::from(w)));
    if size == 0.0 { error.sqrt() } else { (error / size).sqrt() }
}

// Cases whose widths are what the GPU's vectors want.

fn elementwise() -> Vec<Case> {
    let add = |tape: &mut Tape, x: &[&Tensor]| ops::add(tape, x[0], x[1]);
    let swiglu = |tape: &mut Tape, x: &[&Tensor]| ops::swiglu(tape, x[0]);
    let norm = |tape: &mut Tape, x: &[&Tensor]| ops::rms_norm(tape, x[0], x[1], 1e-5);
    let normed = |t, h, d| vec![Operand::rows([t, h], 12), Operand::rows([1, d], 13)];
    let select = |tape: &mut Tape, x: &[&Tensor]| ops::select_rows(tape, x[0], &[4, 0, 2, 4].into());
    let ids: Index = (0..300u32).map(|i| i * i % 97).collect();
    let embed = move |tape: &mut Tape, x: &[&Tensor]| ops::embedding(tape, x[0], &ids);
    let mut cases = vec![
        Case::new("add", "[7, 40]", vec![Operand::rows([7, 40], 1), Operand::rows([7, 40], 2)], add),
        Case::new("add", "large", vec![Operand::rows([600, 520], 1), Operand::rows([600, 520], 2)], add),
        Case::new("rows", "one row twice", vec![Operand::rows([5, 24], 4)], select),
        Case::new("embedding", "300 of 97", vec![Operand::weight([97, 64], 5)], embed),
    ];
    for shape in [[1, 16], [7, 176], [300, 6144]] {
        cases.push(Case::new("swiglu", format!("{shape:?}"), vec![Operand::rows(shape, 3).times(4.0)], swiglu));
    }
    for (t, h, d) in [(3, 64, 64), (5, 1024, 1024), (40, 2560, 2560), (700, 576, 576), (4, 9728, 9728), (9, 512, 128)] {
        cases.push(Case::new("rms_norm", format!("[{t}, {h}] by {d}"), normed(t, h, d), norm));
    }
    cases
}

fn linear(shapes: &[[usize; 3]]) -> Vec<Case> {
    let plain =
        |[t, n, k]: [usize; 3]| vec![Operand::rows([t, k], 6), Operand::weight([n, k], 7), Operand::rows([1, n], 8)];
    let run = |tape: &mut Tape, x: &[&Tensor]| ops::linear(tape, x[0], x[1], Some(x[2]));
    let mut cases: Vec<Case> =
        shapes.iter().map(|&dims| Case::new("linear", format!("{dims:?} bias"), plain(dims), run)).collect();
    let joined = |dropout| {
        move |tape: &mut Tape, x: &[&Tensor]| {
            let branch = |a, b| Some(LowRank { a, b, scale: 0.6, dropout });
            let maps = [
                Projection { weight: x[2], bias: Some(x[3]), low_rank: branch(x[4], x[5]) },
                Projection { weight: x[6], bias: None, low_rank: branch(x[7], x[8]) },
                Projection::new(x[9]),
            ];
            ops::project(tape, x[0], &maps, Some(x[1]))
        }
    };
    let operands = |t, k, [n1, n2, n3]: [usize; 3], r| {
        let weight = |shape, key| Operand::weight(shape, key).times(0.3);
        vec![
            Operand::rows([t, k], 6),
            Operand::rows([t, n1 + n2 + n3], 5),
            weight([n1, k], 7),
            Operand::rows([1, n1], 8),
            weight([r, k], 9),
            weight([n1, r], 10),
            weight([n2, k], 11),
            weight([r, k], 12),
            weight([n2, r], 13),
            weight([n3, k], 14),
        ]
    };
    let dropout = Some(Dropout { probability: 0.2, key: 5 });
    cases.push(Case::new("linear", "joined", operands(7, 64, [32, 40, 8], 8), joined(None)));
    cases.push(Case::new("linear", "joined, dropout", operands(100, 256, [128, 64, 64], 16), joined(dropout)));
    cases
}

fn rotary() -> Vec<Case> {
    let case = |heads: [usize; 2], half: usize, t: usize, normed: bool| {
        let frequencies: Vec<f32> = (0..half).map(|i| 100f32.powf(-(i as f32) / half as f32)).collect();
        let table = Arc::new(RopeTable::new(&frequencies, 60, 1.0));
        let positions: Index = (0..t as u32).map(|i| i * 7 % 60).collect();
        let mut operands = vec![Operand::rows([t, (heads[0] + 2 * heads[1]) * 2 * half], 15)];
        if normed {
            operands.extend([16, 17].map(|key| Operand::rows([1, 2 * half], key)));
        }
        let name = format!("{heads:?} of {} rows {t}, normed {normed}", 2 * half);
        Case::new("rope", name, operands, move |tape, x| {
            let op = QkRope { table: table.clone(), positions: positions.clone(), heads, eps: 1e-5 };
            ops::qk_rope(tape, op, x[0], x.get(1).map(|q| [*q, x[2]]))
        })
    };
    let shapes = [([2, 1], 32), ([3, 3], 48), ([16, 8], 64), ([2, 1], 128)];
    shapes.into_iter().flat_map(|(heads, half)| [case(heads, half, 11, false), case(heads, half, 200, true)]).collect()
}

const WIDTHS: [usize; 4] = [64, 96, 128, 256];

fn attention_case(lengths: &[usize], heads: [usize; 2], d: usize, window: Option<usize>) -> Case {
    let [heads, kv_heads] = heads;
    let sequences = Sequences::from_lengths(lengths);
    let operands = vec![Operand::rows([sequences.tokens(), (heads + 2 * kv_heads) * d], 16).times(2.0)];
    let name = format!("{lengths:?} heads {heads}/{kv_heads} of {d} window {window:?}");
    Case::new("attention", name, operands, move |tape, x| {
        let scale = 1.0 / (d as f32).sqrt();
        ops::attention(tape, Attention { sequences: sequences.clone(), heads, kv_heads, scale, window }, x[0])
    })
}

fn attention() -> Vec<Case> {
    let mut cases = vec![];
    for d in WIDTHS {
        for heads in [[2, 2], [4, 2], [4, 1], [8, 1]] {
            cases.push(attention_case(&[1, 63, 64, 65, 200], heads, d, None));
        }
        for window in [1, 5, 64, 100] {
            cases.push(attention_case(&[35, 1, 180], [4, 2], d, Some(window)));
        }
    }
    cases
}

fn losses(shapes: &[[usize; 3]]) -> Vec<Case> {
    let head = |[t, vocab, h]: [usize; 3], key| vec![Operand::rows([t, h], key), Operand::weight([vocab, h], key + 1)];
    let weights = |t: usize| -> Vec<f32> {
        random(t, 30).iter().enumerate().map(|(i, w)| if i == 1 { 0.0 } else { w + 1.5 }).collect()
    };
    let targets = |t: usize, vocab: usize| -> Vec<u32> { (0..t).map(|i| (i * 17 % vocab) as u32).collect() };
    let mut cases = vec![];
    for &dims in shapes {
        let [t, vocab, _] = dims;
        let (y, w) = (targets(t, vocab), weights(t));
        let operands = head(dims, 20);
        cases.push(Case::loss("cross_entropy", format!("{dims:?}"), operands.clone(), move |tape, x| {
            ops::linear_cross_entropy(tape, [x[0], x[1]], &y, &w)
        }));
        let (y, w) = (targets(t, vocab), weights(t));
        let [sampled, advantages] = [random(t, 31).iter().map(|v| v - 6.0).collect::<Vec<_>>(), random(t, 32)];
        cases.push(Case::loss("policy_gradient", format!("{dims:?}"), operands.clone(), move |tape, x| {
            ops::linear_policy_gradient(tape, [x[0], x[1]], &y, [&sampled, &advantages], &w, 0.7)
        }));
        let y = targets(t, vocab);
        let log_prob = Case::new("log_prob", format!("{dims:?}"), operands, move |_, x| {
            let values = ops::linear_log_prob([x[0], x[1]], &y, 0.7)?;
            Tensor::new(Device::Cpu, values, [y.len(), 1])
        });
        cases.push(Case { differentiable: false, ..log_prob });
        for divergence in divergences(vocab) {
            for temperature in [1.0, 2.0] {
                let (y, w) = (targets(t, vocab), weights(t));
                let operands = [head(dims, 20), head([t, vocab, 40], 24)].concat();
                let name = format!("{dims:?} {divergence:?} temperature {temperature}");
                let case = Case::loss("distill", name, operands, move |tape, x| {
                    let distill = Distill { divergence, temperature };
                    ops::linear_distill(tape, [x[0], x[1]], [x[2], x[3]], &y, &w, &distill)
                });
                cases.push(Case { constants: vec![2, 3], ..case });
            }
        }
        cases.extend(teacher_rows::card_cases(dims, head(dims, 20), &targets(t, vocab), &weights(t)));
    }
    cases
}

#[test]
#[ignore = "needs a GPU"]
fn elementwise_kernels_equal_burn() {
    assert_equal_burn(elementwise());
}

#[test]
#[ignore = "needs a GPU"]
fn products_equal_burn() {
    assert_equal_burn(linear(&[[1, 64, 32], [5, 104, 72], [130, 256, 512], [600, 1024, 1024]]));
}

#[test]
#[ignore = "needs a GPU"]
fn rotary_kernels_equal_burn() {
    assert_equal_burn(rotary());
}

#[test]
#[ignore = "needs a GPU"]
fn attention_equals_burn() {
    assert_equal_burn(attention());
}

#[test]
#[ignore = "needs a GPU"]
fn losses_equal_burn() {
    assert_equal_burn(losses(&[[5, 1000, 16], [270, 5003, 24]]));
}

/// A few small cases of each slow kind: what `scripts/check/gpu` runs under the race checker, a thousand times slower.
#[test]
#[ignore = "needs a GPU"]
fn short_cases_equal_burn() {
    assert_equal_burn(linear(&[[5, 104, 72]]));
    assert_equal_burn(WIDTHS.iter().map(|&d| attention_case(&[3, 65], [2, 1], d, None)).collect());
    assert_equal_burn(losses(&[[5, 1000, 16]]));
}

#[track_caller]
fn assert_equal_burn(cases: Vec<Case>) {
    let mut failures = 0;
    for mut case in cases {
        for operand in &mut case.operands {
            operand.values.iter_mut().for_each(|v| *v = rounded(*v));
        }
        let burn: Ran = run(&case, Device::Reference, false);
        let gpu: Ran = run(&case, GPU, false);
        let mut worst = (distance(&gpu.output, &burn.output), "output".to_owned());
        let mut see = |name: String, d: f64| {
            if d.is_nan() || d > worst.0 {
                worst = (d, name);
            }
        };
        for (key, values) in &gpu.rows {
            see((*key).to_owned(), distance(values, &burn.rows[key]));
        }
        for (i, wanted) in variables(&case).into_iter().enumerate() {
            match (&gpu.grads[i], &burn.grads[i]) {
                (Some(g), Some(b)) if wanted => see(format!("gradient {i}"), distance(g, b)),
                (None, None) if !wanted => {}
                (g, b) => panic!("{}: gradient {i}: GPU {}, burn {}", case.name, g.is_some(), b.is_some()),
            }
        }
        let verdict = if worst.0 <= 1e-2 { "ok" } else { "FAIL" };
        failures += usize::from(verdict == "FAIL");
        println!("{verdict:<5} {:<80} {:.1e} {}", case.name, worst.0, worst.1);
    }
    assert_eq!(failures, 0, "kernels that differ from burn by more than 1e-2");
}

/// Every way of cutting sequences gives the rows of the packed batch.
#[test]
#[ignore = "needs a GPU"]
fn pages_equal_the_packed_batch() {
    assert_pages_equal_the_packed_batch(&[(4, 2, 64), (8, 1, 96), (16, 8, 128), (2, 2, 256)], 150);
}

#[test]
#[ignore = "needs a GPU"]
fn short_pages_equal_the_packed_batch() {
    assert_pages_equal_the_packed_batch(&[(2, 1, 64), (2, 1, 128)], 20);
}

fn assert_pages_equal_the_packed_batch(shapes: &[(usize, usize, usize)], length: usize) {
    for &(heads, kv_heads, d) in shapes {
        for window in [None, Some(20)] {
            let shape = KvShape { heads, kv_heads, head_dim: d };
            let width = (heads + 2 * kv_heads) * d;
            let values: Vec<f32> = random(length * width, 1).iter().map(|v| rounded(2.0 * v)).collect();
            let rows = |r: std::ops::Range<usize>| {
                Tensor::new(GPU, values[r.start * width..r.end * width].to_vec(), [r.len(), width]).expect("memory")
            };
            let scale = 1.0 / (d as f32).sqrt();
            let op = Attention { sequences: Sequences::from_lengths(&[length]), heads, kv_heads, scale, window };
            let packed = ops::attention(&mut Tape::off(), op, &rows(0..length)).expect("runs").to_vec();
            let pages: Vec<u32> = (0..length.div_ceil(PAGE_TOKENS) as u32).rev().collect();
            for chunk in [1, 7, 64, length] {
                let mut pool = KvPool::new(GPU, shape, 1, pages.len()).expect("memory");
                let mut out = vec![];
                for start in (0..length).step_by(chunk) {
                    let end = (start + chunk).min(length);
                    let used = &pages[..end.div_ceil(PAGE_TOKENS)];
                    let batch = PagedBatch::new(&[PagedRows { rows: 0..end - start, position: start, pages: used }]);
                    let qkv = rows(start..end);
                    write(&mut pool, shape, 0, &qkv, &batch).expect("runs");
                    out.extend(pool.attend(0, &qkv, &batch, scale, window).expect("runs").to_vec());
                }
                let d = distance(&out, &packed);
                println!("paged {heads}/{kv_heads} of {} window {window:?} chunk {chunk}: {d:.1e}", shape.head_dim);
                assert!(d <= 1e-2, "chunk {chunk}");
                assert!(chunk == 1 || out == packed, "chunk {chunk}: other bits");
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn adamw_follows_the_host() {
    let adamw = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
    let shape = [70, 40];
    let start: Vec<f32> = random(2800, 1).iter().map(|&v| rounded(v)).collect();
    let mut states = [Device::Cpu, GPU].map(|device| {
        let w = Tensor::weight(device, start.clone(), shape).expect("memory");
        let moments = Moments::zeros(&w).expect("memory");
        (w, moments)
    });
    for number in 1..=5 {
        let step = Step { lr: 3e-3, number, grad_scale: 0.4 };
        let mut norms = vec![];
        for (w, moments) in &mut states {
            let values: Vec<f32> = random(2800, 10 + number).iter().map(|&v| rounded(v)).collect();
            let mut grad = moments.m.copied().expect("memory");
            grad.set(values).expect("the values fill the shape");
            norms.push(global_norm(&[&grad]).expect("runs"));
            adamw.update(w, &grad, moments, step).expect("runs");
        }
        assert!((norms[0] - norms[1]).abs() < 1e-5 * norms[0], "{norms:?}");
    }
    let [(host, _), (gpu, moments)] = &states;
    assert!(distance(&moments.master(gpu).to_vec(), &host.to_vec()) < 1e-6);
    assert!(distance(&gpu.to_vec(), &host.to_vec()) < 4e-3);
}

#[test]
#[ignore = "needs a GPU"]
fn draws_are_of_the_right_distribution() {
    let (vocab, rows) = (5003, 4);
    let logits: Vec<f32> = random(vocab * rows, 3).iter().map(|v| 4.0 * v).collect();
    let hidden: Vec<f32> = (0..rows * 8).map(|i| if i % 8 == i / 8 { 1.0 } else { 0.0 }).collect();
    let head: Vec<f32> =
        (0..vocab * 8).map(|i| if i % 8 < rows { rounded(logits[(i % 8) * vocab + i / 8]) } else { 0.0 }).collect();
    let z = ops::logits([
        &Tensor::new(GPU, hidden, [rows, 8]).expect("memory"),
        &Tensor::weight(GPU, head, [vocab, 8]).expect("memory"),
    ])
    .expect("runs");
    let values = z.to_vec();
    let samples = SampleBuffer::new(0, rows).expect("memory");
    for (temperature, top_k, top_p, min_p) in
        [(0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (0.7, 50, 0.9, 0.0), (1.3, 0, 1.0, 0.05)]
    {
        let draws: Vec<SampleArgs<'_>> = (0..rows as u64)
            .map(|row| SampleParams { temperature, top_k, top_p, min_p, seed: 7, request: row, position: 11 }.into())
            .collect();
        let drawn = samples.sample(&z, &draws).and_then(PendingSamples::wait).expect("runs");
        let fed: Vec<Token> = [Token::Known(3)].into_iter().chain((0..rows as u32).map(Token::Sampled)).collect();
        let fed = samples.feed(&fed).expect("runs");
        let mut tokens = vec![3];
        for (row, drawn) in drawn.into_iter().enumerate() {
            let SampleResult::Token { token, logprob, .. } = drawn else { panic!("no token") };
            tokens.push(token);
            let z = &values[row * vocab..][..vocab];
            let max = z.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = z.iter().map(|&v| f64::from(v - max).exp()).sum();
            let want = f64::from(z[token as usize] - max) - sum.ln();
            assert!((f64::from(logprob) - want).abs() < 1e-4, "log-probability {logprob}, not {want}");
            if temperature == 0.0 {
                assert_eq!(z[token as usize], max);
            } else if top_k == 0 && min_p == 0.0 {
                let weight = |v: f32| f64::from((v - max) / temperature).exp();
                let target = uniform(7, row as u64, 11) * z.iter().map(|&v| weight(v)).sum::<f64>();
                let before: f64 = z[..token as usize].iter().map(|&v| weight(v)).sum();
                let after = before + weight(z[token as usize]);
                let slack = 1e-3 * weight(max);
                assert!(before <= target + slack && target <= after + slack, "row {row}: {before} {target} {after}");
            }
        }
        // The next step finds the tokens in the buffer.
        let names = Tensor::weight(GPU, (0..vocab * 8).map(|i| (i / 8) as f32).collect(), [vocab, 8]).expect("memory");
        let found = ops::embedding(&mut Tape::off(), &names, &fed).expect("runs").to_vec();
        let want: Vec<f32> = tokens.iter().flat_map(|&token| [rounded(token as f32); 8]).collect();
        assert_eq!(found, want);
    }
}
