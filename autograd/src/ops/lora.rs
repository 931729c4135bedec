//! A linear map with a low-rank branch.

use super::linear::{bias_gradient, check_linear, input_gradient, portable_linear, project, weight_gradient};
use super::{Op, Recorded, ensure};
use crate::cpu::gemm;
use crate::cpu::rows::for_row_blocks;
use crate::cpu::simd::{Simd, vectorized};
use crate::rng::{PHILOX_BLOCK, philox_block};
use crate::{Error, Result, Tape, Tensor, portable};

/// Inverted dropout whose mask is a function of (key, element).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability that an element becomes zero, in `[0, 1)`.
    pub probability: f64,
    /// Names the mask: step, micro-batch and module.
    pub key: u64,
}

impl Dropout {
    /// Zeros elements in place and multiplies the others by `1 / (1 - probability)`.
    fn apply(self, x: &mut [f32]) {
        let keep = (1.0 / (1.0 - self.probability)) as f32;
        // An element is dropped when its 32 random bits are below this.
        let bound = (self.probability * 2f64.powi(32)) as u32;
        for_row_blocks(x, PHILOX_BLOCK, |first, part| drop_blocks(part, self.key, first as u64, bound, keep));
    }
}

vectorized! {
    /// Blocks `first..` of the elements.
    fn drop_blocks(x: &mut [f32], key: u64, first: u64, bound: u32, keep: f32) = drop_blocks_body
}

/// Plain loops over lanes, which the compiler turns into vectors of the instruction set at hand.
#[inline(always)]
fn drop_blocks_body<S: Simd>(x: &mut [f32], key: u64, first: u64, bound: u32, keep: f32) {
    for (part, block) in x.chunks_mut(PHILOX_BLOCK).zip(first..) {
        let bits = philox_block(key, block);
        for (x, bits) in part.iter_mut().zip(bits.as_flattened()) {
            *x = if *bits < bound { 0.0 } else { *x * keep };
        }
    }
}

/// `x W^T (+ b) + scale * (drop(x) A^T) B^T` (<https://arxiv.org/abs/2106.09685>).
pub struct LoraLinear {
    /// `alpha / r`, or `alpha / sqrt(r)` for rank-stabilised adapters.
    pub scale: f32,
    /// Dropout on the input of A.
    pub dropout: Option<Dropout>,
}

/// [`LoraLinear`] on x `[T, K]`, w `[N, K]`, bias `[1, N]`, a `[r, K]` and b `[N, r]` (`low_rank = [a, b]`).
///
/// # Errors
/// Shapes that do not fit, a dropout outside `[0, 1)`.
pub fn lora_linear(
    tape: &mut Tape,
    op: LoraLinear,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    [a, b]: [&Tensor; 2],
) -> Result<Tensor> {
    match bias {
        None => tape.apply(op, &[x, w, a, b]),
        Some(bias) => tape.apply(op, &[x, w, a, b, bias]),
    }
}

impl LoraLinear {
    /// The input of A.
    fn dropped(&self, x: &Tensor) -> Tensor {
        match self.dropout {
            None => x.clone(),
            Some(dropout) => {
                let mut dropped = x.raw().to_vec();
                dropout.apply(&mut dropped);
                Tensor::cpu(dropped, x.shape())
            }
        }
    }
}

impl Op for LoraLinear {
    fn name(&self) -> &'static str {
        "lora_linear"
    }

    fn weights(&self) -> &'static [usize] {
        &[1, 2, 3]
    }

    fn check(&self, inputs: &[&Tensor]) -> Result<()> {
        check_linear(self.name(), inputs, inputs.get(4).copied())?;
        let (x, w, a, b) = (inputs[0], inputs[1], inputs[2], inputs[3]);
        let fits = a.cols() == x.cols() && b.shape() == [w.rows(), a.rows()];
        ensure(fits, self.name(), "a [r, K] and b [N, r]", inputs)?;
        match self.dropout {
            Some(d) if !(0.0..1.0).contains(&d.probability) => {
                Err(Error::Domain { op: self.name(), what: "dropout", value: d.probability, expected: "in [0, 1)" })
            }
            _ => Ok(()),
        }
    }

    fn cpu_forward(&self, inputs: &[&Tensor], _: &[bool]) -> (Tensor, Vec<Tensor>) {
        let (x, w, a, b) = (inputs[0], inputs[1], inputs[2], inputs[3]);
        let mut y = project(x, w, inputs.get(4).copied());
        let down = Tensor::cpu(project(&self.dropped(x), a, None), [x.rows(), a.rows()]);
        let dims = [x.rows(), b.rows(), b.cols()];
        gemm::linear(&mut y, down.raw(), b.raw(), dims, gemm::Store::AddScaled(self.scale));
        (Tensor::cpu(y, [x.rows(), w.rows()]), vec![down])
    }

    fn cpu_backward(&self, record: &Recorded, grad: &Tensor) -> Vec<Option<Tensor>> {
        let [x, w, a, b] = &record.inputs[..4] else { unreachable!("check counts the inputs") };
        let needs = &record.needs;
        let d_down = (needs[0] || needs[2]).then(|| input_gradient(None, grad, b, self.scale));
        let dx = needs[0].then(|| {
            let branch = input_gradient(None, d_down.as_ref().expect("computed for x"), a, 1.0);
            let branch = self.dropped(&branch);
            input_gradient(Some(branch), grad, w, 1.0)
        });
        let mut grads = vec![
            dx,
            needs[1].then(|| weight_gradient(grad, x, w, 1.0)),
            needs[2].then(|| weight_gradient(d_down.as_ref().expect("computed for a"), &self.dropped(x), a, 1.0)),
            needs[3].then(|| weight_gradient(grad, &record.kept[0], b, self.scale)),
        ];
        if let Some(&need) = needs.get(4) {
            grads.push(need.then(|| bias_gradient(grad)));
        }
        grads
    }

    fn portable(&self, inputs: &[burn::Tensor<2>]) -> Vec<burn::Tensor<2>> {
        let x = &inputs[0];
        let y = portable_linear(x, &inputs[1]);
        let y = if let Some(bias) = inputs.get(4) { y + bias.clone() } else { y };
        let dropped = match self.dropout {
            None => x.clone(),
            Some(d) => {
                let mut mask = vec![1.0; x.dims()[0] * x.dims()[1]];
                d.apply(&mut mask);
                x.clone() * portable::upload(mask, x.dims())
            }
        };
        let down = portable_linear(&dropped, &inputs[2]);
        vec![y + portable_linear(&down, &inputs[3]).mul_scalar(self.scale), down]
    }
}
