//! Projections of a batch whose rows have different LoRA adapters.
//!
//! The rows of one adapter are contiguous, a segment. The base weights multiply all rows at once; then each segment's A and B
//! add to its rows: `y = x W^T (+ residual)`, `y_s += scale_s (x_s A_s^T) B_s^T`. On the CPU, and in deterministic mode of a
//! GPU, a row gets the bits that [`project_within`](super::project_within) gives it in a batch of one adapter.

mod gpu;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

pub use self::gpu::GROUPED_RANKS;
use super::{Epilogue, LowRank, Projection, project, reference_linear};
use crate::cpu::gemm::{self, Map, Store};
use crate::cuda::grouped_lora::{ModuleTable, Tiles};
use crate::op::{check_layouts, common_device};
use crate::ops::{ensure, rms_norm, swiglu};
use crate::{Device, Result, Tape, Tensor};

/// A and B of one projection's LoRA adapter, for inference.
#[derive(Debug, Clone)]
pub struct LoraModule {
    /// `[r, K]`
    pub a: Tensor,
    /// `[N, r]`
    pub b: Tensor,
    /// `alpha / r`, or `alpha / sqrt(r)` for rank-stabilised adapters.
    pub scale: f32,
}

/// A LoRA adapter as batches of several adapters use it: one entry for each projection of the model, by its index.
pub struct LoraModules {
    modules: Vec<Option<LoraModule>>,
    /// Their addresses on a GPU.
    table: OnceLock<ModuleTable>,
}

impl LoraModules {
    /// An adapter on the projections that have a module.
    #[must_use]
    pub fn new(modules: Vec<Option<LoraModule>>) -> Self {
        Self { modules, table: OnceLock::new() }
    }

    /// The module of a projection, if the adapter has one.
    #[must_use]
    pub fn module(&self, projection: usize) -> Option<&LoraModule> {
        self.modules.get(projection)?.as_ref()
    }

    fn low_rank(&self, projection: usize) -> Option<LowRank<'_>> {
        let module = self.module(projection)?;
        Some(LowRank { a: &module.a, b: &module.b, scale: module.scale, dropout: None })
    }
}

/// Contiguous rows and their adapter.
#[derive(Clone)]
pub struct LoraSegment {
    /// How many rows.
    pub rows: usize,
    /// Their adapter; `None` for rows of the base model.
    pub adapter: Option<Arc<LoraModules>>,
}

/// The segments of a batch, from its first row to its last.
pub struct LoraSegments {
    /// None where only a GPU has them.
    segments: Vec<LoraSegment>,
    rows: usize,
    /// The same on a GPU.
    tiles: OnceLock<Tiles>,
}

impl std::fmt::Debug for LoraSegments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoraSegments of {} rows", self.rows)
    }
}

/// The rows of one segment, and the projections with that segment's A and B.
struct Part<'a> {
    rows: Range<usize>,
    projections: Vec<Projection<'a>>,
}

impl LoraSegments {
    /// Segments that follow each other.
    #[must_use]
    pub fn new(segments: Vec<LoraSegment>) -> Self {
        let rows = segments.iter().map(|segment| segment.rows).sum();
        Self { segments, rows, tiles: OnceLock::new() }
    }

    /// Segments of `rows` rows that only a GPU has and that change from run to run of a graph.
    pub(crate) fn on_device(tiles: Tiles, rows: usize) -> Self {
        Self { segments: vec![], rows, tiles: OnceLock::from(tiles) }
    }

    /// Fails unless the modules of `projections` fit them.
    fn check(&self, x: &Tensor, projections: &[Projection<'_>], indices: &[usize]) -> Result<()> {
        let op = "project_segments";
        for adapter in self.segments.iter().filter_map(|segment| segment.adapter.as_ref()) {
            for (w, &index) in projections.iter().map(|p| p.weight).zip(indices) {
                let Some(LoraModule { a, b, .. }) = adapter.module(index) else { continue };
                common_device(op, &[x, a, b])?;
                check_layouts(op, &[x, a, b], &[1, 2])?;
                let fits = a.cols() == x.cols() && b.shape() == [w.rows(), a.rows()];
                ensure(fits, op, "a [r, K] and b [N, r]", &[x, w, a, b])?;
            }
        }
        Ok(())
    }

    /// The segments whose adapter has a module for one of the `projections`, which stand at `indices` in the model.
    fn parts<'a>(&'a self, projections: &[Projection<'a>], indices: &[usize]) -> Vec<Part<'a>> {
        let mut end = 0;
        let part = |segment: &'a LoraSegment| {
            end += segment.rows;
            let adapter = segment.adapter.as_ref()?;
            let with_module =
                |(p, &index): (&Projection<'a>, _)| Projection { low_rank: adapter.low_rank(index), ..*p };
            let projections: Vec<_> = projections.iter().zip(indices).map(with_module).collect();
            let some = segment.rows > 0 && projections.iter().any(|p| p.low_rank.is_some());
            some.then_some(Part { rows: end - segment.rows..end, projections })
        };
        self.segments.iter().filter_map(part).collect()
    }
}

/// [`project_within`](super::project_within) of projections without LoRA, plus the A and B of each row's segment. `indices` are
/// the projections' places in the model. Inference only: nothing is recorded.
///
/// # Errors
/// Shapes that do not fit, segments that do not cover the rows of x, a device that is out of memory.
pub fn project_segments(
    x: &Tensor,
    (projections, indices): (&[Projection<'_>], &[usize]),
    segments: &LoraSegments,
    around: Epilogue<'_>,
) -> Result<Tensor> {
    let tape = &mut Tape::off();
    ensure(segments.rows == x.rows(), "project_segments", "segments that cover all rows", &[x])?;
    let normed = around.norm.map(|(w, eps)| rms_norm(tape, x, w, eps)).transpose()?;
    let x = normed.as_ref().unwrap_or(x);
    let y = project(tape, x, projections, around.residual)?;
    segments.check(x, projections, indices)?;
    let y = match x.device() {
        Device::Cpu => on_cpu(y, x, &segments.parts(projections, indices)),
        Device::Cuda(_) => gpu::add(&y, x, (projections, indices), segments).map(|()| y)?,
        Device::Reference => reference(&y, x, &segments.parts(projections, indices)),
    };
    if around.swiglu { swiglu(tape, &y) } else { Ok(y) }
}

/// The LoRA of every segment added to its rows of y.
fn on_cpu(y: Tensor, x: &Tensor, parts: &[Part<'_>]) -> Tensor {
    let (shape @ [_, width], k) = (y.shape(), x.cols());
    let mut y = y.into_raw();
    let (mut rest, mut first, mut tasks) = (&mut y[..], 0, vec![]);
    for part in parts {
        let (_, tail) = rest.split_at_mut((part.rows.start - first) * width);
        let (rows, tail) = tail.split_at_mut(part.rows.len() * width);
        (rest, first) = (tail, part.rows.end);
        tasks.push((rows, &x.raw()[part.rows.start * k..part.rows.end * k], part));
    }
    tasks.into_par_iter().for_each(|(y, x, part)| add_rows(y, x, part, width));
    Tensor::cpu(y, shape)
}

/// The LoRA of one segment; in the roundings of [`Linear`](super::Linear).
fn add_rows(y: &mut [f32], x: &[f32], part: &Part<'_>, width: usize) {
    let t = part.rows.len();
    let down = |lora: &LowRank<'_>| {
        let [r, k] = lora.a.shape();
        let mut down = vec![0.0; t * r];
        gemm::linear(&mut down, x, lora.a.raw(), [t, r, k], Store::Set);
        down
    };
    let downs: Vec<_> = part.projections.iter().map(|p| p.low_rank.as_ref().map(down)).collect();
    let (mut first, mut ups) = (0, vec![]);
    for (projection, down) in part.projections.iter().zip(&downs) {
        if let (Some(lora), Some(down)) = (&projection.low_rank, down) {
            let store = Store::AddScaled(lora.scale);
            ups.push(Map { x: down, w: lora.b.raw(), dims: lora.b.shape(), first, store });
        }
        first += projection.weight.rows();
    }
    gemm::side_by_side(y, &ups, [t, width]);
}

/// The same as a burn expression.
fn reference(y: &Tensor, x: &Tensor, parts: &[Part<'_>]) -> Tensor {
    let (x, mut y) = (x.burn(), y.burn());
    for part in parts {
        let rows = x.clone().slice([part.rows.clone()]);
        let mut first = 0;
        for projection in &part.projections {
            let columns = first..first + projection.weight.rows();
            first = columns.end;
            let Some(lora) = &projection.low_rank else { continue };
            let down = reference_linear(&rows, &lora.a.burn());
            let up = reference_linear(&down, &lora.b.burn()).mul_scalar(lora.scale);
            let place = [part.rows.clone(), columns];
            let sum = y.clone().slice(place.clone()) + up;
            y = y.slice_assign(place, sum);
        }
    }
    Tensor::reference(y)
}
