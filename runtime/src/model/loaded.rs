//! A model on the device as requests see it.

use std::sync::Arc;

use autograd::ops::LoraModules;
use autograd::{Device, Tensor, ops};

use super::{Adapter, Decoder, ModelParams, ModelWeights};
use crate::Result;
use crate::config::ModelConfig;

/// Frozen base weights, and an adapter on them or none.
pub(crate) struct LoadedModel {
    decoder: Decoder,
    /// The frozen weights under the adapter.
    base: Arc<ModelWeights>,
    serving: ModelParams,
    /// The adapter of `serving`, as steps that it shares with others use it.
    lora: Option<Arc<LoraModules>>,
    /// Whether `serving` is this model's own copy of trained weights.
    owns_copy: bool,
}

/// Whether new weights lie where the old ones did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// They were copied over the old ones.
    InPlace,
    /// They have new addresses: graphs that were captured with the old ones cannot run any more.
    Elsewhere,
}

impl LoadedModel {
    pub(crate) fn new(decoder: Decoder, base: Arc<ModelWeights>, adapter: Option<Adapter>) -> Self {
        let serving = ModelParams::inference(base.clone(), adapter.map(Arc::new));
        let lora = by_projection(&serving);
        Self { decoder, base, serving, lora, owns_copy: false }
    }

    /// An adapter on this model's base weights; it is copied from the host.
    ///
    /// # Errors
    /// The device is out of memory.
    pub(crate) fn with_adapter(&self, adapter: &Adapter) -> Result<Self> {
        Ok(Self::new(self.decoder.clone(), self.base.clone(), Some(adapter.on(self.device())?)))
    }

    pub(crate) fn config(&self) -> &Arc<ModelConfig> {
        &self.decoder.config
    }

    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The weights that requests run with.
    pub(crate) fn serving(&self) -> &ModelParams {
        &self.serving
    }

    /// The adapter of `serving`, for steps of several adapters.
    pub(crate) fn lora(&self) -> Option<Arc<LoraModules>> {
        self.lora.clone()
    }

    /// Whether one forward pass serves requests of both: their weights are the same tensors.
    pub(crate) fn shares_weights_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.serving.weights, &other.serving.weights)
    }

    /// The frozen weights.
    pub(crate) fn base(&self) -> &Arc<ModelWeights> {
        &self.base
    }

    pub(crate) fn device(&self) -> Device {
        Decoder::device(&self.serving.weights)
    }

    /// Hidden states with the head that makes logits of them.
    pub(crate) fn head<'a>(&'a self, hidden: &'a Tensor) -> ops::Head<'a> {
        ops::Head { hidden, weight: self.serving.weights.output_head(), ids: self.config().token_ids }
    }

    /// Runs requests with trained weights from now on. No step is in flight.
    ///
    /// Training on a GPU changes weights in place, so requests run with a copy, which stays where it is: the captured decode
    /// steps read it. When every weight is trained, the weights that were loaded become that copy, unless another model has
    /// them too.
    pub(crate) fn publish(&mut self, trained: ModelParams) -> Result<Moved> {
        let full = trained.adapter.is_none();
        let mut moved = Moved::Elsewhere;
        if self.device().capabilities().copies_trained_weights {
            // `base` and `serving` hold them.
            self.owns_copy |=
                full && Arc::ptr_eq(&self.base, &self.serving.weights) && Arc::strong_count(&self.base) == 2;
            if self.owns_copy {
                self.serving.assign(&trained)?;
                moved = Moved::InPlace;
            } else {
                self.serving = trained.copied_from(&self.serving)?;
                self.owns_copy = true;
            }
        } else {
            self.serving = trained;
        }
        self.lora = by_projection(&self.serving);
        if full {
            // The weights that were loaded are not needed any more.
            self.base = self.serving.weights.clone();
        }
        Ok(moved)
    }

    /// Runs requests with an adapter from the host from now on. No step is in flight.
    pub(crate) fn replace_adapter(&mut self, adapter: &Adapter) -> Result<()> {
        let adapter = adapter.on(self.device())?;
        self.serving = ModelParams::inference(self.base.clone(), Some(Arc::new(adapter)));
        self.lora = by_projection(&self.serving);
        Ok(())
    }
}

fn by_projection(params: &ModelParams) -> Option<Arc<LoraModules>> {
    params.adapter.as_ref().map(|adapter| Arc::new(adapter.by_projection(params.weights.layout())))
}
