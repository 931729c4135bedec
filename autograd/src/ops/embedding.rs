//! Token embedding.

use rayon::prelude::*;

use super::{Op, Recorded, ensure_index};
use crate::cpu::{gemm, simd::LANES};
use crate::cuda::{self, rows::Segments};
use crate::{Index, Result, Tape, Tensor, reference};

/// Looks up rows of a weight by token id.
pub struct Embedding {
    ids: Index,
}

/// Rows `ids` of the weight `table` `[V, H]`, as `[T, H]`.
///
/// # Errors
/// An id outside the table.
pub fn embedding(tape: &mut Tape, table: &Tensor, ids: &Index) -> Result<Tensor> {
    tape.apply(Embedding { ids: ids.clone() }, &[table])
}

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn weights(&self) -> Vec<usize> {
        vec![0]
    }

    fn check(&self, inputs: &[&Tensor]) -> Result<()> {
        self.ids.places().try_for_each(|id| ensure_index(self.name(), "token id", id, inputs[0].rows()))
    }

    fn cpu_forward(&self, inputs: &[&Tensor], _: &[bool]) -> (Tensor, Vec<Tensor>) {
        let (table, width) = (inputs[0].raw(), inputs[0].cols());
        let mut y = vec![0.0; self.ids.len() * width];
        for (row, id) in y.chunks_exact_mut(width).zip(self.ids.places()) {
            gemm::unpack_row(table, id, row);
        }
        (Tensor::cpu(y, [self.ids.len(), width]), vec![])
    }

    fn cpu_backward(&self, record: &Recorded, grad: &Tensor) -> Vec<Option<Tensor>> {
        let table = &record.inputs[0];
        let width = table.cols();
        let mut by_panel: Vec<(usize, usize)> = self.ids.places().enumerate().map(|(row, id)| (id, row)).collect();
        // Stable by id, so the rows of one token are added in their order of appearance.
        by_panel.sort();
        let mut d = vec![0.0; table.raw().len()];
        let panel_len = width * LANES;
        d.par_chunks_mut(panel_len).enumerate().for_each(|(p, panel)| {
            let from = by_panel.partition_point(|&(id, _)| id < p * LANES);
            for &(id, row) in by_panel[from..].iter().take_while(|&&(id, _)| id < (p + 1) * LANES) {
                let g = &grad.raw()[row * width..(row + 1) * width];
                for (lanes, g) in panel.chunks_exact_mut(LANES).zip(g) {
                    lanes[id % LANES] += g;
                }
            }
        });
        vec![Some(Tensor::cpu_with_layout(d, table.shape(), table.layout()))]
    }

    fn cuda_forward(&self, inputs: &[&Tensor], _: &[bool]) -> Result<(Tensor, Vec<Tensor>)> {
        let table = inputs[0];
        cuda::rows::check_width(self.name(), "the width", table.cols())?;
        let shape = [self.ids.len(), table.cols()];
        let ids = self.ids.on(table.array().gpu())?;
        Ok((Tensor::cuda(cuda::rows::gather("embedding_forward", table.array(), ids, shape)?, shape), vec![]))
    }

    fn cuda_backward(&self, record: &Recorded, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let shape = record.inputs[0].shape();
        let segments = Segments::distinct(self.ids.values());
        let d = cuda::rows::embedding_backward(grad.array(), &segments, shape)?;
        Ok(vec![Some(Tensor::cuda(d, shape))])
    }

    fn reference(&self, inputs: &[burn::Tensor<2>]) -> Vec<burn::Tensor<2>> {
        vec![inputs[0].clone().select(0, reference::indices(self.ids.places()))]
    }
}
