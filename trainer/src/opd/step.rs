//! One step: prompts, completions, micro-batches, one optimizer step, publish.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use autograd::rng;
use runtime::RuntimeHandle;
use runtime::request::{GenerateRequest, ModelId, OptimReport, OptimStep, TrainReport, TrainRequest, TrainSequence};
use runtime::train::Loss;
use serve::{KeyValue, Scope};

use super::micro_batch::{Completion, CompletionSource, split};
use super::rollout::{RngStream, generate, params, request};
use super::scored::{self, BatchTeacher};
use super::timers::StepTimers;
use crate::metrics::Metrics;
use crate::progress::Progress;
use crate::prompt::Example;
use crate::recipe::Recipe;
use crate::teacher::RemoteTeacher;
use crate::{Result, loss, memory};

/// Stream of the random numbers that choose between on-policy and other completions.
const MIX: u64 = 0x4D49_5821;

/// Takes steps.
pub(crate) struct OpdStep<'a> {
    recipe: &'a Recipe,
    runtime: &'a RuntimeHandle,
    /// A teacher that is not in the runtime.
    remote: Option<&'a RemoteTeacher>,
    /// Rows to train on.
    train: &'a [Example],
    progress: Progress,
    /// Loss of the student's own completions.
    on_policy: Arc<dyn Loss>,
    /// Loss of the others.
    off_policy: Arc<dyn Loss>,
}

/// What a step did.
pub(crate) struct StepReport {
    /// Its numbers.
    pub(crate) metrics: Metrics,
    /// Its seconds.
    pub(super) phases: StepTimers,
    /// Whether the weights changed: loss and gradients were finite.
    pub(crate) applied: bool,
}

impl<'a> OpdStep<'a> {
    /// Takes the steps of `recipe` on the rows `train`.
    #[must_use]
    pub(crate) fn new(
        recipe: &'a Recipe,
        runtime: &'a RuntimeHandle,
        remote: Option<&'a RemoteTeacher>,
        train: &'a [Example],
        progress: Progress,
    ) -> Self {
        let sampling = recipe.rollout.sampling.temperature;
        // Greedy tokens have the log-probabilities of temperature 1.
        let temperature = if sampling == 0.0 { 1.0 } else { sampling };
        let on_policy = loss::build(recipe.objective.loss, temperature);
        let off_policy: Arc<dyn Loss> = if recipe.objective.off_policy.cross_entropy {
            Arc::new(loss::CrossEntropy)
        } else {
            Arc::clone(&on_policy)
        };
        let on_policy: Arc<dyn Loss> =
            if recipe.mismatch { Arc::new(loss::Mismatch::new(on_policy, temperature)) } else { on_policy };
        Self { recipe, runtime, remote, train, progress, on_policy, off_policy }
    }

    /// Step `step` (from 0) at learning rate `lr` on the given training rows, within a span.
    ///
    /// # Errors
    /// What the runtime refuses.
    pub(crate) fn take(&self, step: u64, lr: f64, rows: &[usize], scope: &Scope) -> Result<StepReport> {
        let start = Instant::now();
        let mut phases = StepTimers::within(scope);
        let completions = phases.time("rollout", || self.complete(step, rows))?;
        let seen = CompletionStats::of(&completions);
        let sums = self.forward_backward(step, completions, &mut phases)?;
        let optim = OptimStep { lr, adamw: self.recipe.optim.adamw, max_grad_norm: self.recipe.optim.max_grad_norm };
        let report = phases.time("optim", || {
            let report = self.runtime.optim_step(optim)?;
            if report.applied {
                self.runtime.publish()?;
            }
            // The update's time belongs to this phase and not to the next rollout.
            self.recipe.runtime.device.device.synchronize().map_err(runtime::Error::from)?;
            Ok::<_, crate::Error>(report)
        })?;
        let mut metrics = Metrics::at(step + 1);
        sums.report(&mut metrics);
        seen.report(&mut metrics);
        report_optim(&mut metrics, lr, &report);
        report_speed(&mut metrics, &phases, start.elapsed().as_secs_f64(), &seen);
        metrics.set("time/forward", sums.forward_seconds);
        metrics.set("time/backward", sums.backward_seconds);
        metrics.set("perf/activation_bytes", sums.activation_bytes as f64);
        let stats = self.runtime.stats()?;
        if let Some(gpu) = stats.gpu {
            for (name, value) in stats.models[&ModelId::STUDENT].steps.named() {
                metrics.set(&format!("engine/{name}"), value);
            }
            metrics.set("gpu/peak_bytes", gpu.memory.peak_in_use as f64);
            metrics.set("gpu/driver_allocations", gpu.memory.driver_allocations as f64);
        }
        Ok(StepReport { metrics, phases, applied: report.applied })
    }

    /// Completes every prompt: by the student, by the teacher, or from the data.
    fn complete(&self, step: u64, rows: &[usize]) -> Result<Vec<Completion>> {
        let recipe = self.recipe;
        let (seed, objective, group) = (recipe.runtime.seed, &recipe.objective, recipe.rollout.group_size);
        let mut sampling = params(&recipe.rollout.sampling, recipe.rollout.max_new_tokens, seed);
        sampling.ignore_eos = recipe.rollout.ignore_eos;
        let mut requests: Vec<GenerateRequest> = Vec::new();
        let mut asked: Vec<(&Example, CompletionSource)> = Vec::new();
        let mut elsewhere: Vec<(Vec<u32>, u64)> = Vec::new();
        let mut asked_elsewhere: Vec<&Example> = Vec::new();
        let mut completions = Vec::new();
        for (position, &row) in rows.iter().enumerate() {
            let example = &self.train[row];
            let prompt = step * rows.len() as u64 + position as u64;
            let (model, source, purpose) = if rng::uniform(seed, MIX, prompt) < objective.lmbda {
                (ModelId::STUDENT, CompletionSource::Student, RngStream::Train)
            } else if objective.off_policy.from_teacher {
                (ModelId::TEACHER, CompletionSource::Other, RngStream::TrainTeacher)
            } else {
                let given = example.completion.as_ref().expect("checked when the rows were read");
                completions.push(Completion::given(example, given));
                continue;
            };
            let tokens = match model {
                ModelId::TEACHER => example.teacher_prompt.as_ref().unwrap_or(&example.prompt),
                _ => &example.prompt,
            };
            for member in 0..group {
                let index = purpose.index(prompt * group as u64 + member as u64);
                if model == ModelId::TEACHER && self.remote.is_some() {
                    elsewhere.push((tokens.clone(), index));
                    asked_elsewhere.push(example);
                } else {
                    requests.push(request(model, tokens.clone(), sampling.clone(), index));
                    asked.push((example, source));
                }
            }
        }
        let bar = self.progress.bar("rollout", (requests.len() * recipe.rollout.max_new_tokens) as u64, "tokens");
        let generated = generate(self.runtime, requests, &bar, None)?;
        let sampled = asked.into_iter().zip(&generated);
        completions
            .extend(sampled.map(|((example, source), generated)| Completion::sampled(example, generated, source)));
        if let Some(remote) = self.remote.filter(|_| !elsewhere.is_empty()) {
            let written = remote.generate(&elsewhere, &sampling)?;
            completions.extend(asked_elsewhere.into_iter().zip(&written).map(|(e, w)| Completion::written(e, w)));
        }
        Ok(completions)
    }

    /// Gradients of the whole step: the loss is divided by its count of completion tokens in every micro-batch, so
    /// that the cut into micro-batches changes nothing.
    fn forward_backward(&self, step: u64, completions: Vec<Completion>, phases: &mut StepTimers) -> Result<LossSums> {
        let normalizer = completions.iter().map(Completion::len).sum::<usize>() as f64;
        let mut sums = LossSums::default();
        let batches = split(completions, self.recipe.runtime.tokens_per_microbatch);
        let bar = self.progress.bar("train", normalizer as u64, "tokens");
        let mut number: u64 = 0;
        let run = |source, sequences: &[TrainSequence], asked: BatchTeacher| {
            let start = Instant::now();
            let report = self.runtime.forward_backward(TrainRequest {
                sequences: sequences.to_vec(),
                loss: Arc::clone(self.loss(source)),
                normalizer,
                backward: true,
                dropout_key: step << 20 | number,
                teacher: asked.teacher,
            })?;
            let (seconds, resident) = (start.elapsed().as_secs_f64(), report.teacher_seconds);
            let about =
                || vec![KeyValue::new("arle.micro_batch", number as i64), KeyValue::new("arle.tokens", report.tokens)];
            if self.remote.is_some() {
                phases.add("teacher", asked.since, asked.seconds, about());
            } else {
                phases.add("teacher", start, resident, about());
            }
            phases.add("train", start + Duration::from_secs_f64(resident), seconds - resident, about());
            number += 1;
            bar.inc(report.tokens as u64);
            sums.add(&report);
            Ok(())
        };
        scored::each(self.remote, &batches, |source| self.loss(source).needs(), run)?;
        bar.finish_and_clear();
        Ok(sums)
    }

    fn loss(&self, source: CompletionSource) -> &Arc<dyn Loss> {
        match source {
            CompletionSource::Student => &self.on_policy,
            CompletionSource::Other => &self.off_policy,
        }
    }
}

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

    fn report(&self, metrics: &mut Metrics) {
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
}

/// What the completions of a step look like from outside.
struct CompletionStats {
    count: usize,
    tokens: usize,
    processed: usize,
    truncated: usize,
    on_policy: usize,
}

impl CompletionStats {
    fn of(completions: &[Completion]) -> Self {
        Self {
            count: completions.len(),
            tokens: completions.iter().map(Completion::len).sum(),
            processed: completions.iter().map(|completion| completion.sequence.tokens.len()).sum(),
            truncated: completions.iter().filter(|completion| completion.truncated).count(),
            on_policy: completions.iter().filter(|completion| completion.source == CompletionSource::Student).count(),
        }
    }

    fn report(&self, metrics: &mut Metrics) {
        let count = self.count as f64;
        metrics.set("completions/mean_length", self.tokens as f64 / count);
        metrics.set("completions/tokens", self.tokens as f64);
        metrics.set("completions/on_policy_fraction", self.on_policy as f64 / count);
        metrics.set("truncated_fraction", self.truncated as f64 / count);
    }
}

fn report_optim(metrics: &mut Metrics, lr: f64, report: &OptimReport) {
    metrics.set("optim/lr", lr);
    metrics.set("optim/grad_norm", report.grad_norm);
    metrics.set("optim/skipped", f64::from(u8::from(!report.applied)));
}

fn report_speed(metrics: &mut Metrics, phases: &StepTimers, seconds: f64, seen: &CompletionStats) {
    for (phase, seconds) in phases.seconds() {
        metrics.set(&format!("time/{phase}"), *seconds);
    }
    metrics.set("time/step", seconds);
    metrics.set("perf/throughput", seen.processed as f64 / seconds);
    metrics.set("perf/rollout_throughput", seen.tokens as f64 / phases.get("rollout").max(1e-9));
    metrics.set("perf/peak_memory", memory::peak() as f64);
}
