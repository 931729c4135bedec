//! Checkpoints: written beside and renamed, so that what is there is whole.
//!
//! ```text
//! checkpoints/step_000123/   adapter_model.safetensors + adapter_config.json   (or model.safetensors + config + tokenizer)
//!                            optimizer.safetensors   trainer_state.json   checkpoint.sha256: the sums of all of them
//!                            master_weights.safetensors   (where the model's weights are not saved in f32)
//! checkpoints/latest         a link to the newest
//! checkpoints/best           a link to the best, where `checkpoint.best` names its metric
//! ```

mod adapter;
mod folder;
mod inputs;
mod model;
mod state;
mod tensors;

use std::path::{Path, PathBuf};

use runtime::request::TrainState;
use runtime::sums;

pub use adapter::AdapterConfig;
pub(crate) use adapter::note_other_base;
pub use folder::Checkpoints;
pub use inputs::{Change, InputChecksums, InputFile};
pub use model::ModelExport;
pub use state::{Best, TrainerState};

use crate::Result;
use crate::recipe::SavedDtype;

/// Name of the adapter's weights.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// Name of a full model's weights.
pub const MODEL_WEIGHTS: &str = "model.safetensors";
const OPTIMIZER: &str = sums::OF_A_RUN[1];
/// The trained weights in f32, from which a run continues.
const MASTERS: &str = sums::OF_A_RUN[2];

/// In which form trained weights are written.
pub enum Export {
    /// A PEFT adapter.
    Adapter(AdapterConfig),
    /// A whole model, as transformers loads it.
    Model(Box<ModelExport>),
}

impl Export {
    fn weights_file(&self) -> &'static str {
        match self {
            Self::Adapter(_) => ADAPTER_WEIGHTS,
            Self::Model(_) => MODEL_WEIGHTS,
        }
    }

    fn dtype(&self) -> SavedDtype {
        match self {
            Self::Adapter(_) => SavedDtype::Float32,
            Self::Model(model) => model.dtype(),
        }
    }

    /// Name of the file that holds the trained weights in f32.
    fn masters_file(&self) -> &'static str {
        if self.dtype() == SavedDtype::Float32 { self.weights_file() } else { MASTERS }
    }

    /// Writes weights and their description into `folder`.
    fn write(&self, folder: &Path, state: &TrainState) -> Result<()> {
        tensors::write(&folder.join(self.weights_file()), &state.weights, self.dtype())?;
        if self.masters_file() != self.weights_file() {
            tensors::write(&folder.join(self.masters_file()), &state.weights, SavedDtype::Float32)?;
        }
        match self {
            Self::Adapter(config) => config.write(folder, state),
            Self::Model(model) => model.write(folder),
        }
    }
}

impl Checkpoints {
    /// Writes a checkpoint, points `latest` at it and `best` at the best, and drops the others beyond `keep_last`.
    ///
    /// # Errors
    /// When something cannot be written: then the checkpoints from before are as they were.
    pub fn save(&self, export: &Export, weights: &TrainState, trainer: &TrainerState) -> Result<PathBuf> {
        self.publish(trainer.step, trainer.best.as_ref(), &|folder: &Path| {
            export.write(folder, weights)?;
            tensors::write(&folder.join(OPTIMIZER), &weights.moments, SavedDtype::Float32)?;
            trainer.write(folder)
        })
    }

    /// Writes the newest checkpoint again with what was decided since. `None` where it is of another step.
    ///
    /// # Errors
    /// When it cannot be written: then it is as it was.
    pub fn amend(&self, trainer: &TrainerState) -> Result<Option<PathBuf>> {
        let Some(newest) = self.latest()?.filter(|path| path.ends_with(Self::name(trainer.step))) else {
            return Ok(None);
        };
        let written = self.publish(trainer.step, trainer.best.as_ref(), &|folder: &Path| {
            folder::link_files(&newest, folder, |name| name != state::FILE && name != sums::LIST)?;
            trainer.write(folder)
        });
        written.map(Some)
    }

    /// Reads where a run stood, and holds every file of the checkpoint against the sums that it was written with; false
    /// where it was written without them.
    ///
    /// # Errors
    /// A file that is missing, damaged or malformed.
    pub fn state(folder: &Path) -> Result<(TrainerState, bool)> {
        let summed = sums::verify(folder, |_| true)?;
        Ok((TrainerState::read(folder)?, summed))
    }

    /// Reads a checkpoint's tensors after `step` optimizer steps back, in the order of `current`'s.
    ///
    /// # Errors
    /// A file that is missing or malformed, or that holds other tensors than `current`.
    pub fn load(folder: &Path, export: &Export, step: u64, current: &TrainState) -> Result<TrainState> {
        let weights = tensors::read(&folder.join(export.masters_file()), &current.weights)?;
        let moments = tensors::read(&folder.join(OPTIMIZER), &current.moments)?;
        Ok(TrainState { weights, moments, step })
    }
}

#[cfg(test)]
mod tests;
