//! On-policy distillation: the student writes, the teacher grades every token, the student learns.

mod batch;
mod benchmark;
mod best;
mod eval;
mod folder;
mod graded;
mod held_out;
mod phases;
mod rollout;
mod serving;
mod setup;
mod step;
mod summary;

use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

pub use best::check_measurements;
pub use folder::Resume;
pub(crate) use held_out::{BETTER, measure as measure_held_out};
pub(crate) use setup::{open, start};
pub(crate) use step::{Outcome, Stepper};

use crate::checkpoint::{Checkpoints, TrainerState};
use crate::control::Control;
use crate::data::Cursor;
use crate::interrupt::Interrupt;
use crate::metrics::{JsonLines, Metrics};
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::schedule::Schedule;
use crate::{Error, Result};
use benchmark::Benchmarks;
use best::BestBy;
use eval::Evaluator;
use folder::RunFolder;
use phases::Phases;
use serve::{KeyValue, Scope, ServeConfig, Traces};
use serving::Serving;
use setup::{Setup, Use};
use summary::Summary;

/// Steps in a row that may be skipped for a loss or gradient that is not finite.
const MAX_NON_FINITE: u32 = 3;

/// What to run, and where.
pub struct Options {
    /// The recipe.
    pub recipe: Recipe,
    /// The run's folder.
    pub folder: PathBuf,
    /// Whether to continue it.
    pub resume: Option<Resume>,
    /// Print metrics lines on stdout instead of progress on stderr.
    pub json: bool,
    /// Answer over HTTP while it runs.
    pub serve: Option<ServeConfig>,
    /// Where spans of steps go.
    pub traces: Traces,
}

/// Runs a recipe to its end.
///
/// # Errors
/// Whatever stops it; [`Error::Interrupted`] after Ctrl-C, with a checkpoint written.
pub fn run(options: &Options, interrupt: &Interrupt) -> Result<()> {
    let recipe = &options.recipe;
    let progress = Progress::new(options.json);
    RunFolder::check(&options.folder, recipe, options.resume.as_ref())?;
    let setup = Setup::new(recipe, Use::Training { served: options.serve.is_some() }, interrupt, progress)?;
    let best_by = BestBy::of(recipe, !setup.held_out.is_empty())?;
    interrupt.begin();
    // Only now: a run that cannot start leaves nothing behind.
    let folder = RunFolder::open(&options.folder, recipe, options.resume.as_ref())?;
    let state = restore(recipe, &setup, &folder, progress)?;
    let control = Arc::new(Control::new(interrupt.clone()));
    let serving =
        options.serve.as_ref().map(|config| Serving::start(&setup, config, &control, progress)).transpose()?;
    let run = Run {
        control: &control,
        stepper: Stepper::new(recipe, &setup.runtime, setup.remote.as_ref(), &setup.train, progress),
        evaluator: recipe
            .eval
            .as_ref()
            .filter(|_| !setup.held_out.is_empty())
            .map(|eval| Evaluator::new(recipe, eval, &setup, &folder, progress))
            .transpose()?,
        benchmarks: recipe
            .eval
            .as_ref()
            .and_then(|eval| eval.benchmark.as_ref())
            .map(|benchmark| Benchmarks::new(recipe, benchmark, &setup, &folder, interrupt, progress))
            .transpose()?,
        metrics: JsonLines::open(&folder.file("metrics.jsonl"), state.metrics_bytes)?,
        samples: JsonLines::open(&folder.file("samples.jsonl"), state.samples_bytes)?,
        cursor: Cursor::new(setup.train.len(), recipe.data.shuffle.then_some(recipe.data.seed), state.rows_seen),
        total: recipe.length.steps(setup.train.len(), recipe.rollout.prompts_per_step),
        phases: Phases::from_seconds(state.seconds.clone()),
        best_by,
        last: None,
        saved: folder.resume_from.as_ref().map(|_| (state.step, state.lr)),
        recipe,
        setup: &setup,
        folder: &folder,
        progress,
        json: options.json,
        traces: &options.traces,
        state,
    };
    control.start(&recipe.name, run.state.step, run.total);
    let result = run.finish(interrupt);
    control.end(match &result {
        Ok(()) => "completed",
        Err(Error::Interrupted { .. }) => "stopped",
        Err(_) => "failed",
    });
    drop(serving);
    result
}

/// Puts weights, moments and position back from the checkpoint to continue from.
fn restore(recipe: &Recipe, setup: &Setup, folder: &RunFolder, progress: Progress) -> Result<TrainerState> {
    let sum: String = Sha256::digest(recipe.to_toml()).iter().map(|byte| format!("{byte:02x}")).collect();
    let Some(path) = &folder.resume_from else { return Ok(TrainerState::start(recipe.runtime.seed, sum)) };
    let (weights, mut state) = Checkpoints::load(path, &setup.export, &setup.runtime.export_state()?)?;
    setup.runtime.restore_state(weights)?;
    setup.runtime.publish()?;
    folder.checkpoints.rewind(path)?;
    // A best one that has been dropped since, on the way that is abandoned now, cannot be kept any more.
    let best = state.best.take_if(|best| !folder.checkpoints.has(best.step));
    if let Some(best) = best {
        progress.line(&format!("best       that of step {} is gone; the next measurement counts", best.step));
    }
    folder.checkpoints.link_best(state.best.as_ref())?;
    progress.line(&format!("resume     {} (step {})", path.display(), state.step));
    if let Some(lr) = state.lr {
        progress
            .line(&format!("lr         {lr:e}, as set through /v1/train/lr; the recipe has {:e}", recipe.schedule.lr));
    }
    state.recipe_sha256 = sum;
    Ok(state)
}

struct Run<'a> {
    control: &'a Control,
    recipe: &'a Recipe,
    setup: &'a Setup,
    folder: &'a RunFolder,
    progress: Progress,
    json: bool,
    traces: &'a Traces,
    stepper: Stepper<'a>,
    evaluator: Option<Evaluator<'a>>,
    benchmarks: Option<Benchmarks<'a>>,
    metrics: JsonLines,
    samples: JsonLines,
    cursor: Cursor,
    total: u64,
    phases: Phases,
    state: TrainerState,
    /// What tells the best checkpoint.
    best_by: Option<BestBy>,
    /// The newest metrics with held-out measurements.
    last: Option<Metrics>,
    /// Step and operator's learning rate of the newest checkpoint.
    saved: Option<(u64, Option<f64>)>,
}

impl Run<'_> {
    fn finish(mut self, interrupt: &Interrupt) -> Result<()> {
        self.take_steps(interrupt).map_err(|e| self.with_checkpoint(e))?;
        let checkpoint = self.save()?;
        let summary = Summary {
            recipe: self.recipe,
            checkpoint: &checkpoint,
            folder: self.folder.root(),
            before: &self.state.held_out_before,
            after: self.last.as_ref(),
            teacher: &self.state.teacher_scores,
            compared: benchmark::compared(self.folder, self.state.step).map_err(|why| why.to_string()),
            best: self.state.best.as_ref().filter(|_| self.best_by.is_some()),
            phases: &self.phases,
            steps: self.state.step,
            gpu: self.setup.runtime.stats()?.gpu,
        };
        if self.json { summary.print_json() } else { summary.print() }
    }

    fn take_steps(&mut self, interrupt: &Interrupt) -> Result<()> {
        if self.state.step == 0 && self.saved.is_none() {
            self.measure_before()?;
        }
        while !self.is_over() {
            loop {
                if let Some(lr) = self.control.take_lr() {
                    self.state.lr = Some(lr);
                    self.control.lr_changed(self.state.step, lr);
                    self.progress
                        .line(&format!("lr         {lr:e} from step {} on, as asked for", self.state.step + 1));
                }
                if self.control.take_save() {
                    self.save()?;
                }
                if !self.control.is_held() {
                    break;
                }
            }
            if interrupt.asked() {
                self.save()?;
                return Err(Error::Interrupted { step: self.state.step });
            }
            self.step()?;
            let every = self.recipe.checkpoint.every;
            if every > 0 && self.state.step.is_multiple_of(every) {
                self.save()?;
            }
        }
        Ok(())
    }

    /// The error of a run that ends early, with the checkpoint that it left.
    fn with_checkpoint(&self, error: Error) -> Error {
        if matches!(error, Error::Interrupted { .. }) {
            return error;
        }
        match (self.saved, self.folder.checkpoints.latest()) {
            (Some((step, _)), Ok(Some(checkpoint))) => Error::Stopped { source: Box::new(error), checkpoint, step },
            _ => error,
        }
    }

    /// The error of a step; when only the teacher's server was lost, or no longer waited for, all steps before it are kept.
    fn kept(&mut self, error: Error) -> Error {
        if matches!(error, Error::WaitInterrupted { .. }) {
            return self.save().map_or_else(|unsaved| unsaved, |_| Error::Interrupted { step: self.state.step });
        }
        if matches!(error, Error::TeacherLost { .. })
            && self.state.step > 0
            && let Err(unsaved) = self.save()
        {
            self.progress.line(&format!("no checkpoint of step {} was written: {unsaved}", self.state.step));
        }
        error
    }

    /// Held-out measurements before the first step.
    fn measure_before(&mut self) -> Result<()> {
        if !self.recipe.eval.as_ref().is_some_and(|eval| eval.at_start) {
            return Ok(());
        }
        if let Some(benchmarks) = &self.benchmarks {
            self.state.teacher_scores = self.stoppable(benchmarks.of_teacher())?;
        }
        let mut metrics = Metrics::at(0);
        let scope = self.span("held_out", 0);
        self.measure(&mut metrics, &scope)?;
        let numbers = metrics.named().filter(|(name, _)| name.starts_with("eval/"));
        self.state.held_out_before = numbers.map(|(name, value)| (name.to_owned(), value)).collect();
        self.write(&metrics)
    }

    fn span(&self, name: &'static str, step: u64) -> Scope {
        let attributes =
            vec![KeyValue::new("arle.run", self.recipe.name.clone()), KeyValue::new("arle.step", step as i64)];
        self.traces.begin(name, attributes)
    }

    fn step(&mut self) -> Result<()> {
        let scope = self.span("step", self.state.step + 1);
        let rows = self.cursor.take(self.recipe.rollout.prompts_per_step);
        let schedule = Schedule { lr: self.state.lr.unwrap_or(self.recipe.schedule.lr), ..self.recipe.schedule };
        let lr = schedule.at(self.state.step, self.total);
        let taken = self.stepper.take(self.state.step, lr, &rows, &scope);
        let Outcome { mut metrics, phases, applied } = taken.map_err(|error| self.kept(error))?;
        self.phases.merge(&phases);
        self.state.step += 1;
        self.state.rows_seen = self.cursor.seen();
        metrics.set("epoch", self.cursor.epoch());
        self.progress.line(&summary::step_line(&metrics, self.total));
        self.state.non_finite = if applied { 0 } else { self.state.non_finite + 1 };
        if self.is_eval_due() {
            self.measure(&mut metrics, &scope)?;
        }
        let numbers = metrics.named().filter(|(name, _)| *name != "step");
        scope.set(numbers.map(|(name, value)| KeyValue::new(format!("arle.{name}"), value)).collect());
        self.write(&metrics)?;
        self.keep_if_best(&metrics)?;
        if self.state.non_finite >= MAX_NON_FINITE {
            return Err(Error::NonFinite { step: self.state.step, times: self.state.non_finite });
        }
        Ok(())
    }

    /// Keeps a checkpoint of this step where no step before it measured better.
    fn keep_if_best(&mut self, metrics: &Metrics) -> Result<()> {
        let Some(by) = &self.best_by else { return Ok(()) };
        let Some(best) = by.improved(metrics, self.state.step, self.state.best.as_ref()) else { return Ok(()) };
        self.progress.line(&format!("best       {} {:.4}", best.metric, best.value));
        self.state.best = Some(best);
        self.save().map(drop)
    }

    /// Whether all steps are taken, or the seconds that they may take are used up.
    fn is_over(&self) -> bool {
        let taken = self.phases.total() - self.phases.get("eval");
        self.state.step >= self.total || self.recipe.max_seconds.is_some_and(|most| taken >= most)
    }

    fn is_eval_due(&self) -> bool {
        let Some(eval) = &self.recipe.eval else { return false };
        let periodic = eval.every > 0 && self.state.step.is_multiple_of(eval.every);
        periodic || (eval.at_end && self.is_over())
    }

    fn measure(&mut self, metrics: &mut Metrics, scope: &Scope) -> Result<()> {
        let mut phases = Phases::within(scope);
        let measured = phases.time("eval", || {
            let samples = match &self.evaluator {
                None => Vec::new(),
                Some(evaluator) => {
                    evaluator.measure(metrics)?;
                    evaluator.show_samples(self.state.step)?
                }
            };
            let scored = self.benchmarks.as_ref().map(|benchmarks| benchmarks.measure(self.state.step, metrics));
            scored.transpose()?;
            Ok(samples)
        });
        for sample in &self.stoppable(measured)? {
            self.samples.write(sample)?;
            self.control.sample(sample);
        }
        self.best_by.as_ref().map_or(Ok(()), |by| by.check(metrics))?;
        metrics.set("time/eval", phases.get("eval"));
        self.phases.merge(&phases);
        if self.evaluator.is_some() {
            self.progress.line(&summary::held_out_line(metrics, &self.state.held_out_before));
        }
        if self.benchmarks.is_some() {
            self.progress.line(&summary::scores_line(metrics, &self.state.held_out_before, &self.state.teacher_scores));
        }
        self.last = Some(metrics.clone());
        Ok(())
    }

    /// A measurement that Ctrl-C stopped ends the run as a step boundary does.
    fn stoppable<T>(&self, measured: Result<T>) -> Result<T> {
        measured.map_err(|error| match error {
            Error::EvaluationInterrupted { .. } | Error::WaitInterrupted { .. } => {
                Error::Interrupted { step: self.state.step }
            }
            other => other,
        })
    }

    fn write(&mut self, metrics: &Metrics) -> Result<()> {
        self.metrics.write(metrics.as_json())?;
        self.control.metrics(metrics);
        if self.json { summary::print_line(metrics.as_json()) } else { Ok(()) }
    }

    /// Writes a checkpoint unless this step has one; that one may lack a learning rate that was set since.
    fn save(&mut self) -> Result<PathBuf> {
        let now = (self.state.step, self.state.lr);
        let known = match self.saved {
            Some(saved) if saved == now => self.folder.checkpoints.latest()?,
            Some((step, _)) if step == now.0 => {
                self.folder.checkpoints.amend(&self.state)?.inspect(|_| self.saved = Some(now))
            }
            _ => None,
        };
        if let Some(path) = known {
            return Ok(path);
        }
        let _span = self.span("checkpoint", self.state.step);
        self.metrics.sync()?;
        self.samples.sync()?;
        let weights = self.setup.runtime.export_state()?;
        self.state.optimizer_step = weights.step;
        self.state.metrics_bytes = self.metrics.bytes();
        self.state.samples_bytes = self.samples.bytes();
        self.state.seconds = self.phases.seconds().clone();
        let path = self.folder.checkpoints.save(&self.setup.export, &weights, &self.state)?;
        self.saved = Some(now);
        self.progress.line(&format!("saved      {}", path.display()));
        self.control.saved(self.state.step, &path.display().to_string());
        Ok(path)
    }
}
