//! The gate of a gated MLP (<https://arxiv.org/abs/2002.05202>).

use super::{Op, Recorded, ensure};
use crate::cpu::rows;
use crate::{Result, Tape, Tensor, cuda};

/// `silu(gate) * up`.
pub struct SwiGlu;

/// `silu(gate) * up` of rows `[gate, up]`: `[T, 2 I]` to `[T, I]`.
///
/// # Errors
/// An odd width.
pub fn swiglu(tape: &mut Tape, gate_up: &Tensor) -> Result<Tensor> {
    tape.apply(SwiGlu, &[gate_up])
}

impl Op for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn weights(&self) -> Vec<usize> {
        vec![]
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn check(&self, inputs: &[&Tensor]) -> Result<()> {
        let width = inputs[0].cols();
        ensure(width > 0 && width.is_multiple_of(2), self.name(), "gate and up side by side, [T, 2 I]", inputs)
    }

    fn cpu_forward(&self, inputs: &[&Tensor], _: &[bool]) -> (Tensor, Vec<Tensor>) {
        let [t, width] = [inputs[0].rows(), inputs[0].cols() / 2];
        let mut y = vec![0.0; t * width];
        rows::swiglu(&mut y, inputs[0].raw(), width);
        (Tensor::cpu(y, [t, width]), vec![])
    }

    fn cpu_backward(&self, record: &Recorded, grad: &Tensor) -> Vec<Option<Tensor>> {
        let x = &record.inputs[0];
        let mut dx = vec![0.0; x.raw().len()];
        rows::swiglu_backward(&mut dx, grad.raw(), x.raw(), grad.cols());
        vec![Some(Tensor::cpu(dx, x.shape()))]
    }

    fn cuda_forward(&self, inputs: &[&Tensor], _: &[bool]) -> Result<(Tensor, Vec<Tensor>)> {
        let shape = [inputs[0].rows(), inputs[0].cols() / 2];
        cuda::rows::check_width(self.name(), "the width of gate and up", shape[1])?;
        Ok((Tensor::cuda(cuda::rows::swiglu(inputs[0].array(), shape)?, shape), vec![]))
    }

    fn cuda_backward(&self, record: &Recorded, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let x = &record.inputs[0];
        let dx = cuda::rows::swiglu_backward(grad.array(), x.array(), grad.shape())?;
        Ok(vec![Some(Tensor::cuda(dx, x.shape()))])
    }

    fn reference(&self, inputs: &[burn::Tensor<2>]) -> Vec<burn::Tensor<2>> {
        let width = inputs[0].dims()[1] / 2;
        let [gate, up] = [0, width].map(|first| inputs[0].clone().narrow(1, first, width));
        vec![burn::tensor::activation::silu(gate) * up]
    }
}
