//! Batches whose rows have different LoRA adapters.

use std::sync::Arc;

use autograd::ops::{self, Epilogue, LoraModule, LoraModules, LoraSegment, LoraSegments, LowRank, Projection};
use autograd::{Device, Error, Tape, Tensor};

use super::support::{assert_close, bits, random};

/// Shapes `[N, K]` of three projections of one input.
const SHAPES: [[usize; 2]; 3] = [[48, 56], [24, 56], [24, 56]];
const WIDTH: usize = 96;
const K: usize = 56;

/// Rank on each projection, 0 where the adapter has no module.
const RANKS: [[usize; 3]; 4] = [[4, 4, 4], [16, 0, 8], [0, 64, 0], [1, 3, 17]];

/// Rows and adapter of each segment; adapter 0 stands in two places, and one segment is empty.
const SEGMENTS: [(usize, Option<usize>); 8] =
    [(3, Some(0)), (1, None), (17, Some(1)), (1, Some(2)), (0, Some(1)), (40, Some(3)), (2, Some(0)), (5, None)];

fn weight(device: Device, shape: [usize; 2], key: u64) -> Tensor {
    Tensor::weight(device, random(shape[0] * shape[1], key), shape).expect("whole rows")
}

/// An adapter of each form of [`RANKS`].
fn adapters(device: Device) -> Vec<Arc<LoraModules>> {
    let module = |adapter: usize, projection: usize| {
        let ([n, k], rank) = (SHAPES[projection], RANKS[adapter][projection]);
        let key = 100 + 10 * adapter as u64 + 2 * projection as u64;
        (rank > 0).then(|| LoraModule {
            a: weight(device, [rank, k], key),
            b: weight(device, [n, rank], key + 1),
            scale: 0.3 + adapter as f32,
        })
    };
    // The projections stand at 1, 2 and 3 of the model.
    let modules = |adapter| LoraModules::new(std::iter::once(None).chain((0..3).map(|p| module(adapter, p))).collect());
    (0..RANKS.len()).map(|adapter| Arc::new(modules(adapter))).collect()
}

fn segments(adapters: &[Arc<LoraModules>], segments: &[(usize, Option<usize>)]) -> LoraSegments {
    let segment = |&(rows, adapter): &(usize, Option<usize>)| LoraSegment {
        rows,
        adapter: adapter.map(|number| adapters[number].clone()),
    };
    LoraSegments::new(segments.iter().map(segment).collect())
}

fn around<'a>(norm: &'a Tensor, residual: &'a Tensor, swiglu: bool) -> Epilogue<'a> {
    Epilogue { norm: Some((norm, 1e-5)), residual: Some(residual).filter(|_| !swiglu), swiglu }
}

/// The batch, and its parts in batches of their own by [`ops::project_within`], with a norm, a bias, and either a residual or
/// SwiGLU.
fn together_and_alone(device: Device, swiglu: bool) -> [Vec<Tensor>; 2] {
    let adapters = adapters(device);
    let weights = [0, 1, 2].map(|p| weight(device, SHAPES[p], p as u64));
    let rows: usize = SEGMENTS.iter().map(|(rows, _)| rows).sum();
    let new = |values: &[f32], shape| Tensor::new(device, values.to_vec(), shape).expect("whole rows");
    let (x, residual) = (random(rows * K, 7), random(rows * WIDTH, 8));
    let (norm, bias) = (new(&random(K, 9), [1, K]), new(&random(24, 10), [1, 24]));
    let projection = |p: usize| Projection { bias: (p == 1).then_some(&bias), ..Projection::new(&weights[p]) };
    let projections = [0, 1, 2].map(projection);
    let part = |first: usize, count: usize| {
        let x = new(&x[first * K..(first + count) * K], [count, K]);
        (x, new(&residual[first * WIDTH..(first + count) * WIDTH], [count, WIDTH]))
    };
    let (all, all_residual) = part(0, rows);
    let mixed = ops::project_segments(
        &all,
        (&projections, &[1, 2, 3]),
        &segments(&adapters, &SEGMENTS),
        around(&norm, &all_residual, swiglu),
    );
    let (mut first, mut alone) = (0, vec![]);
    for (count, adapter) in SEGMENTS.into_iter().filter(|(count, _)| *count > 0) {
        let low_rank = |p: usize| adapter.and_then(|adapter| lora(device, adapter, p));
        let loras = [0, 1, 2].map(low_rank);
        let with = |p: usize| Projection {
            low_rank: loras[p].as_ref().map(|m| LowRank { a: &m.a, b: &m.b, scale: m.scale, dropout: None }),
            ..projections[p]
        };
        let (x, residual) = part(first, count);
        first += count;
        let y = ops::project_within(&mut Tape::off(), &x, &[0, 1, 2].map(with), around(&norm, &residual, swiglu));
        alone.push(y.expect("shapes fit"));
    }
    [vec![mixed.expect("shapes fit")], alone]
}

/// The module of [`adapters`].
fn lora(device: Device, adapter: usize, projection: usize) -> Option<LoraModule> {
    adapters(device)[adapter].module(projection + 1).cloned()
}

#[test]
fn rows_have_the_bits_of_a_batch_of_their_adapter_alone() {
    for swiglu in [false, true] {
        let [mixed, alone] = together_and_alone(Device::Cpu, swiglu);
        assert_eq!(bits(&mixed[0]), alone.iter().flat_map(bits).collect::<Vec<_>>(), "swiglu {swiglu}");
    }
}

#[test]
fn the_burn_expression_gives_the_same_values() {
    for swiglu in [false, true] {
        let [cpu, burn] =
            [Device::Cpu, Device::Reference].map(|device| together_and_alone(device, swiglu)[0][0].to_vec());
        assert_close("mixed", &burn, &cpu, 1e-4);
    }
}

#[test]
fn segments_have_to_cover_the_rows_and_adapters_to_fit() {
    let (adapters, w) = (adapters(Device::Cpu), weight(Device::Cpu, SHAPES[0], 1));
    let x = Tensor::new(Device::Cpu, random(4 * K, 2), [4, K]).expect("whole rows");
    let run = |list: &[(usize, Option<usize>)], place| {
        let maps = [Projection::new(&w)];
        ops::project_segments(&x, (&maps, &[place]), &segments(&adapters, list), Epilogue::default())
    };
    run(&[(1, None), (3, Some(0))], 1).expect("they fit");
    for (list, place) in [(vec![(1, None), (2, Some(0))], 1), (vec![(4, Some(0))], 2)] {
        assert!(matches!(run(&list, place), Err(Error::Shape { .. })), "{list:?}");
    }
}
