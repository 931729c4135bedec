//! Root-mean-square normalization (<https://arxiv.org/abs/1910.07467>).

use super::{Op, Recorded, ensure};
use crate::cpu::rows;
use crate::{Result, Tape, Tensor, cuda};

/// RMSNorm over consecutive groups as wide as the weight.
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
}

/// `x / sqrt(mean(x^2) + eps) * w`: x `[T, H]`, w `[1, D]` where D divides H; D = head width normalizes each head.
///
/// # Errors
/// A width that the weight does not divide.
pub fn rms_norm(tape: &mut Tape, x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
    tape.apply(RmsNorm { eps }, &[x, w])
}

impl Op for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn weights(&self) -> Vec<usize> {
        vec![]
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn check(&self, inputs: &[&Tensor]) -> Result<()> {
        let w = inputs[1];
        let fits = w.rows() == 1 && w.cols() > 0 && inputs[0].cols().is_multiple_of(w.cols());
        ensure(fits, self.name(), "w [1, D] with D dividing the width of x", inputs)
    }

    fn cpu_forward(&self, inputs: &[&Tensor], _: &[bool]) -> (Tensor, Vec<Tensor>) {
        let mut y = vec![0.0; inputs[0].raw().len()];
        rows::rms_norm(&mut y, inputs[0].raw(), inputs[1].raw(), self.eps);
        (Tensor::cpu(y, inputs[0].shape()), vec![])
    }

    fn cpu_backward(&self, record: &Recorded, grad: &Tensor) -> Vec<Option<Tensor>> {
        let (x, w) = (&record.inputs[0], &record.inputs[1]);
        let mut dx = vec![0.0; x.raw().len()];
        let mut dw = record.needs[1].then(|| vec![0.0; w.cols()]);
        rows::rms_norm_backward(&mut dx, dw.as_deref_mut(), grad.raw(), x.raw(), w.raw(), self.eps);
        let dx = record.needs[0].then(|| Tensor::cpu(dx, x.shape()));
        vec![dx, dw.map(|d| Tensor::cpu(d, w.shape()))]
    }

    fn cuda_forward(&self, inputs: &[&Tensor], _: &[bool]) -> Result<(Tensor, Vec<Tensor>)> {
        let (x, w) = (inputs[0], inputs[1]);
        cuda::rows::check_width(self.name(), "the width of the norm", w.cols())?;
        let dims = [x.rows() * x.cols() / w.cols(), w.cols()];
        Ok((Tensor::cuda(cuda::rows::rms_norm(x.array(), w.array(), dims, self.eps)?, x.shape()), vec![]))
    }

    fn cuda_backward(&self, record: &Recorded, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (x, w) = (&record.inputs[0], &record.inputs[1]);
        let dims = [x.rows() * x.cols() / w.cols(), w.cols()];
        let arrays = [grad.array(), x.array(), w.array()];
        let (dx, dw) = cuda::rows::rms_norm_backward(arrays, dims, self.eps, record.needs[1])?;
        let dx = record.needs[0].then(|| Tensor::cuda(dx, x.shape()));
        Ok(vec![dx, dw.map(|d| Tensor::cuda(d, w.shape()))])
    }

    fn reference(&self, inputs: &[burn::Tensor<2>]) -> Vec<burn::Tensor<2>> {
        vec![reference_rms_norm(&inputs[0], &inputs[1], self.eps)]
    }
}

/// RMSNorm of consecutive groups as wide as `w` as a burn expression.
pub(super) fn reference_rms_norm(x: &burn::Tensor<2>, w: &burn::Tensor<2>, eps: f32) -> burn::Tensor<2> {
    let [t, h] = x.dims();
    let d = w.dims()[1];
    let x = x.clone().reshape([t * h / d, d]);
    let mean = x.clone().powi_scalar(2).mean_dim(1);
    let y = x * (mean + eps).sqrt().recip() * w.clone();
    y.reshape([t, h])
}
