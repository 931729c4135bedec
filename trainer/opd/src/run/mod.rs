//! A run of a recipe: what it is set up from, its folder, and around the loop in `train.rs` what it measures, saves and reports.

mod benchmark;
mod best;
mod eval_kl;
mod evaluator;
mod folder;
mod inputs;
mod measure;
pub(crate) mod micro_batch;
mod models;
mod operator;
mod overview;
mod rollout;
mod save;
mod scored;
mod server;
mod setup;
mod start_point;
mod step;
mod step_metrics;
mod summary;
mod timers;
mod train;

use std::path::PathBuf;
use std::sync::Arc;

pub use best::check_measurements;
pub use eval_kl::{BETTER, measure as measure_held_out};
pub use folder::Resume;
pub use folder::{may_change, no_run};
pub use micro_batch::Completion;
pub use models::open;
pub use overview::dry_run;
pub use setup::{runtime_spec, start};
pub use step::{OpdStep, StepContext, StepReport, Update};

use crate::checkpoint::TrainerState;
use crate::control::Control;
use crate::metrics::{JsonLines, StepMetrics};
use crate::recipe::{Recipe, RecipeSource};
use crate::{Error, Result};
use benchmark::Benchmarks;
use best::BestMetric;
use command::interrupt::Interrupt;
use command::progress::Progress;
use data::Cursor;
use evaluator::HeldOutEvaluator;
use folder::RunFolder;
use inputs::PendingChecksums;
use overview::Sizes;
use serve::ServeConfig;
use server::RunServer;
use setup::{RunKind, Setup};
use start_point::StartPoint;
use summary::Summary;
use telemetry::{KeyValue, Scope, Traces};
use timers::StepTimers;

/// Steps in a row that may be skipped for a loss or gradient that is not finite.
const MAX_NON_FINITE: u32 = 3;

/// What to run, and where.
pub struct RunOptions {
    /// The recipe.
    pub recipe: Recipe,
    /// What it was made of.
    pub given: RecipeSource,
    /// The run's folder.
    pub folder: PathBuf,
    /// Whether to continue it.
    pub resume: Option<Resume>,
    /// Whether that may be with other data, models or tokenizers than before.
    pub accept_changed_inputs: bool,
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
pub fn run(options: &RunOptions, interrupt: &Interrupt) -> Result<()> {
    let recipe = &options.recipe;
    let progress = Progress::new(options.json);
    recipe.notes.iter().for_each(|note| progress.line(note));
    let reopened = match &options.resume {
        None => RunFolder::check_new(&options.folder, progress).map(|()| None)?,
        Some(resume) => Some(RunFolder::reopen(&options.folder, recipe, resume, progress)?),
    };
    let mut position = StartPoint::find(recipe, reopened.as_ref(), options.accept_changed_inputs, progress)?;
    let setup = Setup::new(recipe, RunKind::Training { served: options.serve.is_some() }, interrupt, progress)?;
    let sizes = Sizes { parameters: setup.plan.parameters, rows: setup.train.len(), held_out: setup.held_out.len() };
    overview::print(recipe, &sizes, progress)?;
    let best_metric = BestMetric::of(recipe, !setup.held_out.is_empty())?;
    let unknown = position.unknown.then(|| inputs::files(recipe, progress)).transpose()?;
    interrupt.begin();
    // Only now: a run that cannot start leaves nothing behind.
    let folder = match reopened {
        None => RunFolder::create(&options.folder, recipe, &options.given, progress)?,
        Some(folder) => folder.keep_recipe(recipe, &options.given).map(|()| folder)?,
    };
    position.restore(recipe, &setup, &folder, progress)?;
    let state = position.state;
    let control = Arc::new(Control::new(interrupt.clone()));
    let serving =
        options.serve.as_ref().map(|config| RunServer::start(&setup, config, &control, progress)).transpose()?;
    let steps = StepContext::new(recipe, &setup.runtime, setup.remote.as_ref(), &setup.train, progress);
    let mut run = Run {
        control: &control,
        interrupt,
        steps: &steps,
        evaluator: recipe
            .eval
            .as_ref()
            .filter(|_| !setup.held_out.is_empty())
            .map(|eval| HeldOutEvaluator::new(recipe, eval, &setup, &folder, interrupt, progress))
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
        timers: StepTimers::from_seconds(state.seconds.clone()),
        best_metric,
        last: None,
        saved: folder.resume_from.as_ref().map(|_| (state.step, state.lr)),
        recipe,
        setup: &setup,
        folder: &folder,
        progress,
        json: options.json,
        traces: &options.traces,
        state,
        unknown: unknown.map(PendingChecksums::begin),
        accept_changed_inputs: options.accept_changed_inputs,
    };
    run.check_task_data()?;
    control.start(&recipe.name, run.state.step, run.total);
    let result = run.finish();
    control.end(match &result {
        Ok(()) => "completed",
        Err(Error::Interrupted { .. }) => "stopped",
        Err(_) => "failed",
    });
    drop(serving);
    result
}

struct Run<'a> {
    control: &'a Control,
    recipe: &'a Recipe,
    setup: &'a Setup,
    folder: &'a RunFolder,
    progress: Progress,
    json: bool,
    traces: &'a Traces,
    interrupt: &'a Interrupt,
    steps: &'a StepContext<'a>,
    evaluator: Option<HeldOutEvaluator<'a>>,
    benchmarks: Option<Benchmarks<'a>>,
    metrics: JsonLines,
    samples: JsonLines,
    cursor: Cursor,
    total: u64,
    timers: StepTimers,
    state: TrainerState,
    /// The checksums of the run's inputs, where the state has none.
    unknown: Option<PendingChecksums>,
    accept_changed_inputs: bool,
    /// The metric of the best checkpoint.
    best_metric: Option<BestMetric>,
    /// The newest metrics with held-out measurements.
    last: Option<StepMetrics>,
    /// Step and operator's learning rate of the newest checkpoint.
    saved: Option<(u64, Option<f64>)>,
}

impl Run<'_> {
    fn finish(mut self) -> Result<()> {
        train::train(&mut self).map_err(|e| self.with_checkpoint(e))?;
        let checkpoint = self.save()?;
        let summary = Summary {
            recipe: self.recipe,
            checkpoint: &checkpoint,
            folder: self.folder.root(),
            before: &self.state.held_out_before,
            after: self.last.as_ref(),
            teacher: &self.state.teacher_scores,
            compared: benchmark::compared(self.folder, self.state.step).map_err(|why| why.to_string()),
            best: self.state.best.as_ref().filter(|_| self.best_metric.is_some()),
            timers: &self.timers,
            steps: self.state.step,
            gpu: self.setup.runtime.stats()?.gpu,
        };
        if self.json { summary.print_json() } else { summary.print() }
    }

    /// A span of this run.
    fn span(&self, name: &'static str, step: u64) -> Scope {
        let attributes =
            vec![KeyValue::new("arle.run", self.recipe.name.clone()), KeyValue::new("arle.step", step as i64)];
        self.traces.begin(name, attributes)
    }

    /// Whether all steps are taken, or the seconds that they may take are used up.
    fn is_over(&self) -> bool {
        let taken = self.timers.total() - self.timers.get("eval");
        self.state.step >= self.total || self.recipe.max_seconds.is_some_and(|most| taken >= most)
    }

    fn write(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.metrics.write(metrics.as_json())?;
        self.control.metrics(metrics);
        if self.json { summary::print_line(metrics.as_json()) } else { Ok(()) }
    }
}
