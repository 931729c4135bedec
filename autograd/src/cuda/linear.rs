//! Products with weights `[N, K]`.
//!
//! A matrix may be a range of columns of a wider one: its rows are `stride` values apart.

use super::{Array, DType, MatMul};
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

    fn ptr(&self) -> u64 {
        self.array.ptr() + (self.first * self.array.dtype().bytes()) as u64
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(crate) enum Onto<'a> {
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
    onto: Onto<'_>,
    [x, w]: [Columns<'_>; 2],
    bias: Option<&Array>,
    [t, n, k]: [usize; 3],
    factor: f32,
) -> Result<()> {
    let m = MatMul::nt(x.ptr(), w.ptr(), y.ptr(), t, n, k, DType::Bf16, y.array.dtype());
    let mut m = m.strides(x.stride, w.stride, y.stride).scaled(factor);
    if let Some(bias) = bias {
        m = m.bias(bias.ptr());
    }
    run(m, y, onto)
}

/// `dx = factor * dy W (+ onto)`: dy `[t, n]`, w `[n, k]`.
pub(crate) fn input_gradient(
    dx: Columns<'_>,
    onto: Onto<'_>,
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
    onto: Onto<'_>,
    [dy, x]: [Columns<'_>; 2],
    [t, n, k]: [usize; 3],
    factor: f32,
) -> Result<()> {
    let dw = Columns::all(dw, k);
    let m = MatMul::tn(dy.ptr(), x.ptr(), dw.ptr(), n, k, t, DType::Bf16, DType::F32);
    run(m.strides(dy.stride, x.stride, k).scaled(factor), dw, onto)
}

fn run(m: MatMul, out: Columns<'_>, onto: Onto<'_>) -> Result<()> {
    let m = match onto {
        Onto::Nothing => m,
        Onto::Output => m.plus(1.0, out.ptr()),
        Onto::Other(array) => m.plus(1.0, Columns { array, ..out }.ptr()),
    };
    out.array.gpu().matmul(&m)
}
