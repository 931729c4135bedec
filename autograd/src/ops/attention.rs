//! Causal attention over packed sequences.

use std::sync::{Arc, OnceLock};

use super::{Op, Recorded, ensure};
use crate::cpu::attention::{Heads, Span, attend, pack_blocks};
use crate::cpu::attention_backward::{Saved, attend_backward};
use crate::cuda::attention::PackedArrays;
use crate::cuda::{self, Gpu};
use crate::{Error, Index, Result, Tape, Tensor, reference};

/// Where the sequences of a packed batch begin and end: `[0, len_0, len_0 + len_1, .., T]`.
#[derive(Debug, Clone)]
pub struct Sequences(Arc<Borders>);

#[derive(Debug)]
struct Borders {
    ends: Vec<usize>,
    positions: Index,
    /// What a GPU knows of them, once it was asked; heads of one width only.
    device: OnceLock<PackedArrays>,
}

impl Sequences {
    /// Borders of sequences with these lengths.
    #[must_use]
    pub fn from_lengths(lengths: &[usize]) -> Self {
        let mut end = 0;
        let ends = lengths.iter().map(|len| {
            end += len;
            end
        });
        let ends = std::iter::once(0).chain(ends).collect();
        let positions = lengths.iter().flat_map(|&len| 0..len as u32).collect();
        Self(Arc::new(Borders { ends, positions, device: OnceLock::new() }))
    }

    /// The borders, one more than there are sequences.
    #[must_use]
    pub fn borders(&self) -> &[usize] {
        &self.0.ends
    }

    /// Tokens of all sequences.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.0.positions.len()
    }

    fn on(&self, gpu: &'static Gpu, heads: Heads) -> Result<&PackedArrays> {
        if let Some(arrays) = self.0.device.get() {
            return Ok(arrays);
        }
        let arrays = PackedArrays::new(gpu, &self.0.ends, heads.dim)?;
        Ok(self.0.device.get_or_init(|| arrays))
    }

    /// Position of every row in its sequence.
    #[must_use]
    pub fn positions(&self) -> &Index {
        &self.0.positions
    }
}

/// `softmax(q k^T * scale) v`, causal within each sequence, with grouped key / value heads.
pub struct Attention {
    /// Borders of the packed sequences.
    pub sequences: Sequences,
    /// Query heads.
    pub heads: usize,
    /// Key / value heads; divides `heads`.
    pub kv_heads: usize,
    /// Factor on the scores, `1 / sqrt(head width)` in every supported model.
    pub scale: f32,
    /// Attend to this many last positions, the own one included; `None` attends to all.
    pub window: Option<usize>,
}

/// [`Attention`] on rows of queries, keys and values `[T, (heads + 2 kv_heads) * D]`; the output is `[T, heads * D]`.
///
/// # Errors
/// Shapes that do not fit, a window of zero.
pub fn attention(tape: &mut Tape, op: Attention, qkv: &Tensor) -> Result<Tensor> {
    tape.apply(op, &[qkv])
}

impl Attention {
    /// Heads of rows `[T, width]`.
    fn heads(&self, width: usize) -> Heads {
        let dim = width / (self.heads + 2 * self.kv_heads);
        Heads { query: self.heads, kv: self.kv_heads, dim, scale: self.scale, window: self.window }
    }
}

/// The columns of queries, keys and values of packed rows.
pub(crate) fn reference_parts(heads: Heads, qkv: &burn::Tensor<2>) -> [burn::Tensor<2>; 3] {
    let (q, kv) = (heads.query * heads.dim, heads.kv * heads.dim);
    [(0, q), (q, kv), (q + kv, kv)].map(|(first, width)| qkv.clone().narrow(1, first, width))
}

/// One sequence's attention as a burn expression: the last rows of `k` and `v` `[S, kv * D]` belong to the rows of `q`
/// `[T, heads * D]`. Returns the output and `ln sum exp(score)` per row and head.
pub(crate) fn reference_sequence(heads: Heads, [q, k, v]: [burn::Tensor<2>; 3]) -> [burn::Tensor<2>; 2] {
    let ([t, width], [s, _]) = (q.dims(), k.dims());
    let (d, kv, group) = (heads.dim, heads.kv, heads.query / heads.kv);
    let per_head = |x: burn::Tensor<2>| x.reshape([s, kv, d]).swap_dims(0, 1);
    let q = q.reshape([t, kv, group, d]).permute([1, 2, 0, 3]).reshape([kv, group * t, d]);
    let scores = q.matmul(per_head(k).swap_dims(1, 2)).mul_scalar(heads.scale);
    let scores = scores.reshape([kv, group, t, s]) + reference_mask(heads, t, s).reshape([1, 1, t, s]);
    let top = scores.clone().detach().max_dim(3);
    let exp = (scores - top.clone()).exp();
    let sum = exp.clone().sum_dim(3);
    let weights = (exp / sum.clone()).reshape([kv, group * t, s]);
    let out = weights.matmul(per_head(v)).reshape([kv, group, t, d]).permute([2, 0, 1, 3]);
    let log_sums = (top + sum.log()).permute([2, 0, 1, 3]);
    [out.reshape([t, width]), log_sums.reshape([t, heads.query])]
}

/// Zero where a row may look, very low elsewhere.
fn reference_mask(heads: Heads, t: usize, s: usize) -> burn::Tensor<2> {
    let hidden = |row: usize, j: usize| {
        let position = s - t + row;
        j > position || j < heads.first_visible(position)
    };
    let values = (0..t * s).map(|at| if hidden(at / s, at % s) { -1e30 } else { 0.0 }).collect();
    reference::upload(values, [t, s])
}

/// Refuses a window that hides a row's own position.
pub(crate) fn check_window(op: &'static str, window: Option<usize>) -> Result<()> {
    if window == Some(0) {
        return Err(Error::Domain { op, what: "window", value: 0.0, expected: "at least 1" });
    }
    Ok(())
}

/// The output, and what backward wants: the logarithms of the sums, and the output again.
fn with_kept(out: Tensor, log_sums: Option<Tensor>) -> (Tensor, Vec<Tensor>) {
    let kept = log_sums.map_or(vec![], |sums| vec![sums, out.clone()]);
    (out, kept)
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn weights(&self) -> Vec<usize> {
        vec![]
    }

    fn check(&self, inputs: &[&Tensor]) -> Result<()> {
        let qkv = inputs[0];
        let whole = self.kv_heads > 0
            && self.heads > 0
            && self.heads.is_multiple_of(self.kv_heads)
            && qkv.cols().is_multiple_of(self.heads + 2 * self.kv_heads);
        ensure(whole, self.name(), "whole heads [T, (heads + 2 kv_heads) * D], kv heads dividing heads", inputs)?;
        let rows = self.sequences.tokens();
        ensure(qkv.rows() == rows, self.name(), "as many rows as the sequences have tokens", inputs)?;
        check_window(self.name(), self.window)
    }

    fn cpu_forward(&self, inputs: &[&Tensor], needs: &[bool]) -> (Tensor, Vec<Tensor>) {
        let (qkv, heads) = (inputs[0], self.heads(inputs[0].cols()));
        let (blocks, tables) = pack_blocks(qkv.raw(), self.sequences.borders(), heads);
        let borders = self.sequences.borders().windows(2);
        let spans: Vec<Span<'_>> =
            borders.zip(&tables).map(|(w, table)| Span { row: w[0], len: w[1] - w[0], position: 0, table }).collect();
        let shape = [qkv.rows(), heads.query * heads.dim];
        let mut out = vec![0.0; shape[0] * shape[1]];
        let mut log_sums = needs[0].then(|| vec![0.0; qkv.rows() * self.heads]);
        attend(&mut out, log_sums.as_deref_mut(), qkv.raw(), &blocks, &spans, heads);
        let log_sums = log_sums.map(|l| Tensor::cpu(l, [qkv.rows(), self.heads]));
        with_kept(Tensor::cpu(out, shape), log_sums)
    }

    fn cpu_backward(&self, record: &Recorded, grad: &Tensor) -> Vec<Option<Tensor>> {
        let qkv = &record.inputs[0];
        let [log_sums, out] = [0, 1].map(|i| record.kept[i].raw());
        let saved = Saved { qkv: qkv.raw(), out, log_sums, dout: grad.raw() };
        let grads = attend_backward(&saved, self.sequences.borders(), self.heads(qkv.cols()));
        vec![Some(Tensor::cpu(grads, qkv.shape()))]
    }

    fn cuda_forward(&self, inputs: &[&Tensor], needs: &[bool]) -> Result<(Tensor, Vec<Tensor>)> {
        let (qkv, heads) = (inputs[0], self.heads(inputs[0].cols()));
        let gpu = qkv.array().gpu();
        let (out, log_sums) = cuda::attention::packed(qkv.array(), self.sequences.on(gpu, heads)?, heads, needs[0])?;
        let log_sums = log_sums.map(|l| Tensor::cuda(l, [qkv.rows(), self.heads]));
        Ok(with_kept(Tensor::cuda(out, [qkv.rows(), heads.query * heads.dim]), log_sums))
    }

    fn cuda_backward(&self, record: &Recorded, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let qkv = &record.inputs[0];
        let heads = self.heads(qkv.cols());
        let saved = [qkv, &record.kept[1], &record.kept[0], grad].map(Tensor::array);
        let borders = self.sequences.on(qkv.array().gpu(), heads)?;
        Ok(vec![Some(Tensor::cuda(cuda::attention::packed_backward(saved, borders, heads)?, qkv.shape()))])
    }

    fn reference(&self, inputs: &[burn::Tensor<2>]) -> Vec<burn::Tensor<2>> {
        let heads = self.heads(inputs[0].dims()[1]);
        let per_sequence = self.sequences.borders().windows(2).map(|w| {
            let rows = inputs[0].clone().narrow(0, w[0], w[1] - w[0]);
            reference_sequence(heads, reference_parts(heads, &rows))
        });
        let (out, log_sums): (Vec<_>, Vec<_>) = per_sequence.map(|[o, l]| (o, l)).unzip();
        let out = burn::Tensor::cat(out, 0);
        vec![out.clone(), burn::Tensor::cat(log_sums, 0), out]
    }
}
