//! Losses computed from hidden states through the output head, a chunk of rows at a time.
//!
//! A `[T, V]` matrix of logits never exists: a chunk's logits are formed, turned into its loss and its gradient, and
//! overwritten by the next chunk's. The gradients of hidden states and head are finished in the forward pass, so the
//! head is multiplied once.

mod gpu;
mod teacher_rows;

use std::collections::BTreeMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::linear::reference_linear;
use super::{Op, Recorded, ensure, ensure_index};
use crate::cpu::simd::LANES;
use crate::cpu::{gemm, gemm_backward};
pub(super) use gpu::LogitChunk;
pub use gpu::gpu_loss_bytes;
pub use teacher_rows::{LogitRows, Precision, Teacher, TeacherRows, TopRows};

use crate::{Device, Error, Result, Tape, Tensor, reference};

/// Named values, one per row.
pub type Rows = BTreeMap<&'static str, Vec<f32>>;

/// Bytes of logits held at a time, student and teacher together.
const CHUNK_BYTES: usize = 64 << 20;

/// Hidden states and the output head that makes logits of them.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// `[N, H]`
    pub hidden: &'a Tensor,
    /// `[V, H]`
    pub weight: &'a Tensor,
    /// Rows of the head that belong to tokens: the first ones. The others are padding, which is in no softmax.
    pub ids: usize,
}

impl<'a> From<[&'a Tensor; 2]> for Head<'a> {
    /// A head without padding.
    fn from([hidden, weight]: [&'a Tensor; 2]) -> Self {
        Self { hidden, weight, ids: weight.rows() }
    }
}

/// Logits `[T, V]` of hidden states in f32, for sampling: T is the number of sequences, not of tokens. Those of padding
/// are -inf.
///
/// # Errors
/// Shapes that do not fit.
pub fn logits<'a>(head: impl Into<Head<'a>>) -> Result<Tensor> {
    let Head { hidden, weight, ids } = head.into();
    check_heads("logits", &[hidden, weight], ids)?;
    if matches!(hidden.device(), Device::Cuda(_)) {
        return gpu::logits(hidden, weight, ids);
    }
    let logits = super::linear(&mut Tape::off(), hidden, weight, None)?;
    if ids == weight.rows() {
        return Ok(logits);
    }
    let (device, shape, mut values) = (logits.device(), logits.shape(), logits.read()?);
    values.chunks_mut(weight.rows()).for_each(|row| row[ids..].fill(f32::NEG_INFINITY));
    Tensor::new(device, values, shape)
}

/// A loss of one row of logits.
pub(super) trait RowLoss: Send + Sync + 'static {
    /// Name of the op.
    const NAME: &'static str;
    /// Names of the row's values; the first is the loss.
    const VALUES: &'static [&'static str];

    /// Rows it has data for; `None` when any number will do.
    fn rows(&self) -> Option<usize>;

    /// Ranges of constants and indices.
    fn check(&self, vocab: usize) -> Result<()>;

    /// Writes the row's values. With `gradient`, `student` ends as the gradient of the loss with respect to it.
    fn row(&self, row: usize, student: &mut [f32], teacher: &mut [f32], gradient: bool, values: &mut [f32]);

    /// [`RowLoss::row`] for a chunk of rows on a GPU.
    fn launch(&self, chunk: &LogitChunk<'_>) -> Result<()>;

    /// The rows' values `[T, VALUES]` as a burn expression of logits `[T, V]`.
    fn reference(&self, student: burn::Tensor<2>, teacher: Option<burn::Tensor<2>>) -> burn::Tensor<2>;
}

/// The weighted sum of a row loss.
pub(super) struct HeadLoss<R> {
    pub(super) loss: R,
    /// One per row.
    pub(super) weights: Vec<f32>,
    /// A teacher that is no input.
    pub(super) given: Option<Arc<TeacherRows>>,
    /// Rows of the heads that are compared: those of tokens.
    pub(super) ids: usize,
}

impl<R> HeadLoss<R> {
    /// A loss without given rows.
    pub(super) fn new(loss: R, weights: &[f32], ids: usize) -> Self {
        Self { loss, weights: weights.to_vec(), given: None, ids }
    }

    /// Models whose logits are held: the student, and a teacher of either kind.
    fn models(&self, inputs: usize) -> usize {
        inputs / 2 + usize::from(self.given.is_some())
    }
}

/// Runs a head loss on `[hidden, head]` or `[hidden, head, teacher hidden, teacher head]`.
pub(super) fn head_loss<R: RowLoss>(tape: &mut Tape, op: HeadLoss<R>, inputs: &[&Tensor]) -> Result<(Tensor, Rows)> {
    let (loss, kept) = tape.apply_keeping(op, inputs)?;
    let values = kept[0].read()?;
    let columns = R::VALUES.iter().enumerate();
    let rows = columns.map(|(c, &name)| (name, values.iter().skip(c).step_by(R::VALUES.len()).copied().collect()));
    Ok((loss, rows.collect()))
}

/// Checks `[hidden, head]` pairs whose first `ids` logits count.
fn check_heads(op: &'static str, inputs: &[&Tensor], ids: usize) -> Result<()> {
    for pair in inputs.chunks(2) {
        ensure(pair[0].cols() == pair[1].cols() && pair[1].rows() > 0, op, "hidden [T, H] and head [V, H]", inputs)?;
        ensure(ids > 0 && ids <= pair[1].rows(), op, "a head with a row for every token of the other", inputs)?;
    }
    if let [hidden, _, teacher_hidden, _] = inputs {
        ensure(hidden.rows() == teacher_hidden.rows(), op, "equal rows of student and teacher", inputs)?;
    }
    Ok(())
}

impl<R: RowLoss> Op for HeadLoss<R> {
    fn name(&self) -> &'static str {
        R::NAME
    }

    fn weights(&self) -> Vec<usize> {
        vec![1, 3]
    }

    fn check(&self, inputs: &[&Tensor]) -> Result<()> {
        check_heads(R::NAME, inputs, self.ids)?;
        let rows = inputs[0].rows();
        let fits = self.weights.len() == rows && self.loss.rows().is_none_or(|n| n == rows);
        ensure(fits, R::NAME, "one weight and one target per row", inputs)?;
        if let Some(given) = &self.given {
            given.check(R::NAME, rows, self.ids)?;
        }
        self.loss.check(self.ids)
    }

    /// Keeps the rows' values, then the finished gradients of hidden states and head where they are needed.
    fn cpu_forward(&self, inputs: &[&Tensor], needs: &[bool]) -> (Tensor, Vec<Tensor>) {
        let (hidden, head) = (inputs[0], inputs[1]);
        let (t, v, h) = (hidden.rows(), self.ids, hidden.cols());
        let tokens = tokens(head, v);
        let gradient = needs.contains(&true);
        let mut values = vec![0.0; t * R::VALUES.len()];
        let mut dhidden = needs[0].then(|| vec![0.0; t * h]);
        let mut dhead = needs[1].then(|| vec![0.0; head.raw().len()]);
        let models = self.models(inputs.len());
        let chunk = chunk_rows(t, v, models);
        let mut student = vec![0.0; chunk * v];
        let mut teacher = vec![0.0; if models > 1 { chunk * v } else { 0 }];
        for first in (0..t).step_by(chunk) {
            let n = chunk.min(t - first);
            let rows = first..first + n;
            chunk_logits(&mut student[..n * v], hidden, head, first, v);
            if let [_, _, teacher_hidden, teacher_head] = inputs {
                chunk_logits(&mut teacher[..n * v], teacher_hidden, teacher_head, first, v);
            }
            if let Some(given) = &self.given {
                given.fill(first, v, &student[..n * v], &mut teacher[..n * v]);
            }
            self.chunk(rows.clone(), &mut student, &mut teacher, v, gradient, &mut values);
            let dz = &student[..n * v];
            if let Some(d) = &mut dhidden {
                gemm_backward::input_gradient(&mut d[first * h..(first + n) * h], dz, tokens, [n, v, h], 1.0);
            }
            if let Some(d) = &mut dhead {
                let x = &hidden.raw()[first * h..(first + n) * h];
                gemm_backward::weight_gradient(&mut d[..tokens.len()], dz, x, [n, v, h], 1.0);
            }
        }
        let losses = values.iter().step_by(R::VALUES.len()).zip(&self.weights);
        let total: f64 = losses.map(|(&l, &w)| if w == 0.0 { 0.0 } else { f64::from(l) * f64::from(w) }).sum();
        let mut kept = vec![Tensor::cpu(values, [t, R::VALUES.len()])];
        kept.extend(dhidden.map(|d| Tensor::cpu(d, hidden.shape())));
        kept.extend(dhead.map(|d| Tensor::cpu_with_layout(d, head.shape(), head.layout())));
        (Tensor::cpu(vec![total as f32], [1, 1]), kept)
    }

    fn cpu_backward(&self, record: &Recorded, grad: &Tensor) -> Vec<Option<Tensor>> {
        let factor = grad.raw()[0];
        let mut finished = record.kept[1..].iter();
        let mut grads = vec![None; record.inputs.len()];
        for (slot, _) in grads.iter_mut().zip(&record.needs).filter(|(_, need)| **need) {
            *slot = finished.next().map(|g| {
                let scaled = g.raw().par_iter().map(|v| v * factor).collect();
                Tensor::cpu_with_layout(scaled, g.shape(), g.layout())
            });
        }
        grads
    }

    fn cuda_forward(&self, inputs: &[&Tensor], needs: &[bool]) -> Result<(Tensor, Vec<Tensor>)> {
        gpu::forward(self, inputs, needs)
    }

    fn cuda_backward(&self, record: &Recorded, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        gpu::backward(record, grad)
    }

    fn reference(&self, inputs: &[burn::Tensor<2>]) -> Vec<burn::Tensor<2>> {
        let logits = |pair: &[burn::Tensor<2>]| reference_linear(&pair[0], &pair[1].clone().narrow(0, 0, self.ids));
        let student = logits(&inputs[..2]);
        let teacher = (inputs.len() > 2).then(|| logits(&inputs[2..]));
        let teacher = teacher.or(self.given.as_ref().map(|given| given.reference(&student)));
        let values = self.loss.reference(student, teacher);
        let weights = reference::upload(self.weights.clone(), [self.weights.len(), 1]);
        let loss = (values.clone().narrow(1, 0, 1) * weights).sum().reshape([1, 1]);
        vec![loss, values]
    }
}

impl<R: RowLoss> HeadLoss<R> {
    /// Values and (weighted) gradients of the rows whose logits are in `student` and `teacher`.
    fn chunk(
        &self,
        rows: std::ops::Range<usize>,
        student: &mut [f32],
        teacher: &mut [f32],
        vocab: usize,
        gradient: bool,
        values: &mut [f32],
    ) {
        let width = R::VALUES.len();
        let values = values[rows.start * width..rows.end * width].par_chunks_mut(width);
        let work = |(i, (z, values)): (usize, (&mut [f32], &mut [f32])), teacher: &mut [f32]| {
            let row = rows.start + i;
            let weight = self.weights[row];
            self.loss.row(row, z, teacher, gradient && weight != 0.0, values);
            if gradient {
                if weight == 0.0 { z.fill(0.0) } else { crate::cpu::rows::scale_in_place(z, weight) }
            }
        };
        let students = student.par_chunks_mut(vocab);
        if teacher.is_empty() {
            students.zip(values).enumerate().for_each(|item| work(item, &mut []));
        } else {
            let teachers = teacher.par_chunks_mut(vocab);
            students.zip(values).enumerate().zip(teachers).for_each(|(item, teacher)| work(item, teacher));
        }
    }
}

/// Rows whose logits are held at once.
fn chunk_rows(rows: usize, vocab: usize, models: usize) -> usize {
    (CHUNK_BYTES / (vocab * models * size_of::<f32>()).max(1)).clamp(8, 256).min(rows.max(1))
}

/// The panels of the head that hold its first `ids` rows.
fn tokens(head: &Tensor, ids: usize) -> &[f32] {
    &head.raw()[..gemm::panels(ids) * head.cols() * LANES]
}

/// The first `ids` logits of rows `first..` into `out`.
fn chunk_logits(out: &mut [f32], hidden: &Tensor, head: &Tensor, first: usize, ids: usize) {
    let h = hidden.cols();
    let n = out.len() / ids;
    let dims = [n, ids, h];
    gemm::linear(out, &hidden.raw()[first * h..(first + n) * h], tokens(head, ids), dims, gemm::Store::Set);
}

/// Refuses a temperature that is not positive.
pub(super) fn check_temperature(op: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::Domain { op, what: "temperature", value, expected: "positive" })
}

/// Refuses targets outside the vocabulary.
pub(super) fn check_targets(op: &'static str, targets: &[u32], vocab: usize) -> Result<()> {
    targets.iter().try_for_each(|&t| ensure_index(op, "target", t as usize, vocab))
}
