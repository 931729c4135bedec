//! Gauges and counters of the runtime.

use std::collections::BTreeMap;

use super::ModelId;

/// The state of the runtime after the newest step; reading it does not wait for the device thread.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Every model of now: base models and adapters.
    pub models: BTreeMap<ModelId, ModelSnapshot>,
}

/// One model of a [`Snapshot`].
#[derive(Debug, Clone, Copy)]
pub struct ModelSnapshot {
    /// The base model: itself, or that of an adapter.
    pub base: ModelId,
    /// Version of the weights that requests run with.
    pub version: u64,
    /// Its scheduler, which a base model and the adapters on it share.
    pub scheduler: crate::scheduler::SchedulerStats,
}

/// Counters of now.
#[derive(Debug, Clone, Default)]
pub struct RuntimeStats {
    /// By base model; those of adapters are part of their base's.
    pub models: BTreeMap<ModelId, ModelStats>,
    /// The GPU, when that is the device.
    pub gpu: Option<GpuStats>,
}

/// Counters and gauges of a base model with the adapters on it.
#[derive(Debug, Clone, Copy, Default)]
pub struct ModelStats {
    /// The scheduler.
    pub scheduler: crate::scheduler::SchedulerStats,
    /// The steps.
    pub steps: StepStats,
}

/// How the steps of a model ran.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepStats {
    /// Steps launched.
    pub launched: u64,
    /// Of those, decode steps that were captured graphs.
    pub graphs: u64,
    /// Of those launched, with several adapters of a base model in one forward pass.
    pub mixed: u64,
    /// Of those launched, before the results of the one before were processed.
    pub ahead: u64,
    /// Of those ahead, when the device had done the one before already: it may have been idle.
    pub late: u64,
    /// Seconds that the host waited for results.
    pub waited_seconds: f64,
}

impl StepStats {
    /// The counters with their names in reports.
    #[must_use]
    pub fn named(&self) -> [(&'static str, f64); 6] {
        let counts = [self.launched, self.graphs, self.mixed, self.ahead, self.late];
        let [launched, graphs, mixed, ahead, late] = counts.map(|n| n as f64);
        [
            ("steps", launched),
            ("graph_steps", graphs),
            ("mixed_steps", mixed),
            ("steps_ahead", ahead),
            ("steps_late", late),
            ("waited_seconds", self.waited_seconds),
        ]
    }
}

/// Counters of a GPU in this process.
#[derive(Debug, Clone)]
pub struct GpuStats {
    /// How often each kernel ran, and `matmul` for products by cuBLASLt; those that did not run are left out.
    pub launches: Vec<(&'static str, u64)>,
    /// Its memory; `peak_in_use` is the most that buffers of this process filled.
    pub memory: autograd::cuda::MemoryStats,
}
