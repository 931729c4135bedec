//! Seconds by phase.

use std::collections::BTreeMap;
use std::time::Instant;

/// Seconds of named phases.
#[derive(Debug, Clone, Default)]
pub(super) struct Phases(BTreeMap<String, f64>);

impl Phases {
    /// Continues from earlier seconds.
    #[must_use]
    pub(super) fn from_seconds(seconds: BTreeMap<String, f64>) -> Self {
        Self(seconds)
    }

    /// Runs `work` and adds its time to `phase`.
    pub(super) fn time<T>(&mut self, phase: &str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.add(phase, start.elapsed().as_secs_f64());
        result
    }

    /// Adds seconds to `phase`.
    pub(super) fn add(&mut self, phase: &str, seconds: f64) {
        *self.0.entry(phase.to_owned()).or_default() += seconds;
    }

    /// Adds all of `other`.
    pub(super) fn merge(&mut self, other: &Self) {
        for (phase, seconds) in &other.0 {
            self.add(phase, *seconds);
        }
    }

    /// Seconds of one phase.
    #[must_use]
    pub(super) fn get(&self, phase: &str) -> f64 {
        self.0.get(phase).copied().unwrap_or(0.0)
    }

    /// Seconds of all phases.
    #[must_use]
    pub(super) fn total(&self) -> f64 {
        self.0.values().sum()
    }

    /// By phase.
    #[must_use]
    pub(super) fn seconds(&self) -> &BTreeMap<String, f64> {
        &self.0
    }
}
