//! Number formats of weight files: how many bytes hold how many elements, and how they become `f32`.
//!
//! Layouts are those of ggml (`ggml-common.h` in <https://github.com/ggml-org/ggml>); a *block* is the
//! smallest run of elements that can be decoded alone.

mod float;
mod k;
mod legacy;

/// One way of storing numbers.
#[derive(Debug)]
pub(super) struct Format {
    pub(super) name: &'static str,
    /// Type number in a GGUF tensor header.
    ggml_id: u32,
    /// Elements of one block.
    pub(super) block_len: usize,
    /// Bytes of one block.
    pub(super) block_bytes: usize,
    /// Decodes whole blocks: `bytes.len() / block_bytes == out.len() / block_len`.
    decode: fn(bytes: &[u8], out: &mut [f32]),
}

const fn format(
    name: &'static str,
    ggml_id: u32,
    (block_len, block_bytes): (usize, usize),
    decode: fn(&[u8], &mut [f32]),
) -> Format {
    Format { name, ggml_id, block_len, block_bytes, decode }
}

pub(super) static F32: Format = format("F32", 0, (1, 4), float::f32);
pub(super) static F16: Format = format("F16", 1, (1, 2), float::f16);
pub(super) static BF16: Format = format("BF16", 30, (1, 2), float::bf16);

static QUANTIZED: [Format; 10] = [
    format("Q4_0", 2, (32, 18), legacy::q4_0),
    format("Q4_1", 3, (32, 20), legacy::q4_1),
    format("Q5_0", 6, (32, 22), legacy::q5_0),
    format("Q5_1", 7, (32, 24), legacy::q5_1),
    format("Q8_0", 8, (32, 34), legacy::q8_0),
    format("Q2_K", 10, (256, 84), k::q2),
    format("Q3_K", 11, (256, 110), k::q3),
    format("Q4_K", 12, (256, 144), k::q4),
    format("Q5_K", 13, (256, 176), k::q5),
    format("Q6_K", 14, (256, 210), k::q6),
];

impl Format {
    /// All formats a GGUF tensor may have here.
    pub(super) fn all() -> impl Iterator<Item = &'static Format> {
        [&F32, &F16, &BF16].into_iter().chain(&QUANTIZED)
    }

    pub(super) fn from_ggml(id: u32) -> Option<&'static Format> {
        Self::all().find(|f| f.ggml_id == id)
    }

    /// Bytes of `len` elements; `None` if they are not whole blocks or overflow.
    pub(super) fn bytes_for(&self, len: usize) -> Option<usize> {
        len.is_multiple_of(self.block_len).then_some(len / self.block_len)?.checked_mul(self.block_bytes)
    }

    /// Decodes `bytes` to exactly `out.len()` elements.
    pub(super) fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(Some(bytes.len()), self.bytes_for(out.len()), "{} blocks", self.name);
        (self.decode)(bytes, out);
    }
}

/// Pairs each block's bytes with its place in the output.
fn blocks<'a, const BYTES: usize, const LEN: usize>(
    bytes: &'a [u8],
    out: &'a mut [f32],
) -> impl Iterator<Item = (&'a [u8; BYTES], &'a mut [f32; LEN])> {
    bytes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<LEN>().0)
}

/// The little-endian half at `at`.
fn half_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}
