//! A base model on the device with its adapters: one scheduler, one KV pool and one continuous batch for all of them.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use autograd::Device;
use autograd::kv::{KvPool, KvShape, PAGE_TOKENS};

use super::generation::GenerationState;
use super::graph_runner::GraphRunners;
use super::score::ScoreQueue;
use super::step::InFlightStep;
use crate::config::ModelConfig;
use crate::ids::{ModelId, RequestId};
use crate::kv::CacheKey;
use crate::memory::Entry;
use crate::model::{Adapter, Decoder, LoadedModel, ModelWeights, Moved, Pass, keep_layers};
use crate::request::{
    GenerateEvent, GenerateRequest, ModelSnapshot, ModelSpec, ModelStats, RequestError, RuntimeSpec, StepStats,
    TokenMask,
};
use crate::scheduler::{Scheduler, SchedulerConfig, SeqRequest};
use crate::sink::Sink;
use crate::text::Tokenizer;
use crate::{Error, Result, sums};

/// A base model, the adapters on it, and their continuous batch. A sequence's model is part of its key in the prefix cache.
pub(crate) struct ModelRunner {
    /// The base under its own id.
    base: ModelId,
    /// The base and the adapters.
    models: BTreeMap<ModelId, LoadedModel>,
    tokenizer: Option<Arc<Tokenizer>>,
    pub(super) scheduler: Scheduler,
    pub(super) pool: KvPool,
    pub(super) running: BTreeMap<RequestId, GenerationState>,
    /// Sequences that are scored in the same steps.
    pub(super) scores: ScoreQueue,
    /// Graphs and samples of a GPU.
    pub(super) graph_runners: Option<GraphRunners>,
    /// Whether a step is launched before the results of the one before are processed.
    pub(super) async_scheduling: bool,
    /// Launched steps whose results are not processed, oldest first; the scheduler has the same steps in flight.
    pub(super) in_flight: VecDeque<InFlightStep>,
    pub(super) steps: StepStats,
    /// The newest error of a step, which the engine takes.
    pub(super) error: Option<Error>,
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
        let engine = &spec.engine;
        let scheduler = Scheduler::new(SchedulerConfig {
            token_budget: engine.token_budget,
            max_running: engine.max_running,
            max_waiting: engine.max_waiting,
            num_pages,
            max_context: positions,
            prefix_cache: engine.prefix_cache,
        })?;
        let loaded = LoadedModel::new(Decoder::new(config, positions), weights, adapter);
        let graph_runners = match spec.device {
            Device::Cuda(ordinal) => Some(GraphRunners::new(ordinal, engine.max_running)?),
            Device::Cpu | Device::Portable => None,
        };
        Ok(Self {
            base: id,
            models: BTreeMap::from([(id, loaded)]),
            tokenizer: model.files.tokenizer.clone(),
            scheduler,
            pool,
            running: BTreeMap::new(),
            scores: ScoreQueue::default(),
            graph_runners,
            async_scheduling: engine.async_scheduling,
            in_flight: VecDeque::new(),
            steps: StepStats::default(),
            error: None,
        })
    }

    /// The base model.
    pub(super) fn base(&self) -> &LoadedModel {
        self.model(self.base)
    }

    /// The shape that all its models have.
    pub(super) fn config(&self) -> &Arc<ModelConfig> {
        self.base().config()
    }

    /// Whether it has a model of this id.
    pub(super) fn has(&self, id: ModelId) -> bool {
        self.models.contains_key(&id)
    }

    /// One of its models.
    pub(super) fn model(&self, id: ModelId) -> &LoadedModel {
        &self.models[&id]
    }

    /// What a step of `id`'s sequences reads, and the memory that it writes.
    pub(super) fn model_and_pool(&mut self, id: ModelId) -> (&LoadedModel, &mut KvPool) {
        (&self.models[&id], &mut self.pool)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.scores.is_empty()
    }

    /// Whether a request of this model has not ended.
    pub(super) fn is_used(&self, id: ModelId) -> bool {
        self.running.values().any(|generation| generation.model() == id) || self.scores.has_model(id)
    }

    pub(super) fn stats(&self) -> ModelStats {
        ModelStats { scheduler: self.scheduler.stats(), steps: self.steps }
    }

    pub(super) fn snapshots(&self) -> impl Iterator<Item = (ModelId, ModelSnapshot)> + '_ {
        let scheduler = self.scheduler.stats();
        let snapshot =
            move |model: &LoadedModel| ModelSnapshot { base: self.base, version: model.version(), scheduler };
        self.models.iter().map(move |(&id, model)| (id, snapshot(model)))
    }

    /// Runs requests of the base model with trained weights from now on; cached prefixes of older weights are dropped.
    pub(super) fn publish(&mut self, trained: Pass) -> Result<u64> {
        self.replace(self.base, |model| model.publish(trained))
    }

    /// Adds an adapter, which lies on the host, under an id of its own.
    pub(super) fn add_adapter(&mut self, id: ModelId, adapter: &Adapter) -> Result<()> {
        let model = self.base().with_adapter(adapter)?;
        self.models.insert(id, model);
        Ok(())
    }

    /// Runs requests of adapter `id` with another adapter, which lies on the host, from now on.
    pub(super) fn replace_adapter(&mut self, id: ModelId, adapter: &Adapter) -> Result<u64> {
        self.replace(id, |model| model.replace_adapter(adapter).map(|()| Moved::Elsewhere))
    }

    /// Frees an adapter that no request uses, with its cached prefixes.
    pub(super) fn remove_adapter(&mut self, id: ModelId) {
        self.models.remove(&id);
        self.scheduler.forget_model(id);
        self.drop_graphs(id);
    }

    /// Whether `id` is an adapter that was added.
    pub(super) fn is_adapter(&self, id: ModelId) -> bool {
        id != self.base && self.has(id)
    }

    fn replace(&mut self, id: ModelId, weights: impl FnOnce(&mut LoadedModel) -> Result<Moved>) -> Result<u64> {
        assert!(self.in_flight.is_empty(), "steps in flight run with the old weights and would be taken for the new");
        let model = self.models.get_mut(&id).expect("the engine looked it up");
        let moved = weights(model)?;
        let version = model.version();
        if moved == Moved::Elsewhere {
            self.drop_graphs(id);
        }
        self.scheduler.publish(id, version);
        Ok(version)
    }

    fn drop_graphs(&mut self, id: ModelId) {
        if let Some(graph_runners) = &mut self.graph_runners {
            graph_runners.drop_graphs(id);
        }
    }

    /// Pages are shared by sequences of one model and version. They never leave the process, so one tokenizer and page format
    /// per model is all there is.
    pub(super) fn cache_key(&self, id: ModelId) -> CacheKey {
        CacheKey { model: id, weights_version: self.model(id).version() }
    }

    /// Queues a generation, or sends the reason of a refusal to its sink.
    pub(super) fn submit(
        &mut self,
        id: RequestId,
        request: GenerateRequest,
        mask: Option<Box<dyn TokenMask>>,
        events: Sink<GenerateEvent>,
    ) {
        if let Err(e) = self.try_submit(id, request, mask, &events) {
            drop(events.send(GenerateEvent::Failed(e)));
        }
    }

    fn try_submit(
        &mut self,
        id: RequestId,
        request: GenerateRequest,
        mask: Option<Box<dyn TokenMask>>,
        events: &Sink<GenerateEvent>,
    ) -> Result<()> {
        check_ids(&request.prompt, self.config())?;
        request.params.validate(self.config().vocab_size)?;
        let (key, max_new_tokens) = (self.cache_key(request.model), request.params.max_tokens);
        let prompt = request.prompt.as_slice().into();
        let (tokenizer, config, device) = (self.tokenizer.as_ref(), self.config(), self.base().device());
        let generation = GenerationState::new(request, mask, tokenizer, events.clone(), config, device)?;
        let ahead = generation.is_ahead();
        self.scheduler.submit(SeqRequest { id, key, prompt, max_new_tokens, scored_from: None, ahead })?;
        self.running.insert(id, generation);
        Ok(())
    }

    /// Ends a request and frees its pages at once.
    pub(super) fn cancel(&mut self, id: RequestId) {
        self.cancel_scoring(id);
        if self.scheduler.cancel(id) {
            self.running.remove(&id);
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

/// Ids must be rows of the embedding.
pub(super) fn check_ids(ids: &[u32], config: &ModelConfig) -> Result<(), RequestError> {
    match ids.iter().find(|&&id| id as usize >= config.vocab_size) {
        None => Ok(()),
        Some(&id) => Err(RequestError::TokenId { id, vocab_size: config.vocab_size }),
    }
}

const _: () = assert!(PAGE_TOKENS == crate::kv::PAGE_SIZE, "scheduler and device disagree about pages");
