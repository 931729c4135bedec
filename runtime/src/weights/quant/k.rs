//! The 256-element "K" formats: a block-wide half scale `d` (and `dmin`), and small integer scales for
//! every 16 or 32 elements.

use super::{blocks, half_at};

/// `d s q - dmin m`, q of 2 bits. Bytes: 16 of (s low nibble, m high nibble), 64 of q, d, dmin.
/// Each half of 128 elements uses 32 bytes of q; its j-th run of 32 elements is at bits 2j.
pub(super) fn q2(bytes: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<84, 256>(bytes, out) {
        let (scales, quants) = (&b[..16], &b[16..80]);
        let (d, dmin) = (half_at(b, 80), half_at(b, 82));
        for (group, y) in y.chunks_exact_mut(16).enumerate() {
            let (half, shift, side) = (group / 8, group % 8 / 2 * 2, group % 2);
            let scale = d * f32::from(scales[group] & 0xF);
            let min = dmin * f32::from(scales[group] >> 4);
            for (y, q) in y.iter_mut().zip(&quants[half * 32 + side * 16..]) {
                *y = scale * f32::from((q >> shift) & 3) - min;
            }
        }
    }
}

/// `d (s - 32) (q - 4)`, q of 3 bits, s of 6. Bytes: 32 of q's high bits, 64 of q's low two (as `q2`),
/// 12 of scales, d.
pub(super) fn q3(bytes: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<110, 256>(bytes, out) {
        let (high, quants, scales) = (&b[..32], &b[32..96], &b[96..108]);
        let d = half_at(b, 108);
        for (group, y) in y.chunks_exact_mut(16).enumerate() {
            let (half, shift, side) = (group / 8, group % 8 / 2 * 2, group % 2);
            let low = if group < 8 { scales[group] & 0xF } else { scales[group - 8] >> 4 };
            let top = (scales[8 + group % 4] >> (group / 4 * 2)) & 3;
            let scale = d * (f32::from(low | (top << 4)) - 32.0);
            let bits = quants[half * 32 + side * 16..].iter().zip(&high[side * 16..]);
            for (y, (q, h)) in y.iter_mut().zip(bits) {
                let q = ((q >> shift) & 3) | ((h >> (group / 2)) & 1) << 2;
                *y = scale * (f32::from(q) - 4.0);
            }
        }
    }
}

/// The j-th of 8 (scale, minimum) pairs, 6 bits each, packed in 12 bytes: the first four in the low bits
/// of bytes 0..4 and 4..8; the others as nibbles of bytes 8..12 with their top bits above the first four.
fn scale_and_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        ((packed[j + 4] & 0xF) | (packed[j - 4] >> 6 << 4), (packed[j + 4] >> 4) | (packed[j] >> 6 << 4))
    };
    (f32::from(scale), f32::from(min))
}

/// `d s q - dmin m`, q of 4 bits. Bytes: d, dmin, 12 of scales, 128 of q: of every 32 bytes the low
/// nibbles are one run of 32 elements and the high nibbles the next.
pub(super) fn q4(bytes: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<144, 256>(bytes, out) {
        let (d, dmin) = (half_at(b, 0), half_at(b, 2));
        let (scales, quants) = (&b[4..16], &b[16..]);
        for (run, y) in y.chunks_exact_mut(32).enumerate() {
            let (s, m) = scale_and_min(scales, run);
            let (scale, min) = (d * s, dmin * m);
            for (y, q) in y.iter_mut().zip(&quants[run / 2 * 32..]) {
                *y = scale * f32::from((q >> (run % 2 * 4)) & 0xF) - min;
            }
        }
    }
}

/// As `q4` with a fifth bit: bit `run` of 32 bytes that lie before the nibbles.
pub(super) fn q5(bytes: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<176, 256>(bytes, out) {
        let (d, dmin) = (half_at(b, 0), half_at(b, 2));
        let (scales, high, quants) = (&b[4..16], &b[16..48], &b[48..]);
        for (run, y) in y.chunks_exact_mut(32).enumerate() {
            let (s, m) = scale_and_min(scales, run);
            let (scale, min) = (d * s, dmin * m);
            for (y, (q, h)) in y.iter_mut().zip(quants[run / 2 * 32..].iter().zip(high)) {
                let q = ((q >> (run % 2 * 4)) & 0xF) | ((h >> run) & 1) << 4;
                *y = scale * f32::from(q) - min;
            }
        }
    }
}

/// `d s (q - 32)`, q of 6 bits, s signed bytes for every 16. Bytes: 128 of q's low nibbles, 64 of q's top
/// two bits, 16 of s, d. Each half of 128 elements is four runs of 32: runs 0 and 2 are the low and high
/// nibbles of the first 32 bytes, 1 and 3 those of the second; the top bits of run r are at 2r.
pub(super) fn q6(bytes: &[u8], out: &mut [f32]) {
    for (b, y) in blocks::<210, 256>(bytes, out) {
        let (low, high, scales) = (&b[..128], &b[128..192], &b[192..208]);
        let d = half_at(b, 208);
        for (group, y) in y.chunks_exact_mut(16).enumerate() {
            let (half, run, side) = (group / 8, group % 8 / 2, group % 2);
            let scale = d * f32::from(scales[group] as i8);
            let low = &low[half * 64 + run % 2 * 32 + side * 16..];
            let high = &high[half * 32 + side * 16..];
            for (y, (q, h)) in y.iter_mut().zip(low.iter().zip(high)) {
                let q = ((q >> (run / 2 * 4)) & 0xF) | ((h >> (run * 2)) & 3) << 4;
                *y = scale * (f32::from(q) - 32.0);
            }
        }
    }
}
