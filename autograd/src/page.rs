//! The size of a KV page.

use crate::cpu::simd::LANES;

/// Tokens of a page.
pub const PAGE_TOKENS: usize = LANES;
