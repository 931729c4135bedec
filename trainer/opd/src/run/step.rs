//! One step of on-policy distillation, in the four calls that `train` makes: rollouts, `forward_backward`, `optim_step`,
//! publish.

use std::sync::Arc;
use std::time::{Duration, Instant};

use autograd::rng;
use runtime::RuntimeHandle;
use runtime::request::{GenerateRequest, ModelId, OptimReport, OptimStep, TrainRequest, TrainSequence};
use runtime::train::Loss;
use telemetry::{KeyValue, Scope};

use super::micro_batch::{Completion, CompletionSource, split};
use super::rollout::{RngStream, generate, params, request};
use super::scored::{self, BatchTeacher};
use super::step_metrics::{self, LossSums, RolloutStats};
use super::timers::StepTimers;
use crate::metrics::StepMetrics;
use crate::prompt::Example;
use crate::recipe::Recipe;
use crate::teacher::RemoteTeacher;
use crate::{Result, loss};
use command::progress::Progress;

/// Stream of the random numbers that choose between on-policy and other completions.
const MIX: u64 = 0x4D49_5821;

/// What all steps of a run have in common: models, training rows and losses.
pub struct StepContext<'a> {
    recipe: &'a Recipe,
    runtime: &'a RuntimeHandle,
    /// A remote teacher.
    remote: Option<&'a RemoteTeacher>,
    /// Rows to train on.
    train: &'a [Example],
    progress: Progress,
    /// Loss of the student's own completions.
    on_policy: Arc<dyn Loss>,
    /// Loss of the others.
    off_policy: Arc<dyn Loss>,
}

/// A step that is under way.
pub struct OpdStep<'a> {
    context: &'a StepContext<'a>,
    /// Counts steps from 0; with it every random number of the step is keyed.
    number: u64,
    started: Instant,
    timers: StepTimers,
    rollouts: RolloutStats,
    losses: LossSums,
}

/// What the optimizer did with the gradients of a step.
pub struct Update {
    lr: f64,
    started: Instant,
    report: OptimReport,
}

/// The numbers of a step that is done.
pub struct StepReport {
    /// Its metrics.
    pub metrics: StepMetrics,
    /// Its seconds.
    pub(super) timers: StepTimers,
    /// Whether the weights changed: loss and gradients were finite.
    pub applied: bool,
}

impl<'a> StepContext<'a> {
    /// For steps of `recipe` on the rows `train`.
    #[must_use]
    pub fn new(
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

    /// Begins step `number` (from 0), whose spans are children of `scope`.
    #[must_use]
    pub fn begin(&'a self, number: u64, scope: &Scope) -> OpdStep<'a> {
        OpdStep {
            context: self,
            number,
            started: Instant::now(),
            timers: StepTimers::within(scope),
            rollouts: RolloutStats::default(),
            losses: LossSums::default(),
        }
    }

    /// Completes every prompt: by the student, by the teacher, or from the data.
    fn complete(&self, step: u64, rows: &[usize]) -> Result<Vec<Completion>> {
        let recipe = self.recipe;
        let (seed, objective, group) = (recipe.runtime.seed, &recipe.objective, recipe.rollout.group_size);
        let mut sampling = params(&recipe.rollout.sampling, recipe.rollout.max_new_tokens, seed);
        sampling.ignore_eos = recipe.rollout.ignore_eos;
        let mut requests: Vec<GenerateRequest> = Vec::new();
        let mut examples: Vec<(&Example, CompletionSource)> = Vec::new();
        let mut remote_prompts: Vec<(Vec<u32>, u64)> = Vec::new();
        let mut remote_examples: Vec<&Example> = Vec::new();
        let mut completions = Vec::new();
        for (position, &row) in rows.iter().enumerate() {
            let example = &self.train[row];
            let prompt = step * rows.len() as u64 + position as u64;
            let (model, source, stream) = if rng::uniform(seed, MIX, prompt) < objective.lmbda {
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
                let index = stream.index(prompt * group as u64 + member as u64);
                if model == ModelId::TEACHER && self.remote.is_some() {
                    remote_prompts.push((tokens.clone(), index));
                    remote_examples.push(example);
                } else {
                    requests.push(request(model, tokens.clone(), sampling.clone(), index));
                    examples.push((example, source));
                }
            }
        }
        let bar = self.progress.bar("rollout", (requests.len() * recipe.rollout.max_new_tokens) as u64, "tokens");
        let generated = generate(self.runtime, requests, &bar, None)?;
        let sampled = examples.into_iter().zip(&generated);
        completions
            .extend(sampled.map(|((example, source), generated)| Completion::sampled(example, generated, source)));
        if let Some(remote) = self.remote.filter(|_| !remote_prompts.is_empty()) {
            let generated = remote.generate(&remote_prompts, &sampling)?;
            completions.extend(remote_examples.into_iter().zip(&generated).map(|(e, g)| Completion::remote(e, g)));
        }
        Ok(completions)
    }

    fn loss(&self, source: CompletionSource) -> &Arc<dyn Loss> {
        match source {
            CompletionSource::Student => &self.on_policy,
            CompletionSource::Other => &self.off_policy,
        }
    }
}
impl OpdStep<'_> {
    /// A completion of every prompt, `rows` of the training rows: y ~ q(. | x) of the student; with probability 1 - `lmbda` the
    /// teacher's or the data's.
    ///
    /// # Errors
    /// What the runtime, or the server of a remote teacher, refuses.
    pub fn rollouts(&mut self, rows: &[usize]) -> Result<Vec<Completion>> {
        let completions = self.timers.time("rollout", || self.context.complete(self.number, rows))?;
        self.rollouts = RolloutStats::of(&completions);
        Ok(completions)
    }

    /// Scores of the teacher, loss and gradients of all completions, micro-batch by micro-batch. Every one divides its loss by the
    /// completion tokens of the whole step, so that the cut into micro-batches changes nothing.
    ///
    /// # Errors
    /// What the runtime, or the server of a remote teacher, refuses.
    pub fn forward_backward(&mut self, completions: Vec<Completion>) -> Result<()> {
        let (context, timers, losses) = (self.context, &mut self.timers, &mut self.losses);
        let normalizer = completions.iter().map(Completion::len).sum::<usize>() as f64;
        let batches = split(completions, context.recipe.runtime.tokens_per_microbatch);
        let bar = context.progress.bar("train", normalizer as u64, "tokens");
        let (step, mut number) = (self.number, 0u64);
        let run = |source, sequences: &[TrainSequence], teacher: BatchTeacher| {
            let start = Instant::now();
            let report = context.runtime.forward_backward(TrainRequest {
                sequences: sequences.to_vec(),
                loss: Arc::clone(context.loss(source)),
                normalizer,
                backward: true,
                dropout_key: step << 20 | number,
                teacher: teacher.source,
            })?;
            let (seconds, resident) = (start.elapsed().as_secs_f64(), report.teacher_seconds);
            let about =
                || vec![KeyValue::new("arle.micro_batch", number as i64), KeyValue::new("arle.tokens", report.tokens)];
            if context.remote.is_some() {
                timers.add("teacher", teacher.since, teacher.seconds, about());
            } else {
                timers.add("teacher", start, resident, about());
            }
            timers.add("train", start + Duration::from_secs_f64(resident), seconds - resident, about());
            number += 1;
            bar.inc(report.tokens as u64);
            losses.add(&report);
            Ok(())
        };
        scored::each(context.remote, &batches, |source| context.loss(source).needs(), run)?;
        bar.finish_and_clear();
        Ok(())
    }
    /// Clips the gradients by their global norm and takes a step of AdamW at learning rate `lr`. A gradient that is not finite
    /// changes nothing.
    ///
    /// # Errors
    /// What the runtime refuses.
    pub fn optim_step(&mut self, lr: f64) -> Result<Update> {
        let optim = &self.context.recipe.optim;
        let started = Instant::now();
        let report = self.context.runtime.optim_step(OptimStep {
            lr,
            adamw: optim.adamw,
            max_grad_norm: optim.max_grad_norm,
        })?;
        Ok(Update { lr, started, report })
    }

    /// Makes the new weights the ones that generate, and reports the step.
    ///
    /// # Errors
    /// What the runtime refuses.
    pub fn publish(mut self, update: &Update) -> Result<StepReport> {
        let StepContext { recipe, runtime, .. } = self.context;
        let Update { lr, started, report } = update;
        if report.applied {
            runtime.publish()?;
        }
        // The update's time belongs to this phase and not to the next rollout.
        recipe.runtime.device.device.synchronize().map_err(runtime::Error::from)?;
        self.timers.add("optim", *started, started.elapsed().as_secs_f64(), Vec::new());
        let mut metrics = StepMetrics::at(self.number + 1);
        self.losses.report(&mut metrics);
        self.rollouts.report(&mut metrics);
        step_metrics::report_optim(&mut metrics, *lr, report);
        let seconds = self.started.elapsed().as_secs_f64();
        step_metrics::report_speed(&mut metrics, &self.timers, seconds, &self.rollouts);
        self.losses.report_costs(&mut metrics);
        step_metrics::report_gpu(&mut metrics, &runtime.stats()?);
        Ok(StepReport { metrics, timers: self.timers, applied: report.applied })
    }
}
