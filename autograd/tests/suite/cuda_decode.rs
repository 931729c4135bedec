//! What a decode step runs on a GPU: products of few rows with what stands around them, rows that go to pages, and kernels
//! that overlap in a graph. Each against burn or against the ops one after another.

#![allow(clippy::print_stdout)]

use std::sync::Arc;

use autograd::cuda::{Gpu, GraphMemory};
use autograd::kv::{KvPool, KvShape, PAGE_TOKENS, PagedBatch, PagedRows};
use autograd::ops::{self, Attention, Epilogue, LowRank, Projection, QkRope, RopeTable, Sequences};
use autograd::{Device, Result, Tape, Tensor};

use super::cuda::{GPU, distance, rounded};
use super::support::{Operand, random, rope};

/// Values that bf16 holds, on both devices: row vectors and activations are rows, the others weights.
fn pair(mut operand: Operand) -> [Tensor; 2] {
    operand.values.iter_mut().for_each(|v| *v = rounded(*v));
    [Device::Reference, GPU].map(|device| operand.on(device))
}

/// Leaves NaN where the next tensors of this many values will lie.
fn poison(len: usize) {
    let nan = |_| Tensor::new(GPU, vec![f32::NAN; len], [1, len]).expect("memory");
    drop((0..8).map(nan).collect::<Vec<_>>());
}

/// How often a kernel for few rows ran.
fn launches() -> u64 {
    let counts = Gpu::get(0).expect("a GPU").launches();
    counts.iter().filter(|(name, _)| name.starts_with("skinny_gemm_")).map(|(_, count)| count).sum()
}

/// Tensors of maps of one input of `k` values.
struct Maps {
    weights: Vec<[Tensor; 2]>,
    biases: Vec<[Tensor; 2]>,
    branches: Vec<[[Tensor; 2]; 2]>,
    norm: [Tensor; 2],
}

impl Maps {
    fn new(widths: &[usize], k: usize, rank: usize) -> Self {
        let size = 1.0 / (k as f32).sqrt();
        let weight = |shape, key, factor| pair(Operand::weight(shape, key).times(factor));
        let mut maps = Self {
            weights: (0u64..).zip(widths).map(|(i, &n)| weight([n, k], 10 + i, size)).collect(),
            biases: (0u64..).zip(widths).map(|(i, &n)| pair(Operand::rows([1, n], 20 + i))).collect(),
            branches: (0u64..)
                .zip(widths)
                .map(|(i, &n)| [weight([rank, k], 30 + i, size), weight([n, rank], 40 + i, 0.5)])
                .collect(),
            norm: pair(Operand::rows([1, k], 50)),
        };
        Tensor::join(&mut maps.weights.iter_mut().map(|w| &mut w[1]).collect::<Vec<_>>()).expect("memory");
        Tensor::join(&mut maps.biases.iter_mut().map(|b| &mut b[1]).collect::<Vec<_>>()).expect("memory");
        Tensor::join(&mut maps.branches.iter_mut().map(|[a, _]| &mut a[1]).collect::<Vec<_>>()).expect("memory");
        maps
    }

    fn run(&self, tape: &mut Tape, x: &Tensor, ways: Ways, residual: Option<&Tensor>) -> Result<Tensor> {
        let on = usize::from(x.device() == GPU);
        let map = |i: usize| {
            let [a, b] = &self.branches[i];
            Projection {
                weight: &self.weights[i][on],
                bias: ways.bias.then_some(&self.biases[i][on]),
                low_rank: ways.branches.then_some(LowRank { a: &a[on], b: &b[on], scale: 0.7, dropout: None }),
            }
        };
        let maps: Vec<_> = (0..self.weights.len()).map(map).collect();
        let norm = ways.norm.then_some((&self.norm[on], 1e-5));
        ops::project_within(tape, x, &maps, Epilogue { norm, residual, swiglu: ways.swiglu })
    }
}

/// What stands around the maps.
#[derive(Debug, Clone, Copy, Default)]
struct Ways {
    norm: bool,
    bias: bool,
    branches: bool,
    residual: bool,
    swiglu: bool,
}

fn all_ways() -> Vec<Ways> {
    let flag = |bits: u32, i: u32| bits >> i & 1 == 1;
    let ways = (0..32).map(|b| Ways {
        norm: flag(b, 0),
        bias: flag(b, 1),
        branches: flag(b, 2),
        residual: flag(b, 3),
        swiglu: flag(b, 4),
    });
    ways.collect()
}

/// Widths of maps side by side, and of their input: models' and odd ones, for every number of columns of a block.
const SHAPES: [(&[usize], usize); 8] = [
    (&[2048, 1024, 1024], 1024),
    (&[1024], 3072),
    (&[3072, 3072], 1024),
    (&[40, 24, 16], 72),
    (&[104, 104], 4000),
    (&[8192], 264),
    (&[2560], 9728),
    (&[9728, 9728], 2560),
];

#[test]
#[ignore = "needs a GPU"]
fn skinny_gemm_equal_burn() {
    let mut worst = 0.0f64;
    for (widths, k) in SHAPES {
        let maps = Maps::new(widths, k, 16);
        let width: usize = widths.iter().sum();
        for t in [1, 3, 8, 9, 40] {
            let x = pair(Operand::rows([t, k], 60 + t as u64).times(3.0));
            let residual = pair(Operand::rows([t, width], 61));
            for ways in all_ways() {
                let residual = |on: usize| ways.residual.then_some(&residual[on]);
                poison(t * width);
                let before = launches();
                let y = maps.run(&mut Tape::off(), &x[1], ways, residual(1)).expect("runs");
                let after = launches();
                let want = maps.run(&mut Tape::off(), &x[0], ways, residual(0)).expect("runs");
                let d = distance(&y.to_vec(), &want.to_vec());
                worst = worst.max(d);
                assert!(d <= 1e-2, "{widths:?} of {k}, {t} rows, {ways:?}: {d:.1e}");
                assert_eq!(after > before, t <= 8, "{widths:?} of {k}, {t} rows, {ways:?}: another kernel ran");
            }
        }
    }
    println!("largest distance {worst:.1e}");
}

/// A tape that records gets the ops one after another.
#[test]
#[ignore = "needs a GPU"]
fn skinny_gemm_equal_the_recorded_ops() {
    let (widths, k) = SHAPES[2];
    let maps = Maps::new(widths, k, 16);
    let x = &pair(Operand::rows([7, k], 7))[1];
    for ways in all_ways().into_iter().filter(|w| !w.residual) {
        let mut tape = Tape::recording();
        tape.require_grad(x);
        let recorded = maps.run(&mut tape, x, ways, None).expect("runs").to_vec();
        let fused = maps.run(&mut Tape::off(), x, ways, None).expect("runs").to_vec();
        let d = distance(&fused, &recorded);
        assert!(d <= 1e-2, "{ways:?}: {d:.1e}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_row_does_not_depend_on_its_neighbours() {
    for (widths, k) in SHAPES {
        let maps = Maps::new(widths, k, 16);
        let values: Vec<f32> = random(8 * k, 9).iter().map(|v| rounded(*v)).collect();
        let rows = |r: std::ops::Range<usize>| {
            Tensor::new(GPU, values[r.start * k..r.end * k].to_vec(), [r.len(), k]).expect("memory")
        };
        for ways in all_ways().into_iter().filter(|w| !w.residual) {
            let run = |r| maps.run(&mut Tape::off(), &rows(r), ways, None).expect("runs").to_vec();
            let whole = run(0..8);
            let width = whole.len() / 8;
            for part in [0..1, 7..8, 2..5, 1..8] {
                assert!(run(part.clone()) == whole[part.start * width..part.end * width], "{k} {ways:?} rows {part:?}");
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn rows_on_their_way_to_pages_are_normed_and_rotated() {
    for (heads, kv_heads, d) in [(4, 2, 64), (8, 1, 96), (16, 8, 128), (2, 2, 256)] {
        let shape = KvShape { heads, kv_heads, head_dim: d };
        let (length, width) = (150usize, (heads + 2 * kv_heads) * d);
        let pages: Vec<u32> = (0..length.div_ceil(PAGE_TOKENS) as u32).rev().collect();
        let batch = PagedBatch::new(&[PagedRows { rows: 0..length, position: 0, pages: &pages }]);
        let qkv = &pair(Operand::rows([length, width], 1).times(2.0))[1];
        let norms = [2, 3].map(|key| pair(Operand::rows([1, d], key))[1].clone());
        for norms in [None, Some([&norms[0], &norms[1]])] {
            let mut pool = KvPool::new(GPU, shape, 1, pages.len()).expect("memory");
            poison(length * width);
            let rotated = pool.write(0, rope(shape, &batch, 0.1), qkv, norms, &batch).expect("runs");
            let want = ops::qk_rope(&mut Tape::off(), rope(shape, &batch, 0.1), qkv, norms).expect("runs");
            assert_eq!(rotated.to_vec(), want.to_vec());
            let scale = 1.0 / (d as f32).sqrt();
            let got = pool.attend(0, &rotated, &batch, scale, None).expect("runs").to_vec();
            let op = Attention { sequences: Sequences::from_lengths(&[length]), heads, kv_heads, scale, window: None };
            assert_eq!(got, ops::attention(&mut Tape::off(), op, &want).expect("runs").to_vec());
        }
    }
}

/// A decoder layer of Qwen3-0.6B's shape over pages.
struct Layer {
    qkv: Maps,
    o: Maps,
    gate_up: Maps,
    down: Maps,
    table: Arc<RopeTable>,
}

const SHAPE: KvShape = KvShape { heads: 16, kv_heads: 8, head_dim: 128 };

impl Layer {
    fn new() -> Self {
        Self {
            qkv: Maps::new(&[2048, 1024, 1024], 1024, 32),
            o: Maps::new(&[1024], 2048, 32),
            gate_up: Maps::new(&[3072, 3072], 1024, 32),
            down: Maps::new(&[1024], 3072, 32),
            table: Arc::new(RopeTable::new(&[0.1; 64], 1000, 1.0)),
        }
    }

    fn run(&self, x: &Tensor, branches: bool, pool: &mut KvPool, batch: &PagedBatch) -> Result<Tensor> {
        let tape = &mut Tape::off();
        let before = Ways { norm: true, branches, ..Ways::default() };
        let onto = Ways { branches, ..Ways::default() };
        let qkv = self.qkv.run(tape, x, before, None)?;
        let rope = QkRope {
            table: self.table.clone(),
            positions: batch.positions().clone(),
            heads: [SHAPE.heads, SHAPE.kv_heads],
            eps: 1e-5,
        };
        let rotated = pool.write(0, rope, &qkv, None, batch)?;
        let attended = pool.attend(0, &rotated, batch, 0.09, None)?;
        let x = self.o.run(tape, &attended, onto, Some(x))?;
        let inner = self.gate_up.run(tape, &x, Ways { swiglu: true, ..before }, None)?;
        self.down.run(tape, &inner, onto, Some(&x))
    }
}

/// Overlapping kernels of a graph read nothing too early and overwrite nothing too early.
#[test]
#[ignore = "needs a GPU"]
fn a_graph_gives_what_its_kernels_give_one_after_another() {
    const LAYERS: usize = 12;
    let (gpu, layer) = (Gpu::get(0).expect("a GPU"), Layer::new());
    for (rows, branches) in [(1, false), (1, true), (5, true), (64, false), (64, true), (100, true)] {
        let pages: Vec<Vec<u32>> = (0..rows as u32).map(|s| (s * 40..(s + 1) * 40).collect()).collect();
        let mut pool = KvPool::new(GPU, SHAPE, 1, 40 * rows).expect("memory");
        let position = |s: usize| (s * 97 + 500) % 640;
        let sequences: Vec<PagedRows<'_>> = pages
            .iter()
            .enumerate()
            .map(|(s, p)| PagedRows { rows: s..s + 1, position: position(s), pages: p })
            .collect();
        let batch = PagedBatch::new(&sequences);
        let x = &pair(Operand::rows([rows, 1024], 3))[1];
        let mut run = || {
            (1..LAYERS)
                .try_fold(layer.run(x, branches, &mut pool, &batch)?, |x, _| layer.run(&x, branches, &mut pool, &batch))
        };
        let want = run().expect("runs").to_vec();
        assert!(want.iter().all(|v| v.is_finite()));
        let memory = GraphMemory::new(gpu);
        let mut result = None;
        let graph = gpu.capture(&memory, || {
            result = Some(run()?);
            Ok(())
        });
        let (graph, result) = (graph.expect("is captured"), result.expect("ran"));
        for number in 0..40 {
            graph.launch().expect("runs");
            // Several in a row, without a wait between them.
            if number % 4 == 3 {
                assert!(result.to_vec() == want, "{rows} rows, branches {branches}, run {number}");
            }
        }
    }
}
