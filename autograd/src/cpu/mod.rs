//! Native f32 kernels for the host's cores.
//!
//! Invariant of every forward kernel here: the value computed for a token is a sequence of roundings that depends on
//! that token's inputs alone, not on the batch, the chunk or the thread count. So prefill, decode and the trainer's
//! forward give the same bits.

// Register tiles are small arrays that are walked together by index.
#![allow(clippy::needless_range_loop)]

use crate::capabilities::{BatchInvariance, Capabilities, HOST};

pub(crate) mod attention;
pub(crate) mod attention_backward;
pub(crate) mod gemm;
pub(crate) mod gemm_backward;
pub(crate) mod rows;
pub(crate) mod shared;
pub(crate) mod simd;

/// What the host's cores can do with these kernels.
pub(crate) const CAPABILITIES: Capabilities = Capabilities { batch_invariance: BatchInvariance::Always, ..HOST };
