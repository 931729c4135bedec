//! What a run measures before its first step and between steps.

use std::collections::BTreeMap;

use telemetry::{KeyValue, Scope};

use super::benchmark::Benchmarks;
use super::inputs::{self, TASK_DATA};
use super::timers::StepTimers;
use super::{MAX_NON_FINITE, Run, summary};
use crate::metrics::StepMetrics;
use crate::{Error, Result};

impl Run<'_> {
    /// Refuses data of tasks that is not what it was.
    pub(super) fn check_task_data(&mut self) -> Result<()> {
        let Some(benchmarks) = &self.benchmarks else { return Ok(()) };
        let now = benchmarks.sums_now(&self.state.inputs.sums(TASK_DATA))?;
        self.take_task_data(now)
    }

    /// Keeps the checksums of the tasks' data.
    fn take_task_data(&mut self, sums: BTreeMap<String, String>) -> Result<()> {
        let changes = self.state.inputs.add(TASK_DATA, sums.clone());
        inputs::check(self.folder.root(), &changes, self.accept_changed_inputs, self.progress)?;
        if !changes.is_empty() {
            self.state.inputs.take(TASK_DATA);
            self.state.inputs.add(TASK_DATA, sums);
        }
        Ok(())
    }

    /// Measures before the first step, or where a run goes on, what Ctrl-C kept from being measured after its last one.
    ///
    /// # Errors
    /// As [`Self::conclude`].
    pub(super) fn eval_before_first_step(&mut self) -> Result<()> {
        if self.state.step == 0 && self.saved.is_none() {
            self.measure_before()?;
        }
        if let Some(metrics) = self.state.pending.take() {
            let scope = self.span("held_out", self.state.step);
            self.conclude(metrics, &scope)?;
            // The checkpoint of this step still has them.
            self.saved = None;
        }
        Ok(())
    }

    /// Held-out measurements before the first step.
    fn measure_before(&mut self) -> Result<()> {
        if !self.recipe.eval.as_ref().is_some_and(|eval| eval.at_start) {
            return Ok(());
        }
        if let Some(benchmarks) = &self.benchmarks {
            self.state.teacher_scores = self.stoppable(benchmarks.of_teacher())?;
        }
        let mut metrics = StepMetrics::at(0);
        let scope = self.span("held_out", 0);
        self.measure(&mut metrics, &scope)?;
        let numbers = metrics.named().filter(|(name, _)| name.starts_with("eval/"));
        self.state.held_out_before = numbers.map(|(name, value)| (name.to_owned(), value)).collect();
        self.write(&metrics)
    }

    /// Measures what is due after a step, and writes the step's numbers. A measurement that is stopped is left to the run's
    /// continuation.
    pub(super) fn conclude(&mut self, mut metrics: StepMetrics, scope: &Scope) -> Result<()> {
        if self.is_eval_due() {
            let of_step = metrics.clone();
            if let Err(error) = self.measure(&mut metrics, scope) {
                if matches!(error, Error::Interrupted { .. }) {
                    self.state.pending = Some(of_step);
                    self.save()?;
                }
                return Err(error);
            }
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

    fn is_eval_due(&self) -> bool {
        let Some(eval) = &self.recipe.eval else { return false };
        let periodic = eval.every > 0 && self.state.step.is_multiple_of(eval.every);
        periodic || (eval.at_end && self.is_over())
    }

    fn measure(&mut self, metrics: &mut StepMetrics, scope: &Scope) -> Result<()> {
        let mut timers = StepTimers::within(scope);
        let measured = timers.time("eval", || {
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
        let sums = self.benchmarks.as_ref().map(Benchmarks::data_sums);
        sums.map_or(Ok(()), |sums| self.take_task_data(sums))?;
        for sample in &self.stoppable(measured)? {
            self.samples.write(sample)?;
            self.control.sample(sample);
        }
        self.best_metric.as_ref().map_or(Ok(()), |by| by.check(metrics))?;
        metrics.set("time/eval", timers.get("eval"));
        self.timers.merge(&timers);
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
            asked if asked.is_interrupt() => Error::Interrupted { step: self.state.step },
            other => other,
        })
    }
}
