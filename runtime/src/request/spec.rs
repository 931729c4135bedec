//! What the runtime starts from.

use std::path::PathBuf;
use std::sync::Arc;

use autograd::Device;

use super::ModelId;
use crate::files::ModelFiles;
use crate::train::{DecodeLoss, Training};

/// Everything the runtime needs to start.
#[derive(Clone)]
pub struct RuntimeSpec {
    /// Where to run.
    pub device: Device,
    /// A sequence gives the same bits alone, in any batch, in chunks, after a prefix hit and in training. The CPU always
    /// does; a GPU is slower with it.
    pub deterministic: bool,
    /// The models; [`super::ModelId`] is the place in this list. The first is the student, or the only one: it is what
    /// `training` trains. Others are its teachers and whatever else is to answer. Models of the same files and layers share
    /// their base weights, unless they are offloaded.
    pub models: Vec<ModelSpec>,
    /// How the first model is trained; `None` only runs requests.
    pub training: Option<Training>,
    /// Makes a loss of the bytes that [`crate::train::Loss::encode`] wrote: every rank runs the loss that it gets in an order.
    pub decode_loss: DecodeLoss,
    /// Scheduler and memory limits.
    pub engine: EngineConfig,
}

impl RuntimeSpec {
    /// One model on a device, with the default limits there and without training.
    #[must_use]
    pub fn for_device(device: Device, model: ModelSpec) -> Self {
        let engine = EngineConfig::for_device(device);
        let decode_loss = crate::train::no_losses;
        Self { device, deterministic: false, models: vec![model], training: None, decode_loss, engine }
    }

    /// The first model.
    ///
    /// # Panics
    /// There is no model.
    #[must_use]
    pub fn student(&self) -> &ModelSpec {
        &self.models[0]
    }

    /// The second model, where it is the student's teacher.
    #[must_use]
    pub fn teacher(&self) -> Option<&ModelSpec> {
        self.models.get(1)
    }

    /// The model of this id.
    #[must_use]
    pub fn model(&self, id: ModelId) -> Option<&ModelSpec> {
        self.models.get(id.0 as usize)
    }

    /// The ids of the models.
    pub fn ids(&self) -> impl Iterator<Item = ModelId> + use<> {
        (0..self.models.len() as u32).map(ModelId)
    }

    /// Whether prompts are completed by this model. One that only scores has KV memory of one page.
    #[must_use]
    pub fn generates(&self, id: ModelId) -> bool {
        id == ModelId::STUDENT || self.training.as_ref().is_none_or(|training| training.teacher_generates)
    }

    /// Whether the model's layers wait in the host's memory.
    #[must_use]
    pub fn is_offloaded(&self, id: ModelId) -> bool {
        id != ModelId::STUDENT && self.training.as_ref().is_some_and(|training| training.offload.teacher)
    }

    /// The first model that has the same layers of the same files, whose weights are then loaded once.
    #[must_use]
    pub fn shares_weights_with(&self, id: ModelId) -> Option<ModelId> {
        let model = self.model(id)?;
        let same = |other: &ModelSpec| other.files.path == model.files.path && other.layers == model.layers;
        let earlier = self.ids().take_while(|&other| other < id).filter(|&other| !self.is_offloaded(other));
        let mut earlier = earlier.filter(|&other| self.model(other).is_some_and(same));
        if self.is_offloaded(id) { None } else { earlier.next() }
    }

    /// Whether the teacher has the student's weights.
    #[must_use]
    pub fn teacher_shares_weights(&self) -> bool {
        self.shares_weights_with(ModelId::TEACHER).is_some()
    }
}

/// One model to load.
#[derive(Clone)]
pub struct ModelSpec {
    /// An opened model.
    pub files: Arc<ModelFiles>,
    /// Keep only these layers of it, in this order.
    pub layers: Option<Vec<usize>>,
    /// A PEFT adapter folder to apply on top, frozen unless `training` continues it.
    pub adapter: Option<PathBuf>,
}

impl ModelSpec {
    /// A whole model without an adapter.
    #[must_use]
    pub fn new(files: Arc<ModelFiles>) -> Self {
        Self { files, layers: None, adapter: None }
    }
}

/// Limits of the engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Tokens computed in one step, at most (prefill chunks and decodes together).
    pub token_budget: usize,
    /// Sequences running at once.
    pub max_running: usize,
    /// Requests waiting at most; one more is refused.
    pub max_waiting: usize,
    /// Bytes of KV memory of each model.
    pub kv_bytes: usize,
    /// Whether finished prefixes are kept for reuse.
    pub prefix_cache: bool,
    /// Whether a step is launched before the host has processed the results of the one before. The tokens are the same.
    pub async_scheduling: bool,
    /// Whether steps beside running generations take so few tokens of prompts that these wait little more than without.
    /// For interactive streams; a batch of work is done sooner without.
    pub short_steps: bool,
    /// Whether this rank's own orders pass through bytes, as those of other ranks do. Results are the same; for tests.
    pub encode_orders: bool,
}

impl EngineConfig {
    /// The default limits for requests on `device`: 16 sequences at once, 256 MiB of keys and values.
    #[must_use]
    pub fn for_device(device: Device) -> Self {
        Self {
            token_budget: Self::default_token_budget(device),
            max_running: 16,
            max_waiting: 256,
            kv_bytes: 256 << 20,
            prefix_cache: true,
            async_scheduling: Self::default_async_scheduling(device),
            short_steps: false,
            encode_orders: false,
        }
    }

    /// Tokens of one scheduler step that keep `device` busy: a GPU wants whole prompts, a CPU short steps between which
    /// running sequences get their next token.
    #[must_use]
    pub fn default_token_budget(device: Device) -> usize {
        device.capabilities().defaults.step_tokens
    }

    /// A GPU computes while the host looks at results; on a CPU both are the same cores.
    #[must_use]
    pub fn default_async_scheduling(device: Device) -> bool {
        device.capabilities().asynchronous
    }
}
