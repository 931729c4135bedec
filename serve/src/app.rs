//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use runtime::RuntimeHandle;

use crate::admission::Admission;
use crate::config::ServeConfig;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::train::TrainControl;

/// The state behind every route.
pub(crate) struct App {
    pub(crate) runtime: RuntimeHandle,
    pub(crate) models: Models,
    pub(crate) admission: Admission,
    pub(crate) metrics: Metrics,
    pub(crate) config: ServeConfig,
    /// The training run that the server is in.
    pub(crate) training: Option<Arc<dyn TrainControl>>,
    phase: AtomicU8,
    /// Seconds since 1970 when it started.
    pub(crate) created: u64,
}

/// The state as routes get it.
pub(crate) type Shared = Arc<App>;

/// What a server is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// The first generation has not ended yet.
    WarmingUp,
    /// It answers.
    Ready,
    /// It ends what runs and takes nothing new.
    Draining,
}

impl App {
    pub(crate) fn new(runtime: RuntimeHandle, models: Models, config: ServeConfig) -> Self {
        Self {
            metrics: Metrics::default(),
            admission: Admission::new(config.max_sequences),
            training: None,
            phase: AtomicU8::new(Phase::WarmingUp as u8),
            created: crate::ids::unix_time(),
            runtime,
            models,
            config,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::WarmingUp,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }

    /// Phases only go forward: a drain during the warm-up stays one.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::Relaxed);
    }
}
