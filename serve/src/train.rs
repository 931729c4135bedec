//! What a server lets its clients see and do of the training run it is in.

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::watch;
use utoipa::ToSchema;

/// The training run, as the control plane reaches it. Calls come from the event loop and must return at once; what they ask
/// for happens at the next step's boundary.
pub trait TrainControl: Send + Sync {
    /// Where the run is.
    fn status(&self) -> TrainStatus;
    /// What happened after event `after`, oldest first, as far as it is kept; and the number of the newest event.
    fn events(&self, after: u64) -> (Vec<TrainEvent>, u64);
    /// Rings for every new event.
    fn bell(&self) -> &Bell;
    /// Ends the run, with a checkpoint.
    fn stop(&self);
    /// Writes a checkpoint.
    fn save(&self);
    /// Holds the run, or lets it go on.
    fn pause(&self, paused: bool);
    /// Goes on with this learning rate at the top of the schedule.
    ///
    /// # Errors
    /// What is wrong with the rate.
    fn set_lr(&self, lr: f64) -> Result<(), String>;
}

/// Wakes those who wait for events.
#[derive(Debug, Default)]
pub struct Bell(watch::Sender<()>);

impl Bell {
    /// There is something new.
    pub fn ring(&self) {
        self.0.send_replace(());
    }

    pub(crate) fn listen(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }
}

/// Where a run is. Numbers that it does not have (yet) are `null`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct TrainStatus {
    /// Steps taken.
    pub iter: u64,
    /// Steps that the run has.
    pub total_iters: u64,
    /// Reward of the newest step.
    pub mean_reward: Option<f64>,
    /// The best reward so far.
    pub best_reward: Option<f64>,
    /// KL to the teacher, nats a token, of the newest step.
    pub last_kl: Option<f64>,
    /// Loss of the newest step.
    pub last_loss: Option<f64>,
    /// Learning rate of the newest step.
    pub last_lr: Option<f64>,
    /// Seconds since the run began.
    pub wall_secs: f64,
    /// Events that nobody could read because newer ones took their place.
    pub dropped_metrics: u64,
    /// Whether it has begun.
    pub started: bool,
    /// Whether it has ended.
    pub finished: bool,
    /// Whether it is held.
    pub paused: bool,
}

/// Something that happened in a run.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TrainEvent {
    /// Its number, from 1.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub ts_ms: u64,
    /// `metric`, `sample`, `run_start`, `run_end`, `checkpoint` or `status`.
    pub kind: &'static str,
    /// The step it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// `train`, for what is measured in a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<&'static str>,
    /// Its texts.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object, required = false)]
    pub strings: Map<String, Value>,
    /// Its numbers; those that are not finite are `null`.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object, required = false)]
    pub scalars: Map<String, Value>,
}
