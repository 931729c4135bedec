//! The kernels of `Device::Cpu`, a line each.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use autograd::kv::{KvPool, KvShape, PAGE_TOKENS, PagedBatch, PagedRows};
use autograd::ops::{self, Attention, Distill, Divergence, Dropout, LowRank, Projection, QkRope, RopeTable, Sequences};
use autograd::rng::uniform;
use autograd::{Device, Index, Result, Tape, Tensor};

/// What a kernel's time is divided into.
enum Work {
    /// Floating-point operations.
    Flops(f64),
    /// Bytes that must be read or written.
    Bytes(f64),
}

struct Bench {
    filter: String,
    limit: Duration,
}

impl Bench {
    /// Prints the best time of `run`, which returns how long its timed part took.
    fn line(&self, name: &str, work: Work, mut run: impl FnMut() -> Duration) {
        if !name.contains(&self.filter) {
            return;
        }
        let start = Instant::now();
        let (mut best, mut runs) = (Duration::MAX, 0);
        while runs < 3 || start.elapsed() < self.limit {
            best = best.min(run());
            runs += 1;
        }
        let rate = |amount: f64| amount / best.as_secs_f64() / 1e9;
        let (rate, unit) = match work {
            Work::Flops(f) => (rate(f), "GFLOP/s"),
            Work::Bytes(b) => (rate(b), "GB/s"),
        };
        println!("{name:<44} {:>10.1} us {rate:>8.1} {unit}", best.as_secs_f64() * 1e6);
    }

    /// A line for code whose whole time counts.
    fn whole<T>(&self, name: &str, work: Work, mut run: impl FnMut() -> T) {
        self.line(name, work, || {
            let start = Instant::now();
            black_box(run());
            start.elapsed()
        });
    }

    /// A line for the backward pass alone of `forward`, with gradients of `watched`.
    fn backward(&self, name: &str, work: Work, watched: &[&Tensor], forward: impl Fn(&mut Tape) -> Result<Tensor>) {
        self.line(name, work, || {
            let mut tape = Tape::recording();
            watched.iter().for_each(|t| tape.require_grad(t));
            let y = forward(&mut tape).expect("shapes fit");
            let seed = y.clone();
            let start = Instant::now();
            black_box(tape.backward(&y, seed).expect("watched"));
            start.elapsed()
        });
    }
}

fn values([rows, cols]: [usize; 2]) -> Vec<f32> {
    (0..rows * cols).map(|i| uniform(rows as u64, cols as u64, i as u64) as f32 - 0.5).collect()
}

fn rows(shape: [usize; 2]) -> Tensor {
    Tensor::new(Device::Cpu, values(shape), shape).expect("the values fill the shape")
}

fn weight(shape: [usize; 2]) -> Tensor {
    Tensor::weight(Device::Cpu, values(shape), shape).expect("the values fill the shape")
}

fn product([t, n, k]: [usize; 3]) -> f64 {
    2.0 * t as f64 * n as f64 * k as f64
}

fn linear(bench: &Bench) {
    for [n, k] in [[576, 576], [1536, 576], [576, 1536], [49152, 576], [16, 576], [576, 16]] {
        let w = weight([n, k]);
        for t in [1, 4, 8, 16, 64, 512] {
            let x = rows([t, k]);
            let work = if t <= 16 { Work::Bytes(4.0 * (n * k) as f64) } else { Work::Flops(product([t, n, k])) };
            let name = format!("linear [{t}, {n}, {k}]");
            bench.whole(&name, work, || ops::linear(&mut Tape::off(), &x, &w, None));
        }
        if n < 49152 {
            let x = rows([512, k]);
            let forward = |tape: &mut Tape| ops::linear(tape, &x, &w, None);
            let flops = || Work::Flops(product([512, n, k]));
            bench.backward(&format!("input gradient [512, {n}, {k}]"), flops(), &[&x], forward);
            bench.backward(&format!("weight gradient [512, {n}, {k}]"), flops(), &[&w], forward);
        }
    }
}

fn lora(bench: &Bench) {
    let (t, n, k, r) = (512, 1536, 576, 16);
    let (x, w, a, b) = (rows([t, k]), weight([n, k]), weight([r, k]), weight([n, r]));
    let flops = product([t, n, k]) + product([t, r, n + k]);
    for (name, dropout) in [("", None), (", dropout", Some(Dropout { probability: 0.05, key: 1 }))] {
        let low_rank = Some(LowRank { a: &a, b: &b, scale: 2.0, dropout });
        let maps = [Projection { low_rank, ..Projection::new(&w) }];
        let forward = |tape: &mut Tape| ops::project(tape, &x, &maps, None);
        bench.whole(&format!("lora [{t}, {n}, {k}] r {r}{name}"), Work::Flops(flops), || forward(&mut Tape::off()));
        let work = Work::Flops(flops + product([t, r, n + k]));
        bench.backward(&format!("lora backward [{t}, {n}, {k}] r {r}{name}"), work, &[&x, &a, &b], forward);
    }
}

fn attention(bench: &Bench) {
    let (heads, kv_heads, d) = (9, 3, 64);
    for lengths in [vec![512], vec![128; 4], vec![2048]] {
        let sequences = Sequences::from_lengths(&lengths);
        let t = sequences.tokens();
        let qkv = rows([t, (heads + 2 * kv_heads) * d]);
        let forward = |tape: &mut Tape| {
            let op = Attention { sequences: sequences.clone(), heads, kv_heads, scale: 0.125, window: None };
            ops::attention(tape, op, &qkv)
        };
        let pairs: usize = lengths.iter().map(|l| l * (l + 1) / 2).sum();
        let product = 2.0 * (pairs * heads * d) as f64;
        let name = format!("{} x {}", lengths.len(), lengths[0]);
        bench.whole(&format!("attention {name}"), Work::Flops(2.0 * product), || forward(&mut Tape::off()));
        bench.backward(&format!("attention backward {name}"), Work::Flops(5.0 * product), &[&qkv], forward);
    }
    let (sequences, length) = (16, 256);
    let pages = length / PAGE_TOKENS;
    let shape = KvShape { heads, kv_heads, head_dim: d };
    let pool = KvPool::new(Device::Cpu, shape, 1, sequences * pages).expect("memory");
    let tables: Vec<Vec<u32>> =
        (0..sequences).map(|s| (s * pages..(s + 1) * pages).map(|p| p as u32).collect()).collect();
    let spans: Vec<PagedRows<'_>> =
        tables.iter().enumerate().map(|(s, pages)| PagedRows { rows: s..s + 1, position: length - 1, pages }).collect();
    let batch = PagedBatch::new(&spans);
    let qkv = rows([sequences, (heads + 2 * kv_heads) * d]);
    let bytes = (sequences * length * 2 * kv_heads * d * 4) as f64;
    bench.whole("paged decode, 16 x 256", Work::Bytes(bytes), || pool.attend(0, &qkv, &batch, 0.125, None));
}

fn elementwise(bench: &Bench) {
    for t in [16, 512] {
        let gate_up = rows([t, 3072]);
        let bytes = |tensors: f64, width: usize| Work::Bytes(tensors * (t * width * 4) as f64);
        let forward = |tape: &mut Tape| ops::swiglu(tape, &gate_up);
        bench.whole(&format!("swiglu [{t}, 1536]"), bytes(3.0, 1536), || forward(&mut Tape::off()));
        bench.backward(&format!("swiglu backward [{t}, 1536]"), bytes(5.0, 1536), &[&gate_up], forward);
        let (x, w) = (rows([t, 576]), rows([1, 576]));
        let forward = |tape: &mut Tape| ops::rms_norm(tape, &x, &w, 1e-5);
        bench.whole(&format!("rms_norm [{t}, 576]"), bytes(2.0, 576), || forward(&mut Tape::off()));
        bench.backward(&format!("rms_norm backward [{t}, 576]"), bytes(3.0, 576), &[&x, &w], forward);
        let frequencies: Vec<f32> = (0..32).map(|i| 1e4f32.powf(-(i as f32) / 32.0)).collect();
        let table = Arc::new(RopeTable::new(&frequencies, 512, 1.0));
        let positions: Index = (0..t as u32).collect();
        bench.whole(&format!("rope [{t}, 576]"), bytes(2.0, 576), || {
            let op = QkRope { table: table.clone(), positions: positions.clone(), heads: [9, 0], eps: 1e-5 };
            ops::qk_rope(&mut Tape::off(), op, &x, None)
        });
        bench.whole(&format!("add [{t}, 576]"), bytes(3.0, 576), || ops::add(&mut Tape::off(), &x, &x));
    }
}

/// Losses over a vocabulary of 49152, with the products of the head: small ones at width 16, a model's at 576.
fn losses(bench: &Bench, h: usize) {
    let (t, vocab) = (256, 49152);
    let (hidden, head, weights) = (rows([t, h]), weight([vocab, h]), vec![1.0; t]);
    let bytes = |models: f64| Work::Bytes(models * (t * vocab * 4) as f64);
    let divergences = [
        ("forward", Divergence::Jsd { beta: 0.0 }),
        ("jsd", Divergence::Jsd { beta: 0.5 }),
        ("top 32", Divergence::TopK { k: 32, beta: 0.5 }),
    ];
    for (name, divergence) in divergences {
        let distill = Distill { divergence, temperature: 1.0 };
        bench.whole(&format!("distill {name} [{t}, {vocab}, {h}]"), bytes(2.0), || {
            let mut tape = Tape::recording();
            tape.require_grad(&hidden);
            ops::linear_distill(&mut tape, [&hidden, &head], [&hidden, &head], &vec![0; t], &weights, &distill)
        });
    }
    let targets: Vec<u32> = (0..t as u32).collect();
    bench.whole(&format!("log-prob [{t}, {vocab}, {h}]"), bytes(1.0), || {
        ops::linear_log_prob([&hidden, &head], &targets, 1.0)
    });
}

/// Prints the lines whose name contains `filter`, each measured for `limit`.
pub(crate) fn run(filter: String, limit: Duration) {
    let bench = Bench { filter, limit };
    linear(&bench);
    lora(&bench);
    attention(&bench);
    elementwise(&bench);
    losses(&bench, 16);
    losses(&bench, 576);
}
