//! Where a run begins: at its first step, or behind a checkpoint.

use std::path::PathBuf;

use runtime::sums;

use super::folder::RunFolder;
use super::inputs::{self, TASK_DATA};
use super::setup::Setup;
use crate::Result;
use crate::checkpoint::{Checkpoints, TrainerState};
use crate::recipe::Recipe;
use command::progress::Progress;

/// Where a run begins.
pub(super) struct StartPoint {
    /// What is known there.
    pub(super) state: TrainerState,
    /// The checkpoint to take weights and optimizer state from.
    checkpoint: Option<PathBuf>,
    /// Whether the sums of the run's inputs are not known.
    pub(super) unknown: bool,
    /// Whether held-out rows measure something else than before.
    remeasure: bool,
}

impl StartPoint {
    /// The start of a new run, or the position of the checkpoint that `folder` is continued from: its files and the run's
    /// inputs are as they were, unless changes of the inputs are `accepted`.
    ///
    /// # Errors
    /// Damaged files, and changed inputs, by name.
    pub(super) fn find(
        recipe: &Recipe,
        folder: Option<&RunFolder>,
        accepted: bool,
        progress: Progress,
    ) -> Result<Self> {
        let recipe_sha256 = sums::of_bytes(recipe.to_toml().as_bytes());
        let Some((folder, path)) = folder.and_then(|folder| Some((folder, folder.resume_from.clone()?))) else {
            let state = TrainerState::start(recipe.runtime.seed, recipe_sha256);
            return Ok(Self { state, checkpoint: None, unknown: true, remeasure: false });
        };
        let (mut state, summed) = Checkpoints::state(&path)?;
        if !summed {
            progress.line(&format!(
                "note       {} was written without checksums (by an earlier version); its files are taken as they are",
                path.display()
            ));
        }
        state.recipe_sha256 = recipe_sha256;
        if state.inputs.is_empty() {
            folder.check_not_moved()?;
            return Ok(Self { state, checkpoint: Some(path), unknown: true, remeasure: false });
        }
        let (mut now, changes) = state.inputs.compare(&inputs::files(recipe, progress)?)?;
        inputs::check(&path, &changes, accepted, progress)?;
        now.extend(state.inputs.take(TASK_DATA));
        state.inputs = now;
        let remeasure = inputs::touch_measurements(&changes, recipe);
        Ok(Self { state, checkpoint: Some(path), unknown: false, remeasure })
    }

    /// Puts weights and optimizer state back, and gives up what can no longer be compared with.
    ///
    /// # Errors
    /// A checkpoint of other tensors; what the runtime refuses.
    pub(super) fn restore(
        &mut self,
        recipe: &Recipe,
        setup: &Setup,
        folder: &RunFolder,
        progress: Progress,
    ) -> Result<()> {
        let (Some(path), state) = (&self.checkpoint, &mut self.state) else { return Ok(()) };
        let now = setup.runtime.export_state()?;
        setup.runtime.restore_state(Checkpoints::load(path, &setup.export, state.optimizer_step, &now)?)?;
        setup.runtime.publish()?;
        folder.checkpoints.rewind(path)?;
        if self.remeasure {
            folder.forget_teacher_completions()?;
            state.held_out_before.clear();
            state.best = None;
            progress
                .line("note       held-out measurements begin anew: those from before the change are not comparable");
        }
        // A best one that has been dropped since, on the way that is abandoned now, cannot be kept any more.
        let best = state.best.take_if(|best| !folder.checkpoints.has(best.step));
        if let Some(best) = best {
            progress.line(&format!("best       that of step {} is gone; the next measurement counts", best.step));
        }
        folder.checkpoints.link_best(state.best.as_ref())?;
        progress.line(&format!("resume     {} (step {})", path.display(), state.step));
        if let Some(lr) = state.lr {
            let of_recipe = recipe.schedule.lr;
            progress.line(&format!("lr         {lr:e}, as set through /v1/train/lr; the recipe has {of_recipe:e}"));
        }
        Ok(())
    }
}
