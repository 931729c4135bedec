//! When a run writes a checkpoint, and what goes into it.

use std::path::PathBuf;

use super::Run;
use super::inputs::{PendingChecksums, TASK_DATA};
use crate::Result;
use crate::metrics::StepMetrics;

impl Run<'_> {
    /// Writes the checkpoint that `checkpoint.every` asks for.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub(super) fn save_periodically(&mut self) -> Result<()> {
        let every = self.recipe.checkpoint.every;
        if every > 0 && self.state.step.is_multiple_of(every) { self.save().map(drop) } else { Ok(()) }
    }

    /// Keeps a checkpoint of this step where no step before it measured better.
    pub(super) fn keep_if_best(&mut self, metrics: &StepMetrics) -> Result<()> {
        let Some(by) = &self.best_metric else { return Ok(()) };
        let Some(best) = by.improved(metrics, self.state.step, self.state.best.as_ref()) else { return Ok(()) };
        self.progress.line(&format!("best       {} {:.4}", best.metric, best.value));
        self.state.best = Some(best);
        self.save().map(drop)
    }

    /// Writes a checkpoint unless this step has one; that one may lack a learning rate that was set since.
    pub(super) fn save(&mut self) -> Result<PathBuf> {
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
        if let Some(mut sums) = self.unknown.take().map(PendingChecksums::wait).transpose()? {
            sums.extend(self.state.inputs.take(TASK_DATA));
            self.state.inputs = sums;
        }
        let weights = self.setup.runtime.export_state()?;
        self.state.optimizer_step = weights.step;
        self.state.metrics_bytes = self.metrics.bytes();
        self.state.samples_bytes = self.samples.bytes();
        self.state.seconds = self.timers.seconds().clone();
        let path = self.folder.checkpoints.save(&self.setup.export, &weights, &self.state)?;
        self.saved = Some(now);
        self.progress.line(&format!("saved      {}", path.display()));
        self.control.saved(self.state.step, &path.display().to_string());
        Ok(path)
    }
}
