//! Plain floats, little-endian.

use super::blocks;

pub(super) fn f32(bytes: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<4, 1>(bytes, out) {
        y[0] = f32::from_le_bytes(*b);
    }
}

pub(super) fn f16(bytes: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<2, 1>(bytes, out) {
        y[0] = half::f16::from_le_bytes(*b).to_f32();
    }
}

pub(super) fn bf16(bytes: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<2, 1>(bytes, out) {
        y[0] = half::bf16::from_le_bytes(*b).to_f32();
    }
}
