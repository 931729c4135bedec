//! The one door to the device.

use crate::request::{GenerateEvent, GenerateRequest, Generated, OptimReport, OptimStep, RuntimeSpec, RuntimeStats, Score, ScoreRequest, TrainReport, TrainRequest, TrainState};
use crate::Result;

/// Submits work to the thread that owns the device. Cheap to clone; the thread ends when the last clone is dropped.
#[derive(Clone)]
pub struct RuntimeHandle {}

/// A running generation. Dropping it cancels the request and frees its pages.
pub struct Generation {}

impl Generation {
    /// The next event; `None` after the last.
    pub fn next_event(&mut self) -> Option<GenerateEvent> { None }
    /// Waits for the end.
    pub fn collect(self) -> Result<Generated> { unreachable!() }
}

impl RuntimeHandle {
    /// Loads the models (calling `progress(done_tensors, total_tensors)`) and starts the device thread.
    pub fn start(spec: RuntimeSpec, progress: &dyn Fn(usize, usize)) -> Result<Self> { unreachable!() }
    /// Starts a generation.
    pub fn generate(&self, request: GenerateRequest) -> Result<Generation> { unreachable!() }
    /// Log-probabilities of given tokens.
    pub fn score(&self, request: ScoreRequest) -> Result<Score> { unreachable!() }
    /// One micro-batch: forward, loss and, when asked, backward; gradients accumulate.
    pub fn forward_backward(&self, request: TrainRequest) -> Result<TrainReport> { unreachable!() }
    /// Clip, AdamW, zero the gradients. On a non-finite norm nothing changes except that the gradients are dropped.
    pub fn optim_step(&self, step: OptimStep) -> Result<OptimReport> { unreachable!() }
    /// Makes the trained weights the ones that requests are answered with; returns their version.
    pub fn publish(&self) -> Result<u64> { unreachable!() }
    /// Trained weights and moments, copied to the host.
    pub fn export_state(&self) -> Result<TrainState> { unreachable!() }
    /// Puts back what [`RuntimeHandle::export_state`] gave (names and shapes must be the same set).
    pub fn restore_state(&self, state: TrainState) -> Result<()> { unreachable!() }
    /// Counters.
    pub fn stats(&self) -> Result<RuntimeStats> { unreachable!() }
}
