//! Dropout by a mask that needs no memory.

use crate::cpu::rows::for_row_blocks;
use crate::cpu::simd::{Simd, vectorized};
use crate::cuda::{self, Array};
use crate::rng::{PHILOX_BLOCK, philox_block};
use crate::{Result, Tensor};

/// Inverted dropout whose mask is a function of (key, element).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability that an element becomes zero, in `[0, 1)`.
    pub probability: f64,
    /// Names the mask: step, micro-batch and module.
    pub key: u64,
}

impl Dropout {
    /// What an element that stays is multiplied by, and the bound below which 32 random bits drop one.
    fn factors(self) -> (f32, u32) {
        ((1.0 / (1.0 - self.probability)) as f32, (self.probability * 2f64.powi(32)) as u32)
    }

    /// Zeros elements in place and multiplies the others by `1 / (1 - probability)`.
    pub(super) fn apply(self, x: &mut [f32]) {
        let (keep, bound) = self.factors();
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

/// The input of A, on the host.
pub(super) fn dropped(dropout: Option<Dropout>, x: &Tensor) -> Tensor {
    let Some(dropout) = dropout else { return x.clone() };
    let mut dropped = x.raw().to_vec();
    dropout.apply(&mut dropped);
    Tensor::cpu(dropped, x.shape())
}

/// The input of A, on a GPU.
pub(super) fn dropped_array(dropout: Option<Dropout>, x: &Array) -> Result<Array> {
    let Some(dropout) = dropout else { return Ok(x.clone()) };
    let (keep, bound) = dropout.factors();
    cuda::rows::dropout(x, dropout.key, bound, keep)
}
