//! Losses from hidden states on a GPU: f32 logits of a chunk of rows, one kernel over its rows, and their gradient in
//! bf16 for the products with head and hidden states.

use std::ops::Range;

use super::{HeadLoss, Recorded, RowLoss};
use crate::cuda::linear::{Accumulate, Columns, input_gradient, product, weight_gradient};
use crate::cuda::{Arg, Array, Buffer, DType, Gpu, rows as row_kernels};
use crate::{Result, Tensor};

/// Bytes of f32 logits held at a time, student and teacher together: large enough that a product with the head runs at
/// the GPU's rate.
const CHUNK_BYTES: usize = 2 << 30;
/// Threads of a row's block in every loss kernel.
const THREADS: u32 = 512;

/// Some rows of logits on a GPU and what becomes of them.
pub(in crate::ops) struct LogitChunk<'a> {
    /// The rows, counted over the whole batch.
    pub(in crate::ops) rows: Range<usize>,
    /// Number of logits of a row.
    pub(in crate::ops) vocab: usize,
    /// Values from one row to the next, in logits and in gradients.
    stride: usize,
    student: &'a Array,
    teacher: Option<&'a Array>,
    /// Weights of the batch's rows.
    weights: &'a Array,
    /// Where the rows' values go.
    values: Array,
    /// Where their weighted gradients go.
    gradient: Option<&'a Array>,
}

impl LogitChunk<'_> {
    pub(in crate::ops) fn gpu(&self) -> &'static Gpu {
        self.student.gpu()
    }

    /// The part of `values`, one a row of the batch, that belongs to these rows.
    pub(in crate::ops) fn upload<T: crate::cuda::Plain>(&self, values: &[T]) -> Result<Buffer> {
        self.gpu().upload(&values[self.rows.clone()])
    }

    /// `zs, stride` and, where there is a teacher, `zt, stride`; then `vocab`.
    pub(in crate::ops) fn logits(&self) -> Vec<Arg> {
        let stride = Arg::U64(self.stride as u64);
        let teacher = self.teacher.map(|t| [t.arg(), stride]).into_iter().flatten();
        [self.student.arg(), stride].into_iter().chain(teacher).chain([Arg::I32(self.vocab as i32)]).collect()
    }

    /// Where the rows' values go.
    pub(in crate::ops) fn values(&self) -> Arg {
        self.values.arg()
    }

    /// `weights, values, dz, stride`.
    pub(in crate::ops) fn results(&self) -> [Arg; 4] {
        let weights = self.weights.part(self.rows.start, self.rows.len());
        let gradient = self.gradient.map_or(Arg::Ptr(0), Array::arg);
        [weights.arg(), self.values.arg(), gradient, Arg::U64(self.stride as u64)]
    }

    /// Runs `kernel` on `count` of the rows of the teacher's logits from `first` on, a block a row: `zt, stride`, then `args`.
    pub(super) fn launch_rows(&self, kernel: &str, first: usize, count: usize, args: &[Arg]) -> Result<()> {
        let Some(teacher) = self.teacher else { return Ok(()) };
        let rows = teacher.part(first * self.stride, count * self.stride);
        let args = [&[rows.arg(), Arg::U64(self.stride as u64)], args].concat();
        self.gpu().launch(kernel, [count as u32, 1, 1], [THREADS, 1, 1], 0, &args)
    }

    /// Runs `kernel`, a block a row.
    pub(in crate::ops) fn launch(&self, kernel: &str, args: &[Arg]) -> Result<()> {
        self.gpu().launch(kernel, [self.rows.len() as u32, 1, 1], [THREADS, 1, 1], 0, args)
    }
}

fn columns(t: &Tensor) -> Columns<'_> {
    Columns::all(t.array(), t.cols())
}

/// Logits in f32, row after row; those from `ids` on are -inf.
pub(super) fn logits(hidden: &Tensor, head: &Tensor, ids: usize) -> Result<Tensor> {
    let dims = [hidden.rows(), head.rows(), hidden.cols()];
    let z = Array::uninit(hidden.array().gpu(), dims[0] * dims[1], DType::F32)?;
    product(Columns::all(&z, dims[1]), Accumulate::Nothing, [columns(hidden), columns(head)], None, dims, 1.0)?;
    if ids < dims[1] {
        let args = [z.arg(), Arg::U64(dims[1] as u64), Arg::I32(ids as i32), Arg::I32(dims[1] as i32)];
        z.gpu().launch("exclude_columns", [dims[0] as u32, 1, 1], [THREADS, 1, 1], 0, &args)?;
    }
    Ok(Tensor::cuda(z, [dims[0], dims[1]]))
}

/// Values from one row of logits to the next.
fn row_stride(vocab: usize) -> usize {
    vocab.next_multiple_of(8)
}

/// Rows whose logits are held at once.
fn chunk_rows(rows: usize, stride: usize, models: usize) -> usize {
    (CHUNK_BYTES / (stride * models * 4)).clamp(64, 8192).min(rows.max(1))
}

/// Bytes on a GPU that a loss of `rows` rows holds while it runs: f32 logits of `models` models (student, or student and
/// teacher) and the bf16 gradient of the student's.
#[must_use]
pub fn gpu_loss_bytes(rows: usize, vocab: usize, models: usize) -> usize {
    let stride = row_stride(vocab);
    chunk_rows(rows, stride, models) * stride * (4 * models + 2)
}

/// Keeps the rows' values, then the finished gradients of hidden states and head where they are needed.
pub(super) fn forward<R: RowLoss>(
    op: &HeadLoss<R>,
    inputs: &[&Tensor],
    needs: &[bool],
) -> Result<(Tensor, Vec<Tensor>)> {
    let (hidden, head) = (inputs[0], inputs[1]);
    let [t, v, h] = [hidden.rows(), op.ids, hidden.cols()];
    row_kernels::check_width(R::NAME, "the width of hidden states", h)?;
    let gpu = hidden.array().gpu();
    let gradient = needs.contains(&true);
    let stride = row_stride(v);
    let models = op.models(inputs.len());
    let chunk = chunk_rows(t, stride, models);
    let logits = |wanted: bool, dtype| wanted.then(|| Array::uninit(gpu, chunk * stride, dtype)).transpose();
    let student = Array::uninit(gpu, chunk * stride, DType::F32)?;
    let teacher = logits(models > 1, DType::F32)?;
    let dz = logits(gradient, DType::Bf16)?;
    let weights = Array::f32(gpu.info().ordinal, &op.weights)?;
    let values = Array::uninit(gpu, t * R::VALUES.len(), DType::F32)?;
    let dhidden = needs[0].then(|| Array::uninit(gpu, t * h, DType::Bf16)).transpose()?;
    // Padding has no gradient.
    let whole = if v == head.rows() { Array::uninit } else { Array::zeros };
    let dhead = needs[1].then(|| whole(gpu, head.rows() * h, DType::F32)).transpose()?;
    for first in (0..t).step_by(chunk) {
        let rows = first..(first + chunk).min(t);
        let dims = [rows.len(), v, h];
        let part = |x: &Tensor| x.array().part(first * x.cols(), rows.len() * x.cols());
        let multiply = |z: &Array, x: &Tensor, w: &Tensor| {
            let x = (part(x), x.cols());
            let dims = [rows.len(), v, x.1];
            product(
                Columns::all(z, stride),
                Accumulate::Nothing,
                [Columns::all(&x.0, x.1), columns(w)],
                None,
                dims,
                1.0,
            )
        };
        multiply(&student, hidden, head)?;
        if let (Some(z), [_, _, hidden, head]) = (&teacher, inputs) {
            multiply(z, hidden, head)?;
        }
        let chunk = LogitChunk {
            rows: rows.clone(),
            vocab: v,
            stride,
            student: &student,
            teacher: teacher.as_ref(),
            weights: &weights,
            values: values.part(first * R::VALUES.len(), rows.len() * R::VALUES.len()),
            gradient: dz.as_ref(),
        };
        if let Some(given) = &op.given {
            given.place(&chunk)?;
        }
        op.loss.launch(&chunk)?;
        let Some(dz) = &dz else { continue };
        let dz = Columns::all(dz, stride);
        if let Some(d) = &dhidden {
            let d = d.part(first * h, rows.len() * h);
            input_gradient(Columns::all(&d, h), Accumulate::Nothing, [dz, columns(head)], dims, 1.0)?;
        }
        if let Some(d) = &dhead {
            let onto = if first == 0 { Accumulate::Nothing } else { Accumulate::Output };
            weight_gradient(&d.part(0, v * h), onto, [dz, Columns::all(&part(hidden), h)], dims, 1.0)?;
        }
    }
    let losses = values.read()?;
    let losses = losses.iter().step_by(R::VALUES.len()).zip(&op.weights);
    let total: f64 = losses.map(|(&l, &w)| if w == 0.0 { 0.0 } else { f64::from(l) * f64::from(w) }).sum();
    let total = Array::f32(gpu.info().ordinal, &[total as f32])?;
    let mut kept = vec![Tensor::cuda(values, [t, R::VALUES.len()])];
    kept.extend(dhidden.map(|d| Tensor::cuda(d, hidden.shape())));
    kept.extend(dhead.map(|d| Tensor::cuda(d, head.shape())));
    Ok((Tensor::cuda(total, [1, 1]), kept))
}

/// The gradients that forward finished, times the gradient of the loss.
pub(super) fn backward(record: &Recorded, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let factor = grad.read()?[0];
    let mut finished = record.kept[1..].iter();
    let mut grads = vec![None; record.inputs.len()];
    for (slot, _) in grads.iter_mut().zip(&record.needs).filter(|(_, need)| **need) {
        let Some(g) = finished.next() else { break };
        let g =
            if factor == 1.0 { g.clone() } else { Tensor::cuda(row_kernels::scaled(g.array(), factor)?, g.shape()) };
        *slot = Some(g);
    }
    Ok(grads)
}
