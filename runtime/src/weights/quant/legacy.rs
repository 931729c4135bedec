//! The 32-element formats: a half-precision scale `d`, for `_1` a minimum `m`, and the integers.
//! Element `j` is in the low nibble of byte `j`, element `j + 16` in its high nibble; the fifth bit of
//! element `j` is bit `j` of a 32-bit word.

use super::{blocks, half_at};

/// Splits one block's nibbles, and fifth bits where `high` has them.
fn nibbles(quants: &[u8], high: u32, y: &mut [f32; 32], value: impl Fn(u32) -> f32) {
    for (j, &q) in quants.iter().enumerate() {
        let q = u32::from(q);
        y[j] = value((q & 0xF) | ((high >> j) & 1) << 4);
        y[j + 16] = value((q >> 4) | ((high >> (j + 16)) & 1) << 4);
    }
}

fn word_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// `d (q - 8)`; d, 16 bytes of nibbles.
pub(super) fn q4_0(bytes: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<18, 32>(bytes, out) {
        let d = half_at(b, 0);
        nibbles(&b[2..], 0, y, |q| (q as f32 - 8.0) * d);
    }
}

/// `d q + m`; d, m, 16 bytes of nibbles.
pub(super) fn q4_1(bytes: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<20, 32>(bytes, out) {
        let (d, m) = (half_at(b, 0), half_at(b, 2));
        nibbles(&b[4..], 0, y, |q| q as f32 * d + m);
    }
}

/// `d (q - 16)`; d, fifth bits, 16 bytes of nibbles.
pub(super) fn q5_0(bytes: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<22, 32>(bytes, out) {
        let d = half_at(b, 0);
        nibbles(&b[6..], word_at(b, 2), y, |q| (q as f32 - 16.0) * d);
    }
}

/// `d q + m`; d, m, fifth bits, 16 bytes of nibbles.
pub(super) fn q5_1(bytes: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<24, 32>(bytes, out) {
        let (d, m) = (half_at(b, 0), half_at(b, 2));
        nibbles(&b[8..], word_at(b, 4), y, |q| q as f32 * d + m);
    }
}

/// `d q`; d, 32 signed bytes.
pub(super) fn q8_0(bytes: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<34, 32>(bytes, out) {
        let d = half_at(b, 0);
        for (y, &q) in y.iter_mut().zip(&b[2..]) {
            *y = f32::from(q as i8) * d;
        }
    }
}
