//! Rotary position embedding (<https://arxiv.org/abs/2104.09864>), halves rotated as Hugging Face does.

use std::sync::Arc;

use super::{Op, Recorded, ensure, ensure_index};
use crate::cpu::rows;
use crate::{Result, Tape, Tensor, portable};

/// Cosines and sines of every position that a model can see.
#[derive(Debug)]
pub struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// A table for `positions` positions. `inverse_frequencies` has one entry per pair of a head; cosines and sines are
    /// multiplied by `magnitude` (1 except for YaRN).
    ///
    /// Angles are products of f32 values, as in the implementations that models are trained with.
    #[must_use]
    pub fn new(inverse_frequencies: &[f32], positions: usize, magnitude: f32) -> Self {
        let half = inverse_frequencies.len();
        let angles = (0..positions).flat_map(|p| inverse_frequencies.iter().map(move |f| p as f32 * f));
        let (cos, sin) = angles.map(|a| (a.cos() * magnitude, a.sin() * magnitude)).unzip();
        Self { half, cos, sin }
    }

    /// Positions in the table.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    fn gather(&self, values: &[f32], positions: &[u32]) -> Vec<f32> {
        positions.iter().flat_map(|&p| &values[p as usize * self.half..][..self.half]).copied().collect()
    }
}

/// Rotates every head of every row by its position.
pub struct Rope {
    table: Arc<RopeTable>,
    positions: Arc<[u32]>,
}

/// Rotates x `[T, heads * 2 * half]`; `positions[t]` is row t's position in its sequence.
///
/// # Errors
/// A position outside the table, a width that is not a whole number of heads.
pub fn rope(tape: &mut Tape, x: &Tensor, table: &Arc<RopeTable>, positions: &Arc<[u32]>) -> Result<Tensor> {
    tape.apply(Rope { table: table.clone(), positions: positions.clone() }, &[x])
}

impl Rope {
    fn rotate(&self, x: &Tensor, sign: f32) -> Tensor {
        let mut y = x.raw().to_vec();
        let cos = self.table.gather(&self.table.cos, &self.positions);
        let sin = self.table.gather(&self.table.sin, &self.positions);
        rows::rope(&mut y, x.cols(), 2 * self.table.half, &cos, &sin, sign);
        Tensor::cpu(y, x.shape())
    }
}

impl Op for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn weights(&self) -> &'static [usize] {
        &[]
    }

    fn check(&self, inputs: &[&Tensor]) -> Result<()> {
        let x = inputs[0];
        let fits = x.rows() == self.positions.len() && x.cols().is_multiple_of(2 * self.table.half.max(1));
        ensure(fits, self.name(), "one position per row and whole heads", inputs)?;
        let limit = self.table.positions();
        self.positions.iter().try_for_each(|&p| ensure_index(self.name(), "position", p as usize, limit))
    }

    fn cpu_forward(&self, inputs: &[&Tensor], _: &[bool]) -> (Tensor, Vec<Tensor>) {
        (self.rotate(inputs[0], 1.0), vec![])
    }

    fn cpu_backward(&self, _: &Recorded, grad: &Tensor) -> Vec<Option<Tensor>> {
        vec![Some(self.rotate(grad, -1.0))]
    }

    fn portable(&self, inputs: &[burn::Tensor<2>]) -> Vec<burn::Tensor<2>> {
        let [t, width] = inputs[0].dims();
        let half = self.table.half;
        let factor = |values: &[f32]| {
            portable::upload(self.table.gather(values, &self.positions), [t, half]).reshape([t, 1, half])
        };
        let (cos, sin) = (factor(&self.table.cos), factor(&self.table.sin));
        let x = inputs[0].clone().reshape([t, width / (2 * half), 2 * half]);
        let a = x.clone().narrow(2, 0, half);
        let b = x.narrow(2, half, half);
        let rotated = vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin];
        vec![burn::Tensor::cat(rotated, 2).reshape([t, width])]
    }
}
