//! Batches whose rows have different LoRA adapters.

use std::sync::Arc;

use autograd::cuda::{Gpu, GraphMemory};
use autograd::decode::{DecodeGraph, DecodeRow, GraphBucket};
use autograd::kv::PagedBatch;
use autograd::ops::{
    self, Epilogue, LoraModule, LoraModules, LoraSegment, LoraSegments, LowRank, PendingSamples, Projection,
    SampleBuffer, SampleParams, SampleResult, Token,
};
use autograd::{Device, Error, Index, Tape, Tensor};

use super::cuda::{GPU, distance, rounded};
use super::support::{assert_close, bits, random};

/// Three projections of one input, and adapters on them.
#[derive(Clone, Copy)]
struct Case {
    /// Rows of each weight.
    columns: [usize; 3],
    k: usize,
    /// Rank of each adapter on each projection, 0 where it has no module.
    ranks: [[usize; 3]; 4],
}

const SMALL: Case = Case { columns: [48, 24, 24], k: 56, ranks: [[4, 4, 4], [16, 0, 8], [0, 64, 0], [1, 3, 17]] };
/// What the grouped kernels take; K is not a multiple of what a warp takes at a time.
const GROUPED: Case =
    Case { columns: [2048, 1000, 1048], k: 1016, ranks: [[8, 8, 8], [64, 0, 16], [0, 24, 0], [40, 32, 48]] };
/// Ranks that they do not take.
const LARGE_RANKS: Case = Case { ranks: [[8, 8, 8], [128, 0, 16], [0, 24, 0], [40, 72, 48]], ..GROUPED };

/// Rows and adapter of each segment; adapter 0 stands in two places, and one segment is empty.
const SEGMENTS: [(usize, Option<usize>); 8] =
    [(3, Some(0)), (1, None), (17, Some(1)), (1, Some(2)), (0, Some(1)), (40, Some(3)), (2, Some(0)), (5, None)];

/// Values that bf16 holds.
fn values(len: usize, key: u64, size: f32) -> Vec<f32> {
    random(len, key).iter().map(|v| rounded(size * v)).collect()
}

/// A weight that gives about as large values as it gets.
fn weight(device: Device, shape @ [n, k]: [usize; 2], key: u64) -> Tensor {
    Tensor::weight(device, values(n * k, key, 1.7 / (k as f32).sqrt()), shape).expect("whole rows")
}

impl Case {
    fn width(&self) -> usize {
        self.columns.iter().sum()
    }

    /// The adapters; their modules' places in the model are 1, 2 and 3.
    fn adapters(&self, device: Device) -> Vec<Arc<LoraModules>> {
        let module = |adapter: usize, projection: usize| {
            let (n, rank) = (self.columns[projection], self.ranks[adapter][projection]);
            let key = 100 + 10 * adapter as u64 + 2 * projection as u64;
            (rank > 0).then(|| LoraModule {
                a: weight(device, [rank, self.k], key),
                b: weight(device, [n, rank], key + 1),
                scale: 0.3 + adapter as f32,
            })
        };
        let modules = |adapter| std::iter::once(None).chain((0..3).map(move |p| module(adapter, p))).collect();
        (0..self.ranks.len()).map(|adapter| Arc::new(LoraModules::new(modules(adapter)))).collect()
    }

    /// The batch, and its segments in batches of their own by [`ops::project_within`], with a norm, a bias, and either a
    /// residual or SwiGLU.
    fn together_and_alone(&self, device: Device, swiglu: bool) -> (Tensor, Vec<Tensor>) {
        let (adapters, k, width) = (self.adapters(device), self.k, self.width());
        let weights = [0, 1, 2].map(|p| weight(device, [self.columns[p], k], p as u64));
        let rows: usize = SEGMENTS.iter().map(|(rows, _)| rows).sum();
        let new = |values: &[f32], shape| Tensor::new(device, values.to_vec(), shape).expect("whole rows");
        let (x, residual) = (values(rows * k, 7, 1.0), values(rows * width, 8, 1.0));
        let (norm, bias) =
            (new(&values(k, 9, 1.0), [1, k]), new(&values(self.columns[1], 10, 1.0), [1, self.columns[1]]));
        let projection = |p: usize| Projection { bias: (p == 1).then_some(&bias), ..Projection::new(&weights[p]) };
        let projections = [0, 1, 2].map(projection);
        let part = |first: usize, count: usize| {
            let x = new(&x[first * k..(first + count) * k], [count, k]);
            (x, new(&residual[first * width..(first + count) * width], [count, width]))
        };
        let (all, all_residual) = part(0, rows);
        let around = around(&norm, &all_residual, swiglu);
        let mixed = ops::project_segments(&all, (&projections, &[1, 2, 3]), &segments(&adapters, &SEGMENTS), around);
        let (mut first, mut alone) = (0, vec![]);
        for (count, adapter) in SEGMENTS.into_iter().filter(|(count, _)| *count > 0) {
            let low_rank = |p: usize| {
                let LoraModule { a, b, scale } = adapters[adapter?].module(p + 1)?;
                Some(LowRank { a, b, scale: *scale, dropout: None })
            };
            let with_lora = [0, 1, 2].map(|p| Projection { low_rank: low_rank(p), ..projections[p] });
            let (x, residual) = part(first, count);
            first += count;
            let around = self::around(&norm, &residual, swiglu);
            alone.push(ops::project_within(&mut Tape::off(), &x, &with_lora, around).expect("shapes fit"));
        }
        (mixed.expect("shapes fit"), alone)
    }
}

fn around<'a>(norm: &'a Tensor, residual: &'a Tensor, swiglu: bool) -> Epilogue<'a> {
    Epilogue { norm: Some((norm, 1e-5)), residual: Some(residual).filter(|_| !swiglu), swiglu }
}

fn segments(adapters: &[Arc<LoraModules>], segments: &[(usize, Option<usize>)]) -> LoraSegments {
    let segment = |&(rows, adapter): &(usize, Option<usize>)| LoraSegment {
        rows,
        adapter: adapter.map(|number| adapters[number].clone()),
    };
    LoraSegments::new(segments.iter().map(segment).collect())
}

#[test]
fn rows_have_the_bits_of_a_batch_of_their_adapter_alone() {
    for (case, swiglu) in [(SMALL, false), (SMALL, true), (LARGE_RANKS, false)] {
        let (mixed, alone) = case.together_and_alone(Device::Cpu, swiglu);
        assert!(bits(&mixed) == alone.iter().flat_map(bits).collect::<Vec<_>>(), "swiglu {swiglu}");
    }
}

#[test]
fn the_burn_expression_of_segments_gives_the_same_values() {
    for swiglu in [false, true] {
        let [cpu, burn] = [Device::Cpu, Device::Reference].map(|device| SMALL.together_and_alone(device, swiglu).0);
        assert_close("mixed", &burn.to_vec(), &cpu.to_vec(), 1e-4);
    }
}

#[test]
fn segments_have_to_cover_the_rows_and_adapters_to_fit() {
    let (adapters, w) = (SMALL.adapters(Device::Cpu), weight(Device::Cpu, [SMALL.columns[0], SMALL.k], 1));
    let x = Tensor::new(Device::Cpu, random(4 * SMALL.k, 2), [4, SMALL.k]).expect("whole rows");
    let run = |list: &[(usize, Option<usize>)], place| {
        let projections = [Projection::new(&w)];
        ops::project_segments(&x, (&projections, &[place]), &segments(&adapters, list), Epilogue::default())
    };
    run(&[(1, None), (3, Some(0))], 1).expect("they fit");
    for (list, place) in [(vec![(1, None), (2, Some(0))], 1), (vec![(4, Some(0))], 2)] {
        assert!(matches!(run(&list, place), Err(Error::Shape { .. })), "{list:?}");
    }
}

fn grouped_launches() -> u64 {
    let launches = Gpu::get(0).expect("a GPU").launches();
    launches.iter().filter(|(name, _)| name.ends_with("_grouped")).map(|(_, count)| count).sum()
}

#[test]
#[ignore = "needs a GPU"]
fn segments_on_a_gpu_give_the_values_of_the_host() {
    let _mode = Gpu::get(0).and_then(|gpu| gpu.hold_mode(false)).expect("a GPU whose mode nobody holds");
    for (name, case, launches) in [("grouped", GROUPED, 2), ("large ranks", LARGE_RANKS, 0)] {
        for swiglu in [false, true] {
            let before = grouped_launches();
            let (mixed, alone) = case.together_and_alone(GPU, swiglu);
            assert_eq!(grouped_launches() - before, launches, "{name}");
            let want = case.together_and_alone(Device::Cpu, swiglu).0.to_vec();
            let alone: Vec<f32> = alone.iter().flat_map(Tensor::to_vec).collect();
            for (what, got) in [("mixed", mixed.to_vec()), ("alone", alone)] {
                let distance = distance(&got, &want);
                assert!(distance < 0.01, "{name} {what}, swiglu {swiglu}: {distance}");
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn segments_in_deterministic_mode_have_the_bits_of_their_adapter_alone() {
    let _mode = Gpu::get(0).and_then(|gpu| gpu.hold_mode(true)).expect("a GPU whose mode nobody holds");
    for (case, swiglu) in [(GROUPED, false), (GROUPED, true), (LARGE_RANKS, false)] {
        let (mixed, alone) = case.together_and_alone(GPU, swiglu);
        assert!(bits(&mixed) == alone.iter().flat_map(bits).collect::<Vec<_>>(), "swiglu {swiglu}");
    }
}

/// The tokens that a graph samples, whose rows have the adapters that come with each launch, are those of the op by itself.
#[test]
#[ignore = "needs a GPU"]
fn a_decode_graph_takes_the_adapters_of_each_launch() {
    const ROWS: usize = 16;
    let gpu = Gpu::get(0).expect("a GPU");
    let _mode = gpu.hold_mode(false).expect("nobody holds the mode");
    let (adapters, k) = (GROUPED.adapters(GPU), GROUPED.k);
    let weights = [0, 1, 2].map(|p| weight(GPU, [GROUPED.columns[p], k], p as u64));
    let projections = [0, 1, 2].map(|p| Projection::new(&weights[p]));
    let (table, head) = (weight(GPU, [50, k], 20), weight(GPU, [520, GROUPED.width()], 21));
    let step = |ids: &Index, lora: &LoraSegments| {
        let x = ops::embedding(&mut Tape::off(), &table, ids)?;
        let y = ops::project_segments(&x, (&projections, &[1, 2, 3]), lora, Epilogue::default())?;
        ops::logits([&y, &head])
    };
    let samples = Arc::new(SampleBuffer::new(0, ROWS).expect("memory"));
    let bucket = GraphBucket { rows: ROWS, pages: 1, processors: false, adapters: true };
    let captured = |ids: &Index, _: &PagedBatch, lora: Option<&LoraSegments>| step(ids, lora.expect("adapters"));
    let mut graph = DecodeGraph::capture(0, bucket, &GraphMemory::new(gpu), &samples, captured).expect("captured");
    let batches: [&[(usize, Option<usize>)]; 4] = [
        &[(3, Some(0)), (2, None), (5, Some(1)), (6, Some(3))],
        &[(1, Some(2)), (1, Some(3))],
        &[(1, None), (1, Some(0)), (1, Some(1)), (1, Some(2)), (1, Some(3))],
        &[(16, Some(1))],
    ];
    for (number, batch) in (1u32..).zip(batches) {
        let count: usize = batch.iter().map(|(rows, _)| rows).sum();
        let ids: Vec<u32> = (0..count as u32).map(|row| (row * 7 + number * 3) % 50).collect();
        let params =
            SampleParams { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 1, request: 0, position: 1 };
        let row = |&id: &u32| DecodeRow { token: Token::Known(id), position: 0, pages: &[0], sample: params.into() };
        let rows: Vec<DecodeRow<'_>> = ids.iter().map(row).collect();
        let lora = segments(&adapters, batch);
        let sampled = graph.launch(&rows, Some(&lora)).and_then(PendingSamples::wait).expect("runs");
        let logits = step(&ids.into(), &segments(&adapters, batch)).expect("runs").to_vec();
        for (row, (sampled, logits)) in sampled.iter().zip(logits.chunks(520)).enumerate() {
            let SampleResult::Token { token, .. } = sampled else { panic!("no token") };
            let best = logits.iter().copied().fold(f32::MIN, f32::max);
            assert!(best - logits[*token as usize] < 0.02, "batch {number}, row {row}: {token} is not the likeliest");
        }
    }
}
