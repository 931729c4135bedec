//! Times of the GPU's own clock.

use std::ptr::null_mut;

use cudarc::driver::sys::{CUevent, CUevent_flags};

use super::driver::cu;
use super::gpu::Gpu;
use crate::Result;

/// A point in the order of the stream.
pub struct Event {
    gpu: &'static Gpu,
    event: CUevent,
}

// SAFETY: events may be used from every thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Gpu {
    /// The point after all work so far.
    ///
    /// # Errors
    /// When the driver fails, or inside a capture.
    pub fn event(&'static self) -> Result<Event> {
        let _turn = self.enter()?;
        self.refuse_capture("a time stamp")?;
        let mut event = null_mut();
        // SAFETY: writes one handle.
        unsafe { cu!(cuEventCreate(&raw mut event, CUevent_flags::CU_EVENT_DEFAULT as u32)) }?;
        let event = Event { gpu: self, event };
        // SAFETY: event and stream are alive.
        unsafe { cu!(cuEventRecord(event.event, self.stream)) }?;
        Ok(event)
    }
}

impl Event {
    /// Milliseconds from here to `later`; waits until the GPU is there.
    ///
    /// # Errors
    /// When work before `later` failed.
    pub fn elapsed_ms(&self, later: &Self) -> Result<f32> {
        let _turn = self.gpu.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: the event is alive.
        unsafe { cu!(cuEventSynchronize(later.event)) }?;
        // SAFETY: both events are alive and have passed; writes one number.
        unsafe { cu!(cuEventElapsedTime(&raw mut milliseconds, self.event, later.event)) }?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by cuEventCreate, destroyed once.
        unsafe { cudarc::driver::sys::cuEventDestroy_v2(self.event) };
    }
}
