//! Gauges and counters of the runtime.

use super::ModelId;

/// The state of the runtime after the newest step; reading it does not wait for the device thread.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The student.
    pub student: ModelSnapshot,
    /// The teacher, when there is one.
    pub teacher: Option<ModelSnapshot>,
    /// Adapters by number.
    pub adapters: Vec<(u32, ModelSnapshot)>,
}

impl Snapshot {
    /// A model's part, when the model is there.
    #[must_use]
    pub fn of(&self, model: ModelId) -> Option<ModelSnapshot> {
        match model {
            ModelId::Student => Some(self.student),
            ModelId::Teacher => self.teacher,
            ModelId::Adapter(number) => self.adapters.iter().find(|(n, _)| *n == number).map(|&(_, adapter)| adapter),
        }
    }
}

/// One model of a [`Snapshot`].
#[derive(Debug, Clone, Copy)]
pub struct ModelSnapshot {
    /// Version of the weights that requests are answered with.
    pub version: u64,
    /// Its scheduler.
    pub scheduler: crate::scheduler::SchedulerStats,
}

/// Counters and gauges of a model.
#[derive(Debug, Clone, Default)]
pub struct RuntimeStats {
    /// The student's scheduler.
    pub student: crate::scheduler::SchedulerStats,
    /// The teacher's scheduler, when there is a teacher.
    pub teacher: Option<crate::scheduler::SchedulerStats>,
    /// The student's steps.
    pub student_steps: StepStats,
    /// The teacher's steps, when there is a teacher.
    pub teacher_steps: Option<StepStats>,
    /// The GPU, when that is the device.
    pub gpu: Option<GpuStats>,
}

/// How the steps of a model ran.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepStats {
    /// Steps launched.
    pub launched: u64,
    /// Of those, decode steps that were captured graphs.
    pub graphs: u64,
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
    pub fn named(&self) -> [(&'static str, f64); 5] {
        let [launched, graphs, ahead, late] = [self.launched, self.graphs, self.ahead, self.late].map(|n| n as f64);
        [
            ("steps", launched),
            ("graph_steps", graphs),
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
