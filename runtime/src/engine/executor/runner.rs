//! A base model on the device with its adapters and the KV pool of all of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use autograd::Device;
use autograd::kv::{KvPool, KvShape, PAGE_TOKENS};

use super::graph_runner::GraphRunners;
use super::sequence::SequenceState;
use super::step::LastSamples;
use crate::config::ModelConfig;
use crate::ids::{ModelId, RequestId};
use crate::memory::Entry;
use crate::model::{Adapter, Decoder, LoadedModel, ModelParams, ModelWeights, Moved, keep_layers};
use crate::request::{ModelSpec, RuntimeSpec};
use crate::{Error, Result, sums};

/// A base model, the adapters on it, and what their steps need.
pub(super) struct ModelRunner {
    /// The base under its own id.
    base: ModelId,
    /// The base and the adapters.
    models: BTreeMap<ModelId, LoadedModel>,
    pub(super) pool: KvPool,
    num_pages: usize,
    /// Generations that have begun.
    pub(super) sequences: BTreeMap<RequestId, SequenceState>,
    /// The samples of the newest step.
    pub(super) last: LastSamples,
    /// Graphs and samples of a GPU.
    pub(super) graph_runners: Option<GraphRunners>,
}

/// Whether a model that a training run wrote is as it was written.
fn verify(model: &Path) -> Result<()> {
    if model.is_dir() { sums::verify(model, |name| !sums::OF_A_RUN.contains(&name)).map(drop) } else { Ok(()) }
}

impl ModelRunner {
    /// Loads a model, or takes `shared` weights for its base.
    pub(super) fn load(
        id: ModelId,
        spec: &RuntimeSpec,
        shared: Option<Arc<ModelWeights>>,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self> {
        let model = spec.model(id).expect("the specification has it");
        let (config, kept) = keep_layers(&model.files.config, model.layers.as_deref())?;
        let weights = match shared {
            Some(weights) => weights,
            None => Arc::new(load_weights(model, spec.is_offloaded(id), spec.device, &config, &kept, progress)?),
        };
        let adapter = model.adapter.as_ref().map(|dir| Adapter::load(dir, &config, spec.device)).transpose()?;
        let num_pages = if spec.generates(id) { kv_pages(&config, spec.device, spec.engine.kv_bytes) } else { 1 };
        let (positions, pool) = (config.max_position_embeddings, kv_pool(&config, spec.device, num_pages)?);
        let loaded = LoadedModel::new(Decoder::new(config, positions), weights, adapter);
        let graph_runners = match spec.device.gpu()? {
            Some(gpu) if spec.device.capabilities().graphs => Some(GraphRunners::new(gpu, spec.engine.max_running)?),
            _ => None,
        };
        Ok(Self {
            base: id,
            models: BTreeMap::from([(id, loaded)]),
            pool,
            num_pages,
            sequences: BTreeMap::new(),
            last: LastSamples::default(),
            graph_runners,
        })
    }

    /// The base model.
    pub(super) fn base(&self) -> &LoadedModel {
        self.loaded(self.base)
    }

    /// Pages of its KV memory.
    pub(super) fn num_pages(&self) -> usize {
        self.num_pages
    }

    /// The shape that all its models have.
    pub(super) fn config(&self) -> &Arc<ModelConfig> {
        self.base().config()
    }

    /// The model of this id, if it is one of this runner's.
    pub(super) fn model(&self, id: ModelId) -> Option<&LoadedModel> {
        self.models.get(&id)
    }

    /// One of its models.
    pub(super) fn loaded(&self, id: ModelId) -> &LoadedModel {
        &self.models[&id]
    }

    /// What a step of `id`'s sequences reads, and the memory that it writes.
    pub(super) fn model_and_pool(&mut self, id: ModelId) -> (&LoadedModel, &mut KvPool) {
        (&self.models[&id], &mut self.pool)
    }

    /// The same, beside the sampling state.
    pub(super) fn sequences_model_and_pool(
        &mut self,
        id: ModelId,
    ) -> (&BTreeMap<RequestId, SequenceState>, &LoadedModel, &mut KvPool) {
        (&self.sequences, &self.models[&id], &mut self.pool)
    }

    /// Runs requests of the base model with trained weights from now on. No step is in flight.
    pub(super) fn publish(&mut self, trained: ModelParams) -> Result<()> {
        self.replace(self.base, |model| model.publish(trained))
    }

    /// Adds an adapter, which lies on the host, under an id of its own.
    pub(super) fn add_adapter(&mut self, id: ModelId, adapter: &Adapter) -> Result<()> {
        let model = self.base().with_adapter(adapter)?;
        self.models.insert(id, model);
        Ok(())
    }

    /// Runs requests of adapter `id` with another adapter, which lies on the host, from now on. No step is in flight.
    pub(super) fn replace_adapter(&mut self, id: ModelId, adapter: &Adapter) -> Result<()> {
        self.replace(id, |model| model.replace_adapter(adapter).map(|()| Moved::Elsewhere))
    }

    /// Frees an adapter. No step is in flight.
    pub(super) fn remove_adapter(&mut self, id: ModelId) {
        self.models.remove(&id);
        self.drop_graphs(id);
    }

    fn replace(&mut self, id: ModelId, weights: impl FnOnce(&mut LoadedModel) -> Result<Moved>) -> Result<()> {
        let model = self.models.get_mut(&id).expect("the executor looked it up");
        if weights(model)? == Moved::Elsewhere {
            self.drop_graphs(id);
        }
        Ok(())
    }

    fn drop_graphs(&mut self, id: ModelId) {
        if let Some(graph_runners) = &mut self.graph_runners {
            graph_runners.drop_graphs(id);
        }
    }
}

/// Reads a model's weights; the sums of a checkpoint's files are taken meanwhile.
fn load_weights(
    model: &ModelSpec,
    offload: bool,
    device: Device,
    config: &ModelConfig,
    kept: &[usize],
    progress: &dyn Fn(usize, usize),
) -> Result<ModelWeights> {
    let kept = (kept, model.files.config.num_layers);
    let load = if offload { ModelWeights::load_offloaded } else { ModelWeights::load };
    let weights = std::thread::scope(|scope| {
        let whole = scope.spawn(|| verify(&model.files.path));
        let weights = load(config, &*model.files.weights, kept, device, progress);
        whole.join().expect("reading files does not panic")?;
        weights
    });
    weights.map_err(|e| e.while_allocating(Entry::Weights))
}

fn kv_shape(config: &ModelConfig) -> KvShape {
    KvShape { heads: config.num_heads, kv_heads: config.num_kv_heads, head_dim: config.head_dim }
}

/// Pages of a model's keys and values that `bytes` hold.
fn kv_pages(config: &ModelConfig, device: Device, bytes: usize) -> usize {
    bytes / (kv_shape(config).page_bytes(device) * config.num_layers)
}

/// Memory of so many pages.
fn kv_pool(config: &ModelConfig, device: Device, pages: usize) -> Result<KvPool> {
    let pool = KvPool::new(device, kv_shape(config), config.num_layers, pages);
    pool.map_err(|e| Error::from(e).while_allocating(Entry::Kv))
}

const _: () = assert!(PAGE_TOKENS == crate::kv::PAGE_SIZE, "scheduler and device disagree about pages");
