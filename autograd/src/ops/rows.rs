//! Picking rows.

use super::{Op, Recorded, ensure_index};
use crate::cuda::{self, rows::Segments};
use crate::{Index, Result, Tape, Tensor, reference};

/// Picks rows by index; an index may repeat.
pub struct SelectRows {
    rows: Index,
}

/// `y[i] = x[rows[i]]`.
///
/// # Errors
/// An index past the last row.
pub fn select_rows(tape: &mut Tape, x: &Tensor, rows: &Index) -> Result<Tensor> {
    tape.apply(SelectRows { rows: rows.clone() }, &[x])
}

impl Op for SelectRows {
    fn name(&self) -> &'static str {
        "select_rows"
    }

    fn weights(&self) -> Vec<usize> {
        vec![]
    }

    fn check(&self, inputs: &[&Tensor]) -> Result<()> {
        self.rows.places().try_for_each(|row| ensure_index(self.name(), "row", row, inputs[0].rows()))
    }

    fn cpu_forward(&self, inputs: &[&Tensor], _: &[bool]) -> (Tensor, Vec<Tensor>) {
        let (x, width) = (inputs[0].raw(), inputs[0].cols());
        let y = self.rows.places().flat_map(|r| &x[r * width..(r + 1) * width]).copied().collect();
        (Tensor::cpu(y, [self.rows.len(), width]), vec![])
    }

    fn cpu_backward(&self, record: &Recorded, grad: &Tensor) -> Vec<Option<Tensor>> {
        let shape @ [_, width] = record.inputs[0].shape();
        let mut dx = vec![0.0; shape[0] * width];
        for (r, g) in self.rows.places().zip(grad.raw().chunks_exact(width)) {
            for (d, g) in dx[r * width..].iter_mut().zip(g) {
                *d += g;
            }
        }
        vec![Some(Tensor::cpu(dx, shape))]
    }

    fn cuda_forward(&self, inputs: &[&Tensor], _: &[bool]) -> Result<(Tensor, Vec<Tensor>)> {
        let x = inputs[0];
        cuda::rows::check_width(self.name(), "the width", x.cols())?;
        let shape = [self.rows.len(), x.cols()];
        let y = cuda::rows::gather("select_rows_forward", x.array(), self.rows.on(x.array().gpu())?, shape)?;
        Ok((Tensor::cuda(y, shape), vec![]))
    }

    fn cuda_backward(&self, record: &Recorded, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let shape = record.inputs[0].shape();
        let segments = Segments::dense(self.rows.values(), shape[0]);
        let dx = cuda::rows::select_rows_backward(grad.array(), &segments, shape)?;
        Ok(vec![Some(Tensor::cuda(dx, shape))])
    }

    fn reference(&self, inputs: &[burn::Tensor<2>]) -> Vec<burn::Tensor<2>> {
        vec![inputs[0].clone().select(0, reference::indices(self.rows.places()))]
    }
}
