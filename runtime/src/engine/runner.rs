//! One resident model: its weights, its pages, its scheduler and its running requests.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use autograd::kv::{KvPool, KvShape, PAGE_TOKENS};
use autograd::{Device, Tensor, ops};

use super::generation::GenerationState;
use super::graph_runner::CudaGraphRunner;
use super::score::ScoreQueue;
use super::step::InFlightStep;
use crate::config::ModelConfig;
use crate::kv::CacheKey;
use crate::memory::Entry;
use crate::model::{Adapter, Decoder, ModelWeights, Pass, keep_layers};
use crate::request::{
    GenerateEvent, GenerateRequest, ModelId, ModelSnapshot, ModelSpec, RequestError, RuntimeSpec, StepStats, TokenMask,
};
use crate::scheduler::{RequestId, Scheduler, SchedulerConfig, SchedulerStats, SeqRequest};
use crate::sink::Sink;
use crate::text::Tokenizer;
use crate::{Error, Result, sums};

/// A model on the device with its continuous batch.
pub(crate) struct ModelRunner {
    id: ModelId,
    pub(super) decoder: Decoder,
    pub(super) serving: Pass,
    /// The frozen weights under `serving`'s branches.
    base: Arc<ModelWeights>,
    pub(super) version: u64,
    tokenizer: Option<Arc<Tokenizer>>,
    pub(super) scheduler: Scheduler,
    pub(super) pool: KvPool,
    pub(super) running: BTreeMap<RequestId, GenerationState>,
    /// Sequences that are scored in the same steps.
    pub(super) scores: ScoreQueue,
    /// Graphs and samples of a GPU.
    pub(super) graph_runner: Option<CudaGraphRunner>,
    /// Whether a step is launched before the results of the one before are processed.
    pub(super) async_scheduling: bool,
    /// Launched steps whose results are not processed, oldest first; the scheduler has the same steps in flight.
    pub(super) in_flight: VecDeque<InFlightStep>,
    pub(super) steps: StepStats,
    /// The newest error of a step, which the engine takes.
    pub(super) error: Option<Error>,
    /// Whether `serving` is this model's own copy of trained weights.
    owns_copy: bool,
}

/// Whether a model that a training run wrote is as it was written.
fn verify(model: &Path) -> Result<()> {
    if model.is_dir() { sums::verify(model, |name| !sums::OF_A_RUN.contains(&name)).map(drop) } else { Ok(()) }
}

impl ModelRunner {
    /// Loads a model, or takes `shared` weights for its base.
    pub(super) fn load(
        id: ModelId,
        model: &ModelSpec,
        spec: &RuntimeSpec,
        shared: Option<Arc<ModelWeights>>,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self> {
        let (config, kept) = keep_layers(&model.files.config, model.layers.as_deref())?;
        let weights = match shared {
            Some(weights) => weights,
            None => {
                let kept = (&kept[..], model.files.config.num_layers);
                let offload = id == ModelId::Teacher && spec.training.as_ref().is_some_and(|t| t.offload.teacher);
                let load = if offload { ModelWeights::load_offloaded } else { ModelWeights::load };
                // The sums of a checkpoint's files are taken while they are loaded.
                let weights = std::thread::scope(|scope| {
                    let whole = scope.spawn(|| verify(&model.files.path));
                    let weights = load(&config, &*model.files.weights, kept, spec.device, progress);
                    whole.join().expect("reading files does not panic")?;
                    weights
                });
                Arc::new(weights.map_err(|e| e.while_allocating(Entry::Weights))?)
            }
        };
        let adapter = model.adapter.as_ref().map(|dir| Adapter::load(dir, &config, spec.device)).transpose()?;
        let pages = match id {
            ModelId::Teacher if !spec.teacher_generates() => 1,
            _ => kv_pages(&config, spec.device, spec.engine.kv_bytes),
        };
        let (positions, pool) = (config.max_position_embeddings, kv_pool(&config, spec.device, pages)?);
        let decoder = Decoder::new(config, positions);
        Self::new(id, decoder, weights, adapter, model.files.tokenizer.clone(), (pool, pages), spec)
    }

    /// A model on the base weights of `other` with an adapter of its own, which lies on the host; `pool`: its memory, where
    /// that is the host's.
    pub(super) fn beside(
        other: &Self,
        id: ModelId,
        adapter: &Adapter,
        pool: Option<KvPool>,
        spec: &RuntimeSpec,
    ) -> Result<Self> {
        let (decoder, weights, tokenizer) = (other.decoder.clone(), other.weights(), other.tokenizer.clone());
        let pages = kv_pages(&decoder.config, spec.device, spec.engine.kv_bytes);
        let pool = pool.map_or_else(|| kv_pool(&decoder.config, spec.device, pages), Ok)?;
        Self::new(id, decoder, weights, Some(adapter.on(spec.device)?), tokenizer, (pool, pages), spec)
    }

    fn new(
        id: ModelId,
        decoder: Decoder,
        weights: Arc<ModelWeights>,
        adapter: Option<Adapter>,
        tokenizer: Option<Arc<Tokenizer>>,
        (pool, num_pages): (KvPool, usize),
        spec: &RuntimeSpec,
    ) -> Result<Self> {
        let config = &decoder.config;
        let scheduler = Scheduler::new(SchedulerConfig {
            token_budget: spec.engine.token_budget,
            max_running: spec.engine.max_running,
            max_waiting: spec.engine.max_waiting,
            num_pages,
            max_context: config.max_position_embeddings,
            prefix_cache: spec.engine.prefix_cache,
        })?;
        Ok(Self {
            id,
            pool,
            decoder,
            base: weights.clone(),
            serving: Pass::inference(weights, adapter.map(Arc::new)),
            version: 0,
            tokenizer,
            scheduler,
            running: BTreeMap::new(),
            scores: ScoreQueue::default(),
            graph_runner: match spec.device {
                Device::Cuda(ordinal) => Some(CudaGraphRunner::new(ordinal, spec.engine.max_running)?),
                Device::Cpu | Device::Portable => None,
            },
            async_scheduling: spec.engine.async_scheduling,
            in_flight: VecDeque::new(),
            steps: StepStats::default(),
            error: None,
            owns_copy: false,
        })
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        &self.decoder.config
    }

    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Hidden states with the head that makes logits of them.
    pub(super) fn head<'a>(&'a self, hidden: &'a Tensor) -> ops::Head<'a> {
        ops::Head { hidden, weight: self.serving.weights.output_head(), ids: self.config().token_ids }
    }

    /// The weights that requests are answered with.
    pub(crate) fn serving(&self) -> &Pass {
        &self.serving
    }

    pub(crate) fn weights(&self) -> Arc<ModelWeights> {
        self.base.clone()
    }

    pub(crate) fn device(&self) -> Device {
        Decoder::device(&self.serving.weights)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.scores.is_empty()
    }

    pub(super) fn stats(&self) -> (SchedulerStats, StepStats) {
        (self.scheduler.stats(), self.steps)
    }

    pub(super) fn snapshot(&self) -> ModelSnapshot {
        ModelSnapshot { version: self.version, scheduler: self.scheduler.stats() }
    }

    /// Answers requests with `pass` from now on; cached prefixes of older weights are dropped. No step is in flight.
    ///
    /// Training on a GPU changes weights in place, so requests are answered with a copy, which stays where it is: the
    /// captured decode steps read it. When every weight is trained, the weights that were loaded become that copy, unless
    /// a teacher has them too.
    pub(super) fn publish(&mut self, pass: Pass) -> Result<u64> {
        assert!(self.in_flight.is_empty(), "steps in flight run with the old weights and would be taken for the new");
        let full = pass.adapter.is_none();
        if matches!(self.device(), Device::Cuda(_)) {
            // `base` and `serving` hold them.
            self.owns_copy |=
                full && Arc::ptr_eq(&self.base, &self.serving.weights) && Arc::strong_count(&self.base) == 2;
            if self.owns_copy {
                self.serving.assign(&pass)?;
            } else {
                self.serving = pass.copied_from(&self.serving)?;
                if let Some(graph_runner) = &mut self.graph_runner {
                    graph_runner.drop_graphs();
                }
                self.owns_copy = true;
            }
        } else {
            self.serving = pass;
        }
        if full {
            // Nothing of the weights that were loaded is needed any more.
            self.base = self.serving.weights.clone();
        }
        self.version += 1;
        self.scheduler.publish(self.id.number(), self.version);
        Ok(self.version)
    }

    /// Answers requests with an adapter, which lies on the host, from now on. Captured steps read the memory of the old one, so
    /// they are forgotten.
    pub(super) fn replace_adapter(&mut self, adapter: &Adapter) -> Result<u64> {
        assert!(self.in_flight.is_empty(), "steps in flight run with the old weights and would be taken for the new");
        let adapter = adapter.on(self.device())?;
        self.serving = Pass::inference(self.base.clone(), Some(Arc::new(adapter)));
        if let Some(graph_runner) = &mut self.graph_runner {
            graph_runner.drop_graphs();
        }
        self.version += 1;
        self.scheduler.publish(self.id.number(), self.version);
        Ok(self.version)
    }

    pub(super) fn cache_key(&self) -> CacheKey {
        // Pages never leave the process, so one tokenizer, adapter and page format per model and version is all there is.
        CacheKey { slot: self.id.number(), weights_version: self.version, adapter: 0, tokenizer: 0, kv_format: 0 }
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
        let (key, max_new_tokens) = (self.cache_key(), request.params.max_tokens);
        let prompt = request.prompt.as_slice().into();
        let (tokenizer, config) = (self.tokenizer.as_ref(), self.config());
        let generation = GenerationState::new(request, mask, tokenizer, events.clone(), config, self.device())?;
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

fn kv_shape(config: &ModelConfig) -> KvShape {
    KvShape { heads: config.num_heads, kv_heads: config.num_kv_heads, head_dim: config.head_dim }
}

/// Pages of a model's keys and values that `bytes` hold.
pub(crate) fn kv_pages(config: &ModelConfig, device: Device, bytes: usize) -> usize {
    bytes / (kv_shape(config).page_bytes(device) * config.num_layers)
}

/// Memory of so many pages.
pub(crate) fn kv_pool(config: &ModelConfig, device: Device, pages: usize) -> Result<KvPool> {
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
