//! Linear maps with what stands around them in a decoder layer.

use super::gpu::{self, Branches};
use super::{Linear, Projection, linear_of};
use crate::cuda::linear::{Accumulate, Columns};
use crate::cuda::skinny_gemm::{Down, ROWS, SkinnyGemm};
use crate::cuda::{Array, DType};
use crate::ops::{Op, rms_norm, swiglu};
use crate::{Device, Result, Tape, Tensor};

/// What happens before and after the maps of [`project_within`].
#[derive(Debug, Default, Clone, Copy)]
pub struct Epilogue<'a> {
    /// RMSNorm of the input: its weight `[1, K]` and epsilon.
    pub norm: Option<(&'a Tensor, f32)>,
    /// Added to the maps.
    pub residual: Option<&'a Tensor>,
    /// [`swiglu`] of the maps, which are gate and up.
    pub swiglu: bool,
}

/// [`super::project`] of the normed x, and SwiGLU of that, where `around` asks for them: the same as these ops one after
/// another. On a GPU, a few rows that no tape records take fewer kernels.
///
/// # Errors
/// What these ops refuse.
pub fn project_within(tape: &mut Tape, x: &Tensor, maps: &[Projection<'_>], around: Epilogue<'_>) -> Result<Tensor> {
    let (op, inputs) = linear_of(x, maps, around.residual);
    let recorded = inputs.iter().chain(around.norm.iter().map(|(w, _)| w)).any(|t| tape.tracks(t));
    let fused = matches!(x.device(), Device::Cuda(_)) && !recorded;
    if fused {
        op.check_all(&inputs)?;
        if let Some(y) = skinny_gemm(&op, &inputs, around)? {
            return Ok(y);
        }
    }
    let normed = around.norm.map(|(w, eps)| rms_norm(tape, x, w, eps)).transpose()?;
    let x = normed.as_ref().unwrap_or(x);
    if fused && around.swiglu {
        let (op, inputs) = linear_of(x, maps, around.residual);
        op.check_all(&inputs)?;
        return gpu::gated(&op, &inputs);
    }
    let y = super::project(tape, x, maps, around.residual)?;
    if around.swiglu { swiglu(tape, &y) } else { Ok(y) }
}

/// One kernel for the norm, all maps and what follows, and with branches one for all A and one for all B; none where the
/// kernel does not fit.
fn skinny_gemm(op: &Linear, inputs: &[&Tensor], around: Epilogue<'_>) -> Result<Option<Tensor>> {
    let (x, places) = (inputs[0], op.places());
    let [t, k] = x.shape();
    if t > ROWS {
        return Ok(None);
    }
    let width: usize = places.iter().map(|p| inputs[p.w].rows()).sum();
    let Some((w, bias)) = gpu::joined(&places, inputs) else { return Ok(None) };
    let branches = Branches::of(&places);
    let a = branches.joined(inputs);
    let norm_fits = around.norm.is_none_or(|(w, _)| w.shape() == [1, k]);
    if !norm_fits || (a.is_none() && !branches.is_empty()) {
        return Ok(None);
    }
    let gate = around.swiglu && branches.is_empty();
    let columns = if gate { width / 2 } else { width };
    let gpu = x.array().gpu();
    let y = Array::uninit(gpu, t * columns, DType::Bf16)?;
    let ranks = branches.ranks(inputs);
    let down = Tensor::cuda(Array::uninit(gpu, t * ranks, DType::Bf16)?, [t, ranks]);
    let product = SkinnyGemm {
        norm: around.norm.map(|(w, eps)| (w.array(), eps)),
        bias: bias.as_ref(),
        onto: around.residual.map_or(Accumulate::Nothing, |r| Accumulate::Other(r.array())),
        branches: a.as_ref().map(|a| Down { a, ranks, out: down.array() }),
        gate,
        ..SkinnyGemm::new(Columns::all(x.array(), k), &w, Columns::all(&y, columns), [t, width, k])
    };
    if !product.fits() {
        return Ok(None);
    }
    product.run()?;
    let (y, down) = (Tensor::cuda(y, [t, columns]), (!branches.is_empty()).then_some(&down));
    gpu::finish(y, down, &places, inputs, around.swiglu && !gate).map(Some)
}
