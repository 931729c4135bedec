//! The gate of a gated MLP (<https://arxiv.org/abs/2002.05202>).

use super::{Op, Recorded, ensure};
use crate::cpu::rows;
use crate::{Result, Tape, Tensor};

/// `silu(gate) * up`.
pub struct SwiGlu;

/// `silu(gate) * up`, both `[T, I]`.
///
/// # Errors
/// Shapes that differ.
pub fn swiglu(tape: &mut Tape, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    tape.apply(SwiGlu, &[gate, up])
}

impl Op for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn weights(&self) -> &'static [usize] {
        &[]
    }

    fn check(&self, inputs: &[&Tensor]) -> Result<()> {
        ensure(inputs[0].shape() == inputs[1].shape(), self.name(), "equal shapes", inputs)
    }

    fn cpu_forward(&self, inputs: &[&Tensor], _: &[bool]) -> (Tensor, Vec<Tensor>) {
        let mut y = vec![0.0; inputs[0].raw().len()];
        rows::swiglu(&mut y, inputs[0].raw(), inputs[1].raw());
        (Tensor::cpu(y, inputs[0].shape()), vec![])
    }

    fn cpu_backward(&self, record: &Recorded, grad: &Tensor) -> Vec<Option<Tensor>> {
        let (gate, up) = (&record.inputs[0], &record.inputs[1]);
        let mut grads = [vec![0.0; gate.raw().len()], vec![0.0; gate.raw().len()]];
        let [dgate, dup] = &mut grads;
        rows::swiglu_backward(dgate, dup, grad.raw(), gate.raw(), up.raw());
        grads.into_iter().zip(&record.needs).map(|(g, &need)| need.then(|| Tensor::cpu(g, gate.shape()))).collect()
    }

    fn portable(&self, inputs: &[burn::Tensor<2>]) -> Vec<burn::Tensor<2>> {
        vec![burn::tensor::activation::silu(inputs[0].clone()) * inputs[1].clone()]
    }
}
