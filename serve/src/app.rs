//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use runtime::RuntimeHandle;
use tokio::sync::watch;

use crate::config::ServeConfig;
use crate::limits::admission::Admission;
use crate::limits::memory::Budget;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::train::TrainControl;
use crate::train_proxy::TrainProxy;

/// The state behind every route.
pub(crate) struct App {
    pub(crate) runtime: RuntimeHandle,
    pub(crate) models: Models,
    pub(crate) admission: Admission,
    /// Memory of requests.
    pub(crate) budget: Arc<Budget>,
    pub(crate) metrics: Metrics,
    pub(crate) config: ServeConfig,
    /// The training run that the server is in.
    pub(crate) training: Option<Arc<dyn TrainControl>>,
    /// The training run that serves elsewhere.
    pub(crate) train_proxy: Option<TrainProxy>,
    phase: watch::Sender<Phase>,
    /// No token is generated until a client says so.
    pub(crate) paused: AtomicBool,
    /// Seconds since 1970 when it started.
    pub(crate) created: u64,
}

/// The state as routes get it.
pub(crate) type Shared = Arc<App>;

/// What a server is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
            budget: Budget::new(config.request_memory),
            training: None,
            train_proxy: None,
            phase: watch::Sender::new(Phase::WarmingUp),
            paused: AtomicBool::new(false),
            created: crate::ids::unix_time(),
            runtime,
            models,
            config,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Phases only go forward: a drain during the warm-up stays one.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let forward = phase > *now;
            *now = phase.max(*now);
            forward
        });
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.phase() == Phase::Draining
    }

    /// Waits until the server stops.
    pub(crate) async fn draining(&self) {
        let mut phases = self.phase.subscribe();
        // The sender is `self`, so the channel is open.
        let _open = phases.wait_for(|phase| *phase == Phase::Draining).await;
    }
}
