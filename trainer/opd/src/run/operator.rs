//! What an operator does to a run between two steps: pause, save, another learning rate, a stop; and how a run ends early.

use super::Run;
use crate::{Error, Result};

impl Run<'_> {
    /// Does what the control plane requests, and waits while the run is paused.
    ///
    /// # Errors
    /// [`Error::Interrupted`] with a checkpoint written, where the run is to stop; a checkpoint that cannot be written.
    pub(super) fn follow_operator(&mut self) -> Result<()> {
        loop {
            if let Some(lr) = self.control.take_lr() {
                self.state.lr = Some(lr);
                self.control.lr_changed(self.state.step, lr);
                self.progress.line(&format!("lr         {lr:e} from step {} on, as asked for", self.state.step + 1));
            }
            if self.control.take_save() {
                self.save()?;
            }
            if !self.control.is_paused() {
                break;
            }
        }
        if self.interrupt.is_requested() {
            self.save()?;
            return Err(Error::Interrupted { step: self.state.step });
        }
        Ok(())
    }

    /// The error of a step. Where only the teacher's server was lost, or Ctrl-C ended the wait for it, all steps before it are saved.
    pub(super) fn keep_steps_before(&mut self, error: Error) -> Error {
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

    /// The error of a run that ends early, with the checkpoint that it left.
    pub(super) fn with_checkpoint(&self, error: Error) -> Error {
        if matches!(error, Error::Interrupted { .. }) {
            return error;
        }
        match (self.saved, self.folder.checkpoints.latest()) {
            (Some((step, _)), Ok(Some(checkpoint))) => Error::Stopped { source: Box::new(error), checkpoint, step },
            _ => error,
        }
    }
}
