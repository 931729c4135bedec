//! Residual addition.

use super::{Op, Recorded, ensure};
use crate::cpu::rows::for_row_blocks;
use crate::{Result, Tape, Tensor, cuda};

/// `a + b`.
pub struct Add;

/// `a + b`, both `[T, H]`.
///
/// # Errors
/// Shapes that differ.
pub fn add(tape: &mut Tape, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    tape.apply(Add, &[a, b])
}

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn weights(&self) -> Vec<usize> {
        vec![]
    }

    fn check(&self, inputs: &[&Tensor]) -> Result<()> {
        ensure(inputs[0].shape() == inputs[1].shape(), self.name(), "equal shapes", inputs)
    }

    fn cpu_forward(&self, inputs: &[&Tensor], _: &[bool]) -> (Tensor, Vec<Tensor>) {
        let mut y = inputs[0].raw().to_vec();
        let b = inputs[1].raw();
        for_row_blocks(&mut y, 1, |at, part| {
            for (y, b) in part.iter_mut().zip(&b[at..]) {
                *y += b;
            }
        });
        (Tensor::cpu(y, inputs[0].shape()), vec![])
    }

    fn cpu_backward(&self, record: &Recorded, grad: &Tensor) -> Vec<Option<Tensor>> {
        record.needs.iter().map(|&need| need.then(|| grad.clone())).collect()
    }

    fn cuda_forward(&self, inputs: &[&Tensor], _: &[bool]) -> Result<(Tensor, Vec<Tensor>)> {
        let y = cuda::rows::add(inputs[0].array(), inputs[1].array())?;
        Ok((Tensor::cuda(y, inputs[0].shape()), vec![]))
    }

    fn cuda_backward(&self, record: &Recorded, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(record.needs.iter().map(|&need| need.then(|| grad.clone())).collect())
    }

    fn reference(&self, inputs: &[burn::Tensor<2>]) -> Vec<burn::Tensor<2>> {
        vec![inputs[0].clone() + inputs[1].clone()]
    }
}
