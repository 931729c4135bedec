//! Copies between pinned host memory and the GPU, beside the GPU's own stream.

use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys::{CUstream, CUstream_flags};

use super::driver::cu;
use super::gpu::Gpu;
use super::pool::Buffer;
use super::staging::Pinned;
use crate::Result;

/// A stream for copies with memory of the GPU that they fill and empty, one after another.
pub(crate) struct CopyStream {
    gpu: &'static Gpu,
    stream: CUstream,
    buffer: Arc<Buffer>,
}

// SAFETY: the driver's handle may be used from every thread.
unsafe impl Send for CopyStream {}

impl CopyStream {
    /// A lane with `bytes` of the GPU's memory. Its copies come after the GPU's work so far.
    pub(crate) fn new(gpu: &'static Gpu, bytes: usize) -> Result<Self> {
        let buffer = Arc::new(gpu.alloc_lasting(bytes)?);
        let _turn = gpu.enter()?;
        let mut stream = null_mut();
        // SAFETY: writes one handle; the context is current.
        unsafe { cu!(cuStreamCreate(&raw mut stream, CUstream_flags::CU_STREAM_NON_BLOCKING as u32)) }?;
        let lane = Self { gpu, stream, buffer };
        lane.after_card()?;
        Ok(lane)
    }

    pub(crate) fn buffer(&self) -> &Arc<Buffer> {
        &self.buffer
    }

    /// Copies of the lane from now on come after the GPU's work so far.
    pub(crate) fn after_card(&self) -> Result<()> {
        self.order(self.gpu.stream, self.stream)
    }

    /// The GPU's work from now on comes after the copies of the lane so far.
    pub(crate) fn before_card(&self) -> Result<()> {
        self.order(self.stream, self.gpu.stream)
    }

    fn order(&self, first: CUstream, then: CUstream) -> Result<()> {
        let _turn = self.gpu.enter()?;
        self.gpu.refuse_capture("a copy beside the stream")?;
        self.gpu.order(first, then)
    }

    /// Bytes `at..at + bytes` of the host's memory to byte `to` of the lane's.
    pub(crate) fn fetch(&self, from: &Pinned, at: usize, to: usize, bytes: usize) -> Result<()> {
        let (source, target) = (from.at(at, bytes), self.buffer.at("fetch", to, bytes)?);
        let _turn = self.gpu.enter()?;
        // SAFETY: both ranges were checked, and both memories live until the copy is done (`Pinned` and `CopyStream` wait).
        unsafe { cu!(cuMemcpyHtoDAsync_v2(target, source.cast(), bytes, self.stream)) }
    }

    /// Bytes `from..from + bytes` of the lane's memory to byte `at` of the host's.
    pub(crate) fn store(&self, from: usize, to: &Pinned, at: usize, bytes: usize) -> Result<()> {
        let (source, target) = (self.buffer.at("store", from, bytes)?, to.at(at, bytes));
        let _turn = self.gpu.enter()?;
        // SAFETY: as in `fetch`.
        unsafe { cu!(cuMemcpyDtoHAsync_v2(target.cast(), source, bytes, self.stream)) }
    }
}

impl Drop for CopyStream {
    fn drop(&mut self) {
        // The buffer's next owner works on the GPU's stream. After an error nobody owns anything any more.
        let _ = self.before_card();
        // SAFETY: made by cuStreamCreate, destroyed once; the driver waits for its copies before it frees anything.
        let _ = self.gpu.enter().map(|_turn| unsafe { cudarc::driver::sys::cuStreamDestroy_v2(self.stream) });
    }
}
