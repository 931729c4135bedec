//! Rotary position embedding (<https://arxiv.org/abs/2104.09864>), halves rotated as Hugging Face does.

use std::ops::Range;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::{Op, Recorded, ensure, ensure_index};
use crate::cpu::rows;
use crate::cuda::{self, Array, Gpu, attention::Pages, rows::Rotation};
use crate::{Index, Result, Tape, Tensor, reference};

/// Cosines and sines of the positions that a model can see. On the host they are computed as far as they are used.
#[derive(Debug)]
pub struct RopeTable {
    inverse_frequencies: Vec<f32>,
    magnitude: f32,
    positions: usize,
    /// Blocks of [`BLOCK`] positions, from the first one on.
    blocks: RwLock<Vec<Arc<[Vec<f32>; 2]>>>,
    /// Those of all positions on a GPU, once an op has asked for them.
    device: OnceLock<[Array; 2]>,
}

/// Positions that the host computes at once.
const BLOCK: usize = 1024;

impl RopeTable {
    /// A table for `positions` positions. `inverse_frequencies` has one entry per pair of a head; cosines and sines are
    /// multiplied by `magnitude` (1 except for YaRN).
    ///
    /// Angles are products of f32 values, as in the implementations that models are trained with.
    #[must_use]
    pub fn new(inverse_frequencies: &[f32], positions: usize, magnitude: f32) -> Self {
        let inverse_frequencies = inverse_frequencies.to_vec();
        Self { inverse_frequencies, magnitude, positions, blocks: RwLock::default(), device: OnceLock::new() }
    }

    /// Positions in the table.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Positions that the host has computed once the first `used` ones were asked for.
    #[must_use]
    pub fn on_host(used: usize) -> usize {
        used.div_ceil(BLOCK).saturating_mul(BLOCK)
    }

    fn half(&self) -> usize {
        self.inverse_frequencies.len()
    }

    /// Cosines and sines of a range of positions.
    fn compute(&self, positions: Range<usize>) -> [Vec<f32>; 2] {
        let angles = positions.flat_map(|p| self.inverse_frequencies.iter().map(move |f| p as f32 * f));
        let (cos, sin) = angles.map(|a| (a.cos() * self.magnitude, a.sin() * self.magnitude)).unzip();
        [cos, sin]
    }

    fn on(&self, gpu: &'static Gpu) -> Result<&[Array; 2]> {
        if let Some(arrays) = self.device.get() {
            return Ok(arrays);
        }
        let [cos, sin] = self.compute(0..self.positions);
        let arrays = [Array::f32(gpu.info().ordinal, &cos)?, Array::f32(gpu.info().ordinal, &sin)?];
        Ok(self.device.get_or_init(|| arrays))
    }

    /// The first blocks, at least `count` of them.
    fn blocks(&self, count: usize) -> Vec<Arc<[Vec<f32>; 2]>> {
        let there = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        if there.len() >= count {
            return there.clone();
        }
        drop(there);
        let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        while blocks.len() < count {
            let first = blocks.len() * BLOCK;
            let block = self.compute(first..first + BLOCK);
            blocks.push(Arc::new(block));
        }
        blocks.clone()
    }

    /// Cosines and sines of each of `positions`.
    fn gather(&self, positions: &Index) -> [Vec<f32>; 2] {
        let blocks = self.blocks(positions.places().max().map_or(0, |last| last / BLOCK + 1));
        let half = self.half();
        [0, 1].map(|which| {
            let row = |p: usize| blocks[p / BLOCK][which][p % BLOCK * half..][..half].iter();
            positions.places().flat_map(row).copied().collect()
        })
    }
}

/// Normalizes and rotates the query and key heads of rows of queries, keys and values.
pub struct QkRope {
    /// Cosines and sines.
    pub table: Arc<RopeTable>,
    /// Each row's position in its sequence.
    pub positions: Index,
    /// Query heads and key heads; value heads are as many as key heads.
    pub heads: [usize; 2],
    /// Added to the mean square of a head where heads are normalized.
    pub eps: f32,
}

/// [`QkRope`] on qkv `[T, (heads + 2 kv_heads) * D]`: RMSNorm of every query and key head by `norms` (`[1, D]` each)
/// where the family has them, then the rotation by the row's position. Values pass.
///
/// # Errors
/// A position outside the table, widths that do not fit.
pub fn qk_rope(tape: &mut Tape, op: QkRope, qkv: &Tensor, norms: Option<[&Tensor; 2]>) -> Result<Tensor> {
    match norms {
        None => tape.apply(op, &[qkv]),
        Some([q, k]) => tape.apply(op, &[qkv, q, k]),
    }
}

impl QkRope {
    /// Columns of the query heads and of the key heads.
    fn columns(&self) -> [Range<usize>; 2] {
        let dim = 2 * self.table.half();
        let [q, k] = self.heads.map(|n| n * dim);
        [0..q, q..q + k]
    }

    fn row_len(&self) -> usize {
        (self.heads[0] + 2 * self.heads[1]) * 2 * self.table.half()
    }

    fn rotation<'a>(&'a self, gpu: &'static Gpu, norms: &[&'a Array]) -> Result<Rotation<'a>> {
        let [cosines, sines] = self.table.on(gpu)?;
        Ok(Rotation {
            rows: self.positions.len(),
            heads: self.heads,
            dim: 2 * self.table.half(),
            eps: self.eps,
            positions: self.positions.on(gpu)?,
            cosines,
            sines,
            norms: norms.as_array().map(|[q, k]| [*q, *k]),
        })
    }

    fn on_gpu(&self, inputs: &[&Tensor], pages: Option<&Pages<'_>>) -> Result<Tensor> {
        let x = inputs[0].array();
        cuda::rows::check_width(self.name(), "half a head", self.table.half())?;
        let norms: Vec<&Array> = inputs[1..].iter().map(|w| w.array()).collect();
        Ok(Tensor::cuda(self.rotation(x.gpu(), &norms)?.forward(x, pages)?, inputs[0].shape()))
    }

    /// [`qk_rope`] on a GPU; keys and values go to their pages too.
    pub(crate) fn paged(&self, qkv: &Tensor, norms: Option<[&Tensor; 2]>, pages: &Pages<'_>) -> Result<Tensor> {
        let inputs: Vec<&Tensor> = std::iter::once(qkv).chain(norms.into_iter().flatten()).collect();
        self.check_all(&inputs)?;
        self.on_gpu(&inputs, Some(pages))
    }

    fn rotate(&self, y: &mut [f32], sign: f32) {
        let [cos, sin] = self.table.gather(&self.positions);
        let widths = [self.row_len(), self.columns()[1].end];
        rows::rope(y, widths, [&cos, &sin], self.table.half(), sign);
    }
}

impl Op for QkRope {
    fn name(&self) -> &'static str {
        "qk_rope"
    }

    fn weights(&self) -> Vec<usize> {
        vec![]
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn check(&self, inputs: &[&Tensor]) -> Result<()> {
        let x = inputs[0];
        let fits = x.rows() == self.positions.len() && x.cols() == self.row_len();
        ensure(fits, self.name(), "one position per row and rows [T, (heads + 2 kv_heads) * D]", inputs)?;
        let narrow = inputs[1..].iter().all(|w| w.shape() == [1, 2 * self.table.half()]);
        ensure(narrow, self.name(), "norms [1, D]", inputs)?;
        let limit = self.table.positions();
        self.positions.places().try_for_each(|p| ensure_index(self.name(), "position", p, limit))
    }

    fn cpu_forward(&self, inputs: &[&Tensor], _: &[bool]) -> (Tensor, Vec<Tensor>) {
        let (x, width) = (inputs[0].raw(), self.row_len());
        let mut y = x.to_vec();
        if inputs.len() > 1 {
            rows::for_row_blocks(&mut y, width, |first, part| {
                for (y, x) in part.chunks_exact_mut(width).zip(x[first * width..].chunks_exact(width)) {
                    for (columns, w) in self.columns().into_iter().zip(&inputs[1..]) {
                        rows::rms_norm_block(&mut y[columns.clone()], &x[columns], w.raw(), self.eps);
                    }
                }
            });
        }
        self.rotate(&mut y, 1.0);
        (Tensor::cpu(y, inputs[0].shape()), vec![])
    }

    fn cpu_backward(&self, record: &Recorded, grad: &Tensor) -> Vec<Option<Tensor>> {
        let (x, width) = (record.inputs[0].raw(), self.row_len());
        let mut dy = grad.raw().to_vec();
        self.rotate(&mut dy, -1.0);
        let norms = &record.inputs[1..];
        if norms.is_empty() {
            return vec![Some(Tensor::cpu(dy, grad.shape()))];
        }
        let mut dx = dy.clone();
        rows::for_row_blocks(&mut dx, width, |first, part| {
            let rows = dy[first * width..].chunks_exact(width).zip(x[first * width..].chunks_exact(width));
            for (dx, (dy, x)) in part.chunks_exact_mut(width).zip(rows) {
                for (c, w) in self.columns().into_iter().zip(norms) {
                    rows::rms_norm_input_gradient(&mut dx[c.clone()], &dy[c.clone()], &x[c], w.raw(), self.eps);
                }
            }
        });
        let mut grads = vec![record.needs[0].then(|| Tensor::cpu(dx, grad.shape()))];
        for ((columns, w), need) in self.columns().into_iter().zip(norms).zip(&record.needs[1..]) {
            grads.push(need.then(|| {
                let mut dw = vec![0.0; w.cols()];
                for (dy, x) in dy.chunks_exact(width).zip(x.chunks_exact(width)) {
                    rows::rms_norm_weight_gradient(&mut dw, &dy[columns.clone()], &x[columns.clone()], self.eps);
                }
                Tensor::cpu(dw, w.shape())
            }));
        }
        grads
    }

    fn cuda_forward(&self, inputs: &[&Tensor], _: &[bool]) -> Result<(Tensor, Vec<Tensor>)> {
        Ok((self.on_gpu(inputs, None)?, vec![]))
    }

    fn cuda_backward(&self, record: &Recorded, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let x = record.inputs[0].array();
        let norms: Vec<&Array> = record.inputs[1..].iter().map(Tensor::array).collect();
        let wanted = record.needs[1..].contains(&true);
        let (dx, dnorms) = self.rotation(x.gpu(), &norms)?.backward(grad.array(), x, wanted)?;
        let mut grads = vec![record.needs[0].then(|| Tensor::cuda(dx, grad.shape()))];
        let dnorms = dnorms.map_or(vec![None; norms.len()], |d| d.into_iter().map(Some).collect());
        for ((d, w), need) in dnorms.into_iter().zip(&record.inputs[1..]).zip(&record.needs[1..]) {
            grads.push(d.filter(|_| *need).map(|d| Tensor::cuda(d, w.shape())));
        }
        Ok(grads)
    }

    fn reference(&self, inputs: &[burn::Tensor<2>]) -> Vec<burn::Tensor<2>> {
        let (t, half) = (inputs[0].dims()[0], self.table.half());
        let factor = |values: Vec<f32>| reference::upload(values, [t, half]).reshape([t, 1, half]);
        let [cos, sin] = self.table.gather(&self.positions).map(factor);
        // burn has no empty columns, which there are when nothing but queries is rotated.
        let there = self.columns().into_iter().enumerate().filter(|(_, columns)| !columns.is_empty());
        let rotated = there.map(|(i, columns)| {
            let part = inputs[0].clone().narrow(1, columns.start, columns.len());
            let part = match inputs.get(1 + i) {
                Some(w) => super::rms_norm::reference_rms_norm(&part, w, self.eps),
                None => part,
            };
            let x = part.reshape([t, columns.len() / (2 * half), 2 * half]);
            let a = x.clone().narrow(2, 0, half);
            let b = x.narrow(2, half, half);
            let halves = vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos.clone() + a * sin.clone()];
            burn::Tensor::cat(halves, 2).reshape([t, columns.len()])
        });
        let first = self.columns()[1].end;
        let values = (first < self.row_len()).then(|| inputs[0].clone().narrow(1, first, self.row_len() - first));
        vec![burn::Tensor::cat(rotated.chain(values).collect(), 1)]
    }
}
