//! Small work beside the GPU's own stream.
//!
//! A thin product leaves most multiprocessors idle, and so does the wide one after it when there are few rows. Where they
//! read the same input, the thin one can run on a second stream meanwhile.

use std::ptr::{null, null_mut};

use cudarc::driver::sys::{CUgraphEdgeData, CUgraphNode, CUstream, CUstream_flags, CUstreamCaptureStatus};

use super::driver::cu;
use super::gpu::Gpu;
use crate::Result;

/// From here on, work of the second stream runs beside the GPU's; with the value's end they are one stream again.
///
/// The order of memory stays that of one stream only where buffers of the second one's work live until then.
pub(crate) struct SideStream {
    gpu: &'static Gpu,
    open: bool,
}

impl SideStream {
    /// Work of the second stream comes after all work so far.
    ///
    /// # Errors
    /// When the driver fails.
    pub(crate) fn begin(gpu: &'static Gpu) -> Result<Self> {
        gpu.order(gpu.stream, gpu.second)?;
        Ok(Self { gpu, open: true })
    }

    /// Work from now on comes after that of the second stream.
    ///
    /// # Errors
    /// When the driver fails.
    pub(crate) fn join(mut self) -> Result<()> {
        self.open = false;
        self.gpu.order(self.gpu.second, self.gpu.stream)
    }
}

impl Drop for SideStream {
    fn drop(&mut self) {
        if self.open {
            // Something failed on the way here; a capture that is not joined fails as well.
            let _ = self.gpu.order(self.gpu.second, self.gpu.stream);
        }
    }
}

impl Gpu {
    /// The stream for [`SideStream`]. Its blocks go first: there are few, and the GPU's stream fills the rest.
    pub(super) fn create_second() -> Result<CUstream> {
        let (mut least, mut greatest, mut stream) = (0, 0, null_mut());
        // SAFETY: writes two numbers; the context is current.
        unsafe { cu!(cuCtxGetStreamPriorityRange(&raw mut least, &raw mut greatest)) }?;
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle; the stream lives as long as the process.
        unsafe { cu!(cuStreamCreateWithPriority(&raw mut stream, flags, greatest)) }?;
        Ok(stream)
    }

    /// Work of `then` from now on comes after the work of `first` so far.
    pub(super) fn order(&self, first: CUstream, then: CUstream) -> Result<()> {
        let _turn = self.enter()?;
        let mark = self.mark_on(first)?;
        // SAFETY: event and stream are alive.
        let waits = unsafe { cu!(cuStreamWaitEvent(then, mark.0, 0)) };
        // A wait refers to the work that the event stood for when it was asked for; the event is free again.
        self.recycle(mark);
        waits
    }

    /// Whether what is captured next comes after more than one node of the graph.
    pub(super) fn joins(&self) -> Result<bool> {
        let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        let (mut id, mut graph, mut count) = (0, null_mut(), 0);
        let (mut nodes, mut edges): (*const CUgraphNode, *const CUgraphEdgeData) = (null(), null());
        // SAFETY: writes status, number, handle, and where two lists of `count` lie, which are not read.
        unsafe {
            cu!(cuStreamGetCaptureInfo_v3(
                self.stream,
                &raw mut status,
                &raw mut id,
                &raw mut graph,
                &raw mut nodes,
                &raw mut edges,
                &raw mut count
            ))
        }?;
        Ok(count > 1)
    }
}
