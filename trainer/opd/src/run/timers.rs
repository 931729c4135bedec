//! Seconds by phase.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use telemetry::{KeyValue, Scope};

/// Seconds of named phases, and their spans where traces are sent.
#[derive(Debug, Clone, Default)]
pub(super) struct StepTimers {
    seconds: BTreeMap<String, f64>,
    scope: Scope,
}

impl StepTimers {
    /// Continues from earlier seconds.
    #[must_use]
    pub(super) fn from_seconds(seconds: BTreeMap<String, f64>) -> Self {
        Self { seconds, scope: Scope::default() }
    }

    /// Timers of a step that has a span.
    #[must_use]
    pub(super) fn within(scope: &Scope) -> Self {
        Self { seconds: BTreeMap::new(), scope: scope.clone() }
    }

    /// Runs `work` and adds its time to `phase`.
    pub(super) fn time<T>(&mut self, phase: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.add(phase, start, start.elapsed().as_secs_f64(), Vec::new());
        result
    }

    /// Adds the `seconds` from `start` on to `phase`; the attributes are for its span.
    pub(super) fn add(&mut self, phase: &'static str, start: Instant, seconds: f64, attributes: Vec<KeyValue>) {
        *self.seconds.entry(phase.to_owned()).or_default() += seconds;
        let seconds = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        self.scope.child(phase, [start, start + seconds], attributes);
    }

    /// Adds all of `other`.
    pub(super) fn merge(&mut self, other: &Self) {
        for (phase, seconds) in &other.seconds {
            *self.seconds.entry(phase.clone()).or_default() += seconds;
        }
    }

    /// Seconds of one phase.
    #[must_use]
    pub(super) fn get(&self, phase: &str) -> f64 {
        self.seconds.get(phase).copied().unwrap_or(0.0)
    }

    /// Seconds of all phases.
    #[must_use]
    pub(super) fn total(&self) -> f64 {
        self.seconds.values().sum()
    }

    /// By phase.
    #[must_use]
    pub(super) fn seconds(&self) -> &BTreeMap<String, f64> {
        &self.seconds
    }
}
