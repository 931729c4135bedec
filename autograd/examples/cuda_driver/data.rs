//! Values on the host and on the GPU.

use autograd::Result;
use autograd::cuda::{Buffer, DType, Gpu};

/// Numbers in -1..1 that differ from call to call.
pub(crate) fn random(count: usize) -> Vec<f32> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static SEED: AtomicU64 = AtomicU64::new(1);
    let mut state = SEED.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Rounds to the nearest, ties to even.
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Values on the GPU in one of the two types, and as the GPU sees them.
pub(crate) struct Matrix {
    pub(crate) buffer: Buffer,
    pub(crate) values: Vec<f32>,
}

pub(crate) fn matrix(gpu: &'static Gpu, of: DType, count: usize) -> Result<Matrix> {
    let values = random(count);
    match of {
        DType::F32 => Ok(Matrix { buffer: gpu.upload(&values)?, values }),
        DType::Bf16 => {
            let bits: Vec<u16> = values.iter().map(|x| to_bf16(*x)).collect();
            Ok(Matrix { buffer: gpu.upload(&bits)?, values: bits.into_iter().map(from_bf16).collect() })
        }
    }
}

pub(crate) fn values(gpu: &'static Gpu, of: DType, buffer: &Buffer, count: usize) -> Result<Vec<f32>> {
    match of {
        DType::F32 => gpu.download(buffer, 0, count),
        DType::Bf16 => Ok(gpu.download(buffer, 0, count)?.into_iter().map(from_bf16).collect()),
    }
}

/// The largest difference over the largest value; NaN when one of them is.
pub(crate) fn error_of(got: &[f32], expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    let mut worst = 0.0;
    for (got, expected) in got.iter().zip(expected) {
        let difference = (f64::from(*got) - expected).abs();
        if difference.is_nan() {
            return f64::NAN;
        }
        worst = difference.max(worst);
    }
    if got.len() == expected.len() { worst / largest } else { f64::NAN }
}

pub(crate) fn same(got: &[f32], expected: &[f32]) -> std::result::Result<(), String> {
    match got.iter().zip(expected).position(|(a, b)| a != b) {
        None if got.len() == expected.len() => Ok(()),
        None => Err(format!("{} values instead of {}", got.len(), expected.len())),
        Some(i) => Err(format!("value {i} is {}, not {}", got[i], expected[i])),
    }
}
