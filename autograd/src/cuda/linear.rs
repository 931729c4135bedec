//! GEMMs with weights `[N, K]`.
//!
//! A matrix may be a range of columns of a wider one: its rows are `stride` values apart.

use super::rows::blocks;
use super::skinny_gemm::SkinnyGemm;
use super::{Arg, Array, DType, MatMul};
use crate::Result;

/// Columns `first..` of an array of rows of `stride` values.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    pub(crate) array: &'a Array,
    pub(crate) first: usize,
    pub(crate) stride: usize,
}

impl<'a> Columns<'a> {
    /// All columns of rows of `stride`.
    pub(crate) fn all(array: &'a Array, stride: usize) -> Self {
        Self { array, first: 0, stride }
    }

    pub(super) fn ptr(&self) -> u64 {
        self.array.ptr() + (self.first * self.array.dtype().bytes()) as u64
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(crate) enum Accumulate<'a> {
    /// Nothing.
    Nothing,
    /// What is in the output already.
    Output,
    /// The same columns of another array.
    Other(&'a Array),
}

/// `y = factor * x W^T (+ bias) (+ onto)`: x `[t, k]`, w `[n, k]`.
pub(crate) fn product(
    y: Columns<'_>,
    onto: Accumulate<'_>,
    [x, w]: [Columns<'_>; 2],
    bias: Option<&Array>,
    [t, n, k]: [usize; 3],
    factor: f32,
) -> Result<()> {
    let fixed = y.array.gpu().is_deterministic();
    if factor == 1.0 && w.stride == k && w.first == 0 {
        let few = SkinnyGemm { bias, onto, ..SkinnyGemm::new(x, w.array, y, [t, n, k]) };
        if few.fits() {
            return few.run();
        }
    }
    let m = MatMul::nt(x.ptr(), w.ptr(), y.ptr(), t, n, k, DType::Bf16, y.array.dtype());
    let mut m = m.strides(x.stride, w.stride, y.stride).scaled(factor).fixed(fixed);
    if let Some(bias) = bias {
        m = m.bias(bias.ptr());
    }
    run(m, y, onto)
}

/// `y = x W^T` on the second stream of an [`super::side_stream::SideStream`].
pub(crate) fn product_aside(y: Columns<'_>, [x, w]: [Columns<'_>; 2], [t, n, k]: [usize; 3]) -> Result<()> {
    let m = MatMul::nt(x.ptr(), w.ptr(), y.ptr(), t, n, k, DType::Bf16, y.array.dtype());
    run(m.strides(x.stride, w.stride, y.stride).aside(true), y, Accumulate::Nothing)
}

/// Rows up to which [`low_rank_up`] beats a product for every map.
pub(crate) const SKINNY_ROWS: usize = 512;

/// One of at most three maps side by side; rank 0 where it has no branch.
#[derive(Clone, Copy)]
pub(crate) struct Up<'a> {
    pub(crate) b: Option<&'a Array>,
    pub(crate) columns: usize,
    pub(crate) rank: usize,
    pub(crate) scale: f32,
}

/// `y += scale * down B^T` in the columns of each map; `down` has the maps' ranks side by side.
pub(crate) fn low_rank_up(y: &Array, down: &Array, maps: &[Up<'_>], rows: usize) -> Result<()> {
    let stride: usize = maps.iter().map(|m| m.columns).sum();
    let ranks: usize = maps.iter().map(|m| m.rank).sum();
    let absent = Up { b: None, columns: 0, rank: 0, scale: 0.0 };
    let at = |i: usize| maps.get(i).copied().unwrap_or(absent);
    let maps = [at(0), at(1), at(2)];
    let mut end = 0;
    let ends = maps.map(|m| {
        end += m.columns;
        Arg::I32(end as i32)
    });
    let head = [y.arg(), Arg::U64(stride as u64), down.arg(), Arg::I32(ranks as i32), Arg::I32(rows as i32)];
    let args: Vec<Arg> = head
        .into_iter()
        .chain(maps.map(|m| m.b.map_or(Arg::Ptr(0), Array::arg)))
        .chain(ends)
        .chain(maps.map(|m| Arg::I32(m.rank as i32)))
        .chain(maps.map(|m| Arg::F32(m.scale)))
        .collect();
    y.gpu().launch("lora_up", [blocks(stride, 64), blocks(rows, 16), 1], [128, 1, 1], 0, &args)
}

/// [`low_rank_up`] of gate and up, which have as many columns each, and `y = silu(gate) * up` of that, in one kernel.
pub(crate) fn low_rank_up_gated(
    y: &Array,
    gate_up: &Array,
    down: &Array,
    maps: [Up<'_>; 2],
    rows: usize,
) -> Result<()> {
    let (inner, ranks) = (maps[0].columns, maps[0].rank + maps[1].rank);
    let int = |v: usize| Arg::I32(v as i32);
    let head = [gate_up.arg(), y.arg(), int(inner), down.arg(), int(ranks), int(rows)];
    let args: Vec<Arg> = head
        .into_iter()
        .chain(maps.map(|m| m.b.map_or(Arg::Ptr(0), Array::arg)))
        .chain(maps.map(|m| int(m.rank)))
        .chain(maps.map(|m| Arg::F32(m.scale)))
        .collect();
    y.gpu().launch("lora_up_swiglu", [blocks(inner, 32), blocks(rows, 16), 1], [128, 1, 1], 0, &args)
}

/// `dx = factor * dy W (+ onto)`: dy `[t, n]`, w `[n, k]`.
pub(crate) fn input_gradient(
    dx: Columns<'_>,
    onto: Accumulate<'_>,
    [dy, w]: [Columns<'_>; 2],
    [t, n, k]: [usize; 3],
    factor: f32,
) -> Result<()> {
    let m = MatMul::nn(dy.ptr(), w.ptr(), dx.ptr(), t, k, n, DType::Bf16, dx.array.dtype());
    run(m.strides(dy.stride, w.stride, dx.stride).scaled(factor), dx, onto)
}

/// `dw = factor * dy^T x (+ onto)` in f32: dy `[t, n]`, x `[t, k]`.
pub(crate) fn weight_gradient(
    dw: &Array,
    onto: Accumulate<'_>,
    [dy, x]: [Columns<'_>; 2],
    [t, n, k]: [usize; 3],
    factor: f32,
) -> Result<()> {
    let dw = Columns::all(dw, k);
    let m = MatMul::tn(dy.ptr(), x.ptr(), dw.ptr(), n, k, t, DType::Bf16, DType::F32);
    run(m.strides(dy.stride, x.stride, k).scaled(factor), dw, onto)
}

fn run(m: MatMul, out: Columns<'_>, onto: Accumulate<'_>) -> Result<()> {
    let m = match onto {
        Accumulate::Nothing => m,
        Accumulate::Output => m.plus(1.0, out.ptr()),
        Accumulate::Other(array) => m.plus(1.0, Columns { array, ..out }.ptr()),
    };
    out.array.gpu().matmul(&m)
}
