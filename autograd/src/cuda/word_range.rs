//! Numbers that kernels look things up by.

use std::sync::Arc;

use super::Buffer;

/// Words of 32 bits in GPU memory.
#[derive(Debug, Clone)]
pub(crate) struct WordRange {
    pub(crate) buffer: Arc<Buffer>,
    /// Bytes before the first word.
    pub(crate) offset: usize,
}

impl WordRange {
    pub(crate) fn ptr(&self) -> u64 {
        self.buffer.ptr() + self.offset as u64
    }
}
