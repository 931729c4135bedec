//! The numbers that a step reports.

use std::collections::BTreeMap;

use runtime::request::{ModelId, OptimReport, RuntimeStats, TrainReport};

use super::micro_batch::{Completion, CompletionSource};
use super::timers::StepTimers;
use crate::memory;
use crate::metrics::StepMetrics;

/// Sums over micro-batches; each name with the tokens that it was summed over.
#[derive(Debug, Default)]
pub(super) struct LossSums {
    loss: f64,
    forward_seconds: f64,
    backward_seconds: f64,
    activation_bytes: u64,
    by_name: BTreeMap<&'static str, (f64, f64)>,
    maxima: BTreeMap<&'static str, f64>,
}

impl LossSums {
    /// Adds a micro-batch.
    pub(super) fn add(&mut self, report: &TrainReport) {
        self.loss += report.loss;
        self.forward_seconds += report.forward_seconds;
        self.backward_seconds += report.backward_seconds;
        self.activation_bytes = self.activation_bytes.max(report.activation_bytes);
        for (&name, &sum) in &report.sums {
            let (total, tokens) = self.by_name.entry(name).or_default();
            *total += sum;
            *tokens += report.tokens;
        }
        for (&name, &largest) in &report.maxima {
            let most = self.maxima.entry(name).or_insert(f64::NEG_INFINITY);
            *most = most.max(largest);
        }
    }

    /// The mean over tokens.
    #[must_use]
    pub(super) fn mean(&self, name: &str) -> Option<f64> {
        self.by_name.get(name).map(|(sum, tokens)| sum / tokens)
    }

    pub(super) fn report(&self, metrics: &mut StepMetrics) {
        metrics.set("loss", self.loss);
        for name in ["teacher_kl", "forward_kl", "entropy", "teacher_entropy", "agreement"] {
            if let Some(mean) = self.mean(name) {
                metrics.set(name, mean);
            }
        }
        if let (Some(mean), Some(&largest)) = (self.mean("mismatch"), self.maxima.get("mismatch_size")) {
            metrics.set("mismatch_kl", mean);
            metrics.set("mismatch_max", largest);
        }
    }

    /// Adds what the training pass took.
    pub(super) fn report_costs(&self, metrics: &mut StepMetrics) {
        metrics.set("time/forward", self.forward_seconds);
        metrics.set("time/backward", self.backward_seconds);
        metrics.set("perf/activation_bytes", self.activation_bytes as f64);
    }
}

/// Counts of a step's completions.
#[derive(Debug, Default)]
pub(super) struct RolloutStats {
    count: usize,
    tokens: usize,
    processed: usize,
    truncated: usize,
    on_policy: usize,
}

impl RolloutStats {
    pub(super) fn of(completions: &[Completion]) -> Self {
        Self {
            count: completions.len(),
            tokens: completions.iter().map(Completion::len).sum(),
            processed: completions.iter().map(|completion| completion.sequence.tokens.len()).sum(),
            truncated: completions.iter().filter(|completion| completion.truncated).count(),
            on_policy: completions.iter().filter(|completion| completion.source == CompletionSource::Student).count(),
        }
    }

    pub(super) fn report(&self, metrics: &mut StepMetrics) {
        let count = self.count as f64;
        metrics.set("completions/mean_length", self.tokens as f64 / count);
        metrics.set("completions/tokens", self.tokens as f64);
        metrics.set("completions/on_policy_fraction", self.on_policy as f64 / count);
        metrics.set("truncated_fraction", self.truncated as f64 / count);
    }
}

/// What the optimizer did.
pub(super) fn report_optim(metrics: &mut StepMetrics, lr: f64, report: &OptimReport) {
    metrics.set("optim/lr", lr);
    metrics.set("optim/grad_norm", report.grad_norm);
    metrics.set("optim/skipped", f64::from(u8::from(!report.applied)));
}

/// Seconds and rates of a step of `seconds`.
pub(super) fn report_speed(metrics: &mut StepMetrics, timers: &StepTimers, seconds: f64, rollouts: &RolloutStats) {
    for (phase, seconds) in timers.seconds() {
        metrics.set(&format!("time/{phase}"), *seconds);
    }
    metrics.set("time/step", seconds);
    metrics.set("perf/throughput", rollouts.processed as f64 / seconds);
    metrics.set("perf/rollout_throughput", rollouts.tokens as f64 / timers.get("rollout").max(1e-9));
    metrics.set("perf/peak_memory", memory::peak() as f64);
}

/// Counters of a GPU.
pub(super) fn report_gpu(metrics: &mut StepMetrics, stats: &RuntimeStats) {
    if let Some(gpu) = &stats.gpu {
        for (name, value) in stats.models[&ModelId::STUDENT].steps.named() {
            metrics.set(&format!("engine/{name}"), value);
        }
        metrics.set("gpu/peak_bytes", gpu.memory.peak_in_use as f64);
        metrics.set("gpu/driver_allocations", gpu.memory.driver_allocations as f64);
    }
}
