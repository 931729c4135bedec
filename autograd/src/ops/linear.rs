//! Linear maps.

use super::{Op, Recorded, ensure};
use crate::cpu::{gemm, gemm_backward};
use crate::{Result, Tape, Tensor};

/// `x W^T + b`.
pub struct Linear;

/// `x W^T (+ bias)`: x `[T, K]`, w a weight `[N, K]`, bias `[1, N]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(tape: &mut Tape, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        None => tape.apply(Linear, &[x, w]),
        Some(b) => tape.apply(Linear, &[x, w, b]),
    }
}

/// Shapes of `[x, w, bias?]`.
pub(super) fn check_linear(op: &'static str, inputs: &[&Tensor], bias: Option<&Tensor>) -> Result<()> {
    let (x, w) = (inputs[0], inputs[1]);
    ensure(x.cols() == w.cols(), op, "x [T, K] and w [N, K]", inputs)?;
    if let Some(b) = bias {
        ensure(b.shape() == [1, w.rows()], op, "bias [1, N]", &[x, w, b])?;
    }
    Ok(())
}

/// `x W^T (+ bias)` on the host.
pub(super) fn project(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Vec<f32> {
    let dims = [x.rows(), w.rows(), w.cols()];
    let mut y = vec![0.0; dims[0] * dims[1]];
    gemm::linear(&mut y, x.raw(), w.raw(), dims, gemm::Store::Set);
    if let Some(b) = bias {
        for row in y.chunks_exact_mut(dims[1]) {
            for (y, b) in row.iter_mut().zip(b.raw()) {
                *y += b;
            }
        }
    }
    y
}

/// `factor * dy W`, added to `onto` or to zero.
pub(super) fn input_gradient(onto: Option<Tensor>, dy: &Tensor, w: &Tensor, factor: f32) -> Tensor {
    let shape = [dy.rows(), w.cols()];
    let mut dx = onto.map_or_else(|| vec![0.0; shape[0] * shape[1]], Tensor::into_raw);
    gemm_backward::input_gradient(&mut dx, dy.raw(), w.raw(), [dy.rows(), w.rows(), w.cols()], factor);
    Tensor::cpu(dx, shape)
}

/// `factor * dy^T x` in the layout of `w`.
pub(super) fn weight_gradient(dy: &Tensor, x: &Tensor, w: &Tensor, factor: f32) -> Tensor {
    let mut dw = vec![0.0; w.raw().len()];
    gemm_backward::weight_gradient(&mut dw, dy.raw(), x.raw(), [dy.rows(), w.rows(), w.cols()], factor);
    Tensor::cpu_with_layout(dw, w.shape(), w.layout())
}

/// Sum of the rows of `dy`.
pub(super) fn bias_gradient(dy: &Tensor) -> Tensor {
    let mut db = vec![0.0; dy.cols()];
    for row in dy.raw().chunks_exact(dy.cols()) {
        for (d, g) in db.iter_mut().zip(row) {
            *d += g;
        }
    }
    Tensor::cpu(db, [1, dy.cols()])
}

/// The same product as a burn expression.
pub(super) fn portable_linear(x: &burn::Tensor<2>, w: &burn::Tensor<2>) -> burn::Tensor<2> {
    x.clone().matmul(w.clone().transpose())
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn weights(&self) -> &'static [usize] {
        &[1]
    }

    fn check(&self, inputs: &[&Tensor]) -> Result<()> {
        check_linear(self.name(), inputs, inputs.get(2).copied())
    }

    fn cpu_forward(&self, inputs: &[&Tensor], _: &[bool]) -> (Tensor, Vec<Tensor>) {
        let y = project(inputs[0], inputs[1], inputs.get(2).copied());
        (Tensor::cpu(y, [inputs[0].rows(), inputs[1].rows()]), vec![])
    }

    fn cpu_backward(&self, record: &Recorded, grad: &Tensor) -> Vec<Option<Tensor>> {
        let (x, w) = (&record.inputs[0], &record.inputs[1]);
        let mut grads = vec![
            record.needs[0].then(|| input_gradient(None, grad, w, 1.0)),
            record.needs[1].then(|| weight_gradient(grad, x, w, 1.0)),
        ];
        if let Some(&need) = record.needs.get(2) {
            grads.push(need.then(|| bias_gradient(grad)));
        }
        grads
    }

    fn portable(&self, inputs: &[burn::Tensor<2>]) -> Vec<burn::Tensor<2>> {
        let y = portable_linear(&inputs[0], &inputs[1]);
        vec![if let Some(b) = inputs.get(2) { y + b.clone() } else { y }]
    }
}
