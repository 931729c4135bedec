//! Deterministic mode of a GPU: bits that do not depend on the batch. `scripts/check/gpu` runs these where there is a
//! GPU; they are ignored elsewhere.

#![allow(clippy::print_stdout)]

use std::ops::Range;
use std::sync::Arc;

use autograd::cuda::{Gpu, Mode};
use autograd::kv::{KvPool, KvShape, PAGE_TOKENS, PagedBatch, PagedRows};
use autograd::ops::{
    self, Attention, Distill, Divergence, LowRank, PendingSamples, Projection, QkRope, RopeTable, SampleArgs,
    SampleBuffer, SampleParams, SampleResult, Sequences,
};
use autograd::{Device, Index, Tape, Tensor};

use super::support::random;

const GPU: Device = Device::Cuda(0);

fn deterministic() -> Mode {
    Gpu::get(0).and_then(|gpu| gpu.hold_mode(true)).expect("a GPU whose mode nobody holds")
}

/// How often `kernel` ran.
fn launches(kernel: &str) -> u64 {
    let launches = Gpu::get(0).expect("a GPU").launches();
    launches.iter().find(|(name, _)| *name == kernel).map_or(0, |(_, count)| *count)
}

/// Values in `[-scale, scale)`, faster to make than [`random`].
fn noise(len: usize, key: u32, scale: f32) -> Vec<f32> {
    let mut state = key.wrapping_mul(0x9E37_79B9) | 1;
    let next = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        scale * (state as i32 as f32 / 2_147_483_648.0)
    });
    next.take(len).collect()
}

fn tensor(values: &[f32], width: usize) -> Tensor {
    Tensor::new(GPU, values.to_vec(), [values.len() / width, width]).expect("memory")
}

fn weight(shape: [usize; 2], key: u32) -> Tensor {
    Tensor::weight(GPU, noise(shape[0] * shape[1], key, 0.05), shape).expect("memory")
}

fn assert_same_bits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    assert!(got.iter().all(|v| v.is_finite()), "{what}: not finite");
    let different = got.iter().zip(want).filter(|(g, w)| g.to_bits() != w.to_bits()).count();
    assert_eq!(different, 0, "{what}: {different} of {} values differ", got.len());
}

/// `f` of any rows of x `[rows, width]` gives what it gives for them among all.
fn rows_stand_alone(what: &str, rows: usize, width: usize, f: &dyn Fn(&Tensor, Range<usize>) -> Tensor) {
    let x = noise(rows * width, 1, 1.0);
    let run = |r: Range<usize>| f(&tensor(&x[r.start * width..r.end * width], width), r).to_vec();
    let all = run(0..rows);
    let columns = all.len() / rows;
    let counts = [1, 2, 7, 8, 9, 64, 255, 2048].into_iter().filter(|&m| m < rows);
    for part in counts.map(|m| 0..m).chain([rows - 1..rows, rows / 2..rows / 2 + 3]) {
        let want = &all[part.start * columns..part.end * columns];
        assert_same_bits(&run(part.clone()), want, &format!("{what}, rows {part:?} of {rows}"));
    }
    println!("{what:<40} {rows} rows, alone and in parts: equal bits");
}

/// The linear maps of a model's layer with their branches, alone and joined, and the head.
fn maps_of(name: &str, [hidden, q, kv, inner]: [usize; 4], rank: usize, rows: usize) {
    let maps = |widths: &[usize], k: usize, bias: bool| -> Vec<[Option<Tensor>; 4]> {
        let one = |(i, &n): (usize, &usize)| {
            let key = 10 * i as u32;
            let bias = bias.then(|| tensor(&noise(n, key + 4, 1.0), n));
            [Some(weight([n, k], key + 1)), bias, Some(weight([rank, k], key + 2)), Some(weight([n, rank], key + 3))]
        };
        widths.iter().enumerate().map(one).collect()
    };
    let check = |part: &str, k: usize, widths: &[usize], residual: bool, bias: bool| {
        let tensors = maps(widths, k, bias);
        let width: usize = widths.iter().sum();
        let residuals = noise(if residual { rows * width } else { 0 }, 5, 1.0);
        rows_stand_alone(&format!("{name} {part}, rank {rank}"), rows, k, &|x, r| {
            let residual = residual.then(|| tensor(&residuals[r.start * width..r.end * width], width));
            let projections: Vec<Projection<'_>> = tensors
                .iter()
                .map(|[w, bias, a, b]| {
                    let (w, a, b) = (w.as_ref().expect("set"), a.as_ref().expect("set"), b.as_ref().expect("set"));
                    let low_rank = Some(LowRank { a, b, scale: 0.7, dropout: None });
                    Projection { weight: w, bias: bias.as_ref(), low_rank }
                })
                .collect();
            ops::project(&mut Tape::off(), x, &projections, residual.as_ref()).expect("runs")
        });
    };
    check("q, k, v", hidden, &[q, kv, kv], false, false);
    check("q, k, v with bias", hidden, &[q, kv, kv], false, true);
    check("o", q, &[hidden], true, false);
    check("gate, up", hidden, &[inner, inner], false, false);
    check("down", inner, &[hidden], true, false);
}

#[test]
#[ignore = "needs a GPU"]
fn a_row_of_a_product_does_not_depend_on_the_others() {
    let _mode = deterministic();
    let (before, by_kernel) = (launches("matmul"), launches("matmul_batch_invariant_many"));
    maps_of("0.6B", [1024, 2048, 1024, 3072], 32, 6144);
    maps_of("1.7B", [2048, 2048, 1024, 6144], 8, 2100);
    maps_of("4B", [2560, 4096, 1024, 9728], 64, 2100);
    maps_of("135M", [576, 576, 192, 1536], 16, 2100);
    for (hidden, vocab, rows) in [(1024, 151_936, 300), (2560, 32_000, 2100), (576, 49_152, 300), (64, 1003, 300)] {
        let head = weight([vocab, hidden], 9);
        rows_stand_alone(&format!("head {vocab} of {hidden}"), rows, hidden, &|x, _| {
            ops::logits([x, &head]).expect("runs")
        });
    }
    assert_eq!(launches("matmul"), before, "products in an order of cuBLASLt's choice");
    assert!(launches("matmul_batch_invariant") > 0, "no product by cuBLASLt");
    println!("many rows by the kernel, proofs included: {}", launches("matmul_batch_invariant_many") - by_kernel);
}

/// Decoding one token at a time gives the rows of the packed batch.
#[test]
#[ignore = "needs a GPU"]
fn decoding_attends_as_the_packed_batch() {
    let _mode = deterministic();
    for (heads, kv_heads, d) in [(4, 2, 64), (9, 3, 64), (8, 1, 96), (16, 8, 128), (24, 1, 128), (2, 2, 256)] {
        for window in [None, Some(20), Some(100)] {
            let (length, scale, width) = (331, 1.0 / (d as f32).sqrt(), (heads + 2 * kv_heads) * d);
            let values = noise(length * width, 1, 2.0);
            let rows = |r: Range<usize>| tensor(&values[r.start * width..r.end * width], width);
            let table = Arc::new(RopeTable::new(&vec![0.1; d / 2], length, 1.0));
            let rope = |positions: &Index| QkRope {
                table: table.clone(),
                positions: positions.clone(),
                heads: [heads, kv_heads],
                eps: 1e-5,
            };
            let sequences = Sequences::from_lengths(&[length]);
            let (all, tape) = (rows(0..length), &mut Tape::off());
            let rotated = ops::qk_rope(tape, rope(sequences.positions()), &all, None).expect("runs");
            let op = Attention { sequences, heads, kv_heads, scale, window };
            let packed = ops::attention(tape, op, &rotated).expect("runs").to_vec();
            let pages: Vec<u32> = (0..length.div_ceil(PAGE_TOKENS) as u32).rev().collect();
            let shape = KvShape { heads, kv_heads, head_dim: d };
            for chunk in [1, 7, 64, 200] {
                let mut pool = KvPool::new(GPU, shape, 1, pages.len()).expect("memory");
                let mut out = vec![];
                for start in (0..length).step_by(chunk) {
                    let end = (start + chunk).min(length);
                    let used = &pages[..end.div_ceil(PAGE_TOKENS)];
                    let batch = PagedBatch::new(&[PagedRows { rows: 0..end - start, position: start, pages: used }]);
                    let qkv = rows(start..end);
                    let qkv = pool.write(0, rope(batch.positions()), &qkv, None, &batch).expect("runs");
                    out.extend(pool.attend(0, &qkv, &batch, scale, window).expect("runs").to_vec());
                }
                assert_same_bits(
                    &out,
                    &packed,
                    &format!("{heads}/{kv_heads} of {d}, window {window:?}, chunk {chunk}"),
                );
            }
            println!("attention {heads}/{kv_heads} of {d}, window {window:?}: equal bits");
        }
    }
    assert!(launches("attention_single_d128") > 0, "decoded by other kernels");
}

/// The sampler's log-probabilities are those of every loss.
#[test]
#[ignore = "needs a GPU"]
fn sampler_and_losses_agree_on_log_probabilities() {
    let _mode = deterministic();
    for (rows, vocab, width) in [(1, 1003, 16), (5, 49_152, 64), (70, 151_936, 64)] {
        let hidden = tensor(&noise(rows * width, 3, 4.0), width);
        let head = Tensor::weight(GPU, noise(vocab * width, 4, 0.5), [vocab, width]).expect("memory");
        let samples = SampleBuffer::new(0, rows).expect("memory");
        let teacher = tensor(&noise(rows * width, 5, 4.0), width);
        for temperature in [0.0, 0.7, 1.0, 1.6] {
            let (top_k, top_p, min_p, seed, position) = (0, 1.0, 0.0, 7, 11);
            let draw = |row| SampleParams { temperature, top_k, top_p, min_p, seed, request: row as u64, position };
            let draws: Vec<SampleArgs<'_>> = (0..rows).map(|row| draw(row).into()).collect();
            let logits = ops::logits([&hidden, &head]).expect("runs");
            let drawn = samples.sample(&logits, &draws).and_then(PendingSamples::wait).expect("runs");
            let (mut tokens, mut plain, mut sampling) = (vec![], vec![], vec![]);
            for d in drawn {
                let SampleResult::Token { token, logprob, sampling_logprob, .. } = d else { panic!("no token") };
                tokens.push(token);
                plain.push(logprob);
                sampling.push(sampling_logprob);
            }
            let t = if temperature == 0.0 { 1.0 } else { f64::from(temperature) };
            let what = |loss: &str| format!("{loss} of {rows} rows of {vocab} at {temperature}");
            let (inputs, weights) = ([&hidden, &head], vec![1.0; rows]);
            assert_same_bits(&ops::linear_log_prob(inputs, &tokens, t).expect("runs"), &sampling, &what("log_prob"));
            assert_same_bits(&ops::linear_log_prob(inputs, &tokens, 1.0).expect("runs"), &plain, &what("log_prob, 1"));
            let mut tape = Tape::recording();
            tape.require_grad(&hidden);
            let advantages = random(rows, 8);
            let (_, values) =
                ops::linear_policy_gradient(&mut tape, inputs, &tokens, [&sampling, &advantages], &weights, t)
                    .expect("runs");
            assert_same_bits(&values["logprob"], &sampling, &what("policy gradient"));
            let (_, values) = ops::linear_cross_entropy(&mut tape, inputs, &tokens, &weights).expect("runs");
            assert_same_bits(&values["logprob"], &plain, &what("cross-entropy"));
            for divergence in [Divergence::Jsd { beta: 0.5 }, Divergence::TopK { k: 20, beta: 0.0 }] {
                let distill = Distill { divergence, temperature: t };
                let (_, values) =
                    ops::linear_distill(&mut tape, inputs, [&teacher, &head], &tokens, &weights, &distill)
                        .expect("runs");
                assert_same_bits(&values["plain_logprob"], &plain, &what("divergence"));
            }
        }
        println!("log-probabilities of {rows} rows of {vocab}: equal bits");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_held_mode_is_not_changed() {
    let mode = deterministic();
    let gpu = Gpu::get(0).expect("a GPU");
    let refused = gpu.hold_mode(false).err().expect("refused").to_string();
    assert!(refused.contains("deterministic mode is on"), "{refused}");
    drop(mode);
    drop(gpu.hold_mode(false).expect("nobody holds a mode"));
    assert!(!gpu.is_deterministic());
}
