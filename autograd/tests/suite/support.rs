//! Random tensors, comparisons, and a tensor's gradients on one device.

use std::sync::Arc;

use autograd::kv::{KvPool, KvShape, PagedBatch};
use autograd::ops::{QkRope, RopeTable};
use autograd::rng::uniform;
use autograd::{Device, Result, Tensor};

/// Values in `[-1, 1)`, a function of `key` alone.
pub(crate) fn random(len: usize, key: u64) -> Vec<f32> {
    (0..len).map(|i| (2.0 * uniform(key, 0, i as u64) - 1.0) as f32).collect()
}

/// Host values and how an op wants them.
#[derive(Clone)]
pub(crate) struct Operand {
    pub(crate) values: Vec<f32>,
    pub(crate) shape: [usize; 2],
    /// Multiplied by, so kept in the device's weight layout.
    pub(crate) weight: bool,
}

impl Operand {
    pub(crate) fn rows(shape: [usize; 2], key: u64) -> Self {
        Self { values: random(shape[0] * shape[1], key), shape, weight: false }
    }

    pub(crate) fn weight(shape: [usize; 2], key: u64) -> Self {
        Self { weight: true, ..Self::rows(shape, key) }
    }

    /// The same shape with every value times `factor`.
    pub(crate) fn times(mut self, factor: f32) -> Self {
        self.values.iter_mut().for_each(|v| *v *= factor);
        self
    }

    pub(crate) fn on(&self, device: Device) -> Tensor {
        let make = if self.weight { Tensor::weight } else { Tensor::new };
        make(device, self.values.clone(), self.shape).expect("the values fill the shape")
    }
}

/// Fails unless every value is finite and within `tolerance` times (its own size plus the reference's root mean square).
pub(crate) fn assert_close(what: &str, got: &[f32], want: &[f32], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let square: f64 = want.iter().map(|&w| f64::from(w).powi(2)).sum();
    let typical = (square / want.len().max(1) as f64).sqrt();
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - f64::from(w)).abs();
        let limit = tolerance * (f64::from(w).abs() + typical);
        assert!(error <= limit, "{what}[{i}]: {g} against {w}, {error:.3e} apart, allowed {limit:.3e}");
    }
}

/// Bits of the values, so that a comparison sees the sign of zero and never lets a NaN pass as equal.
pub(crate) fn bits(t: &Tensor) -> Vec<u32> {
    let values = t.to_vec();
    assert!(values.iter().all(|v| v.is_finite()), "a value is not finite");
    values.iter().map(|v| v.to_bits()).collect()
}

/// Sum of products in double precision.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// A rotation of the batch's rows, whose angles are multiples of `frequency`.
pub(crate) fn rope(shape: KvShape, batch: &PagedBatch, frequency: f32) -> QkRope {
    let table = Arc::new(RopeTable::new(&vec![frequency; shape.head_dim / 2], 1000, 1.0));
    QkRope { table, positions: batch.positions().clone(), heads: [shape.heads, shape.kv_heads], eps: 1e-5 }
}

/// Writes rows to pages as they are, without norm or rotation.
pub(crate) fn write(
    pool: &mut KvPool,
    shape: KvShape,
    layer: usize,
    qkv: &Tensor,
    batch: &PagedBatch,
) -> Result<Tensor> {
    pool.write(layer, rope(shape, batch, 0.0), qkv, None, batch)
}
