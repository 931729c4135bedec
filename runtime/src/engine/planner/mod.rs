//! The planner of a base model's continuous batch: what runs next, and what becomes of the results. On one rank alone.

mod generation;
mod score;
mod step;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use autograd::Device;

use self::generation::GenerationState;
use self::score::ScoreQueue;
use self::step::InFlightStep;
use super::executor::check_params;
use crate::config::ModelConfig;
use crate::ids::{ModelId, RequestId};
use crate::kv::CacheKey;
use crate::request::{
    EngineConfig, GenerateEvent, GenerateRequest, ModelSnapshot, ModelStats, RequestError, StepStats, TokenMask,
};
use crate::scheduler::{Scheduler, SchedulerConfig, SeqRequest};
use crate::sink::Sink;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// The scheduler and the running requests of a base model and the adapters on it.
pub(super) struct BatchPlanner {
    base: ModelId,
    /// The shape of all its models.
    config: Arc<ModelConfig>,
    device: Device,
    tokenizer: Option<Arc<Tokenizer>>,
    /// Its models, each with the version of the weights that requests run with.
    versions: BTreeMap<ModelId, u64>,
    pub(super) scheduler: Scheduler,
    running: BTreeMap<RequestId, GenerationState>,
    /// Generations that have begun and ended, whose end is part of the next step's order.
    ended: Vec<RequestId>,
    /// Sequences that are scored in the same steps.
    scores: ScoreQueue,
    /// Whether a step is launched before the results of the one before are processed.
    async_scheduling: bool,
    /// Launched steps whose results are not processed, oldest first; the scheduler has the same steps in flight.
    in_flight: VecDeque<InFlightStep>,
    steps: StepStats,
    /// The newest error of a step, which the engine takes.
    pub(super) error: Option<Error>,
}

impl BatchPlanner {
    pub(super) fn new(
        base: ModelId,
        config: Arc<ModelConfig>,
        device: Device,
        tokenizer: Option<Arc<Tokenizer>>,
        num_pages: usize,
        engine: &EngineConfig,
    ) -> Result<Self> {
        let scheduler = Scheduler::new(SchedulerConfig {
            token_budget: engine.token_budget,
            max_running: engine.max_running,
            max_waiting: engine.max_waiting,
            num_pages,
            max_context: config.max_position_embeddings,
            prefix_cache: engine.prefix_cache,
        })?;
        Ok(Self {
            base,
            config,
            device,
            tokenizer,
            versions: BTreeMap::from([(base, 0)]),
            scheduler,
            running: BTreeMap::new(),
            ended: vec![],
            scores: ScoreQueue::default(),
            async_scheduling: engine.async_scheduling,
            in_flight: VecDeque::new(),
            steps: StepStats::default(),
            error: None,
        })
    }

    /// The shape of all its models.
    pub(super) fn config(&self) -> &Arc<ModelConfig> {
        &self.config
    }

    /// Whether it has a model of this id.
    pub(super) fn has(&self, model: ModelId) -> bool {
        self.versions.contains_key(&model)
    }

    /// Whether `model` is an adapter that was added.
    pub(super) fn is_adapter(&self, model: ModelId) -> bool {
        model != self.base && self.has(model)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.scores.is_empty()
    }

    /// Whether a request of this model has not ended.
    pub(super) fn is_used(&self, model: ModelId) -> bool {
        self.running.values().any(|generation| generation.model() == model) || self.scores.has_model(model)
    }

    pub(super) fn stats(&self) -> ModelStats {
        ModelStats { scheduler: self.scheduler.stats(), steps: self.steps }
    }

    pub(super) fn snapshots(&self) -> impl Iterator<Item = (ModelId, ModelSnapshot)> + '_ {
        let scheduler = self.scheduler.stats();
        let snapshot = move |version| ModelSnapshot { base: self.base, version, scheduler };
        self.versions.iter().map(move |(&id, &version)| (id, snapshot(version)))
    }

    /// An adapter was added to the base.
    pub(super) fn add_adapter(&mut self, id: ModelId) {
        self.versions.insert(id, 0);
    }

    /// An adapter that no request uses was removed: its cached prefixes are dropped.
    pub(super) fn remove_adapter(&mut self, id: ModelId) {
        self.versions.remove(&id);
        self.scheduler.forget_model(id);
    }

    /// A model has new weights: cached prefixes of older ones are dropped. Returns the new version.
    pub(super) fn weights_changed(&mut self, model: ModelId) -> u64 {
        assert!(self.in_flight.is_empty(), "steps in flight run with the old weights and would be taken for the new");
        let version = self.versions.get_mut(&model).expect("the engine looked it up");
        *version += 1;
        self.scheduler.publish(model, *version);
        *version
    }

    fn version(&self, model: ModelId) -> u64 {
        self.versions[&model]
    }

    /// Pages are shared by sequences of one model and version. They never leave the process, so one tokenizer and page format
    /// per model is all there is.
    fn cache_key(&self, model: ModelId) -> CacheKey {
        CacheKey { model, weights_version: self.version(model) }
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
        check_ids(&request.prompt, &self.config)?;
        request.params.validate(self.config.vocab_size)?;
        check_params(&request.params, &self.config, self.device)?;
        let (key, max_new_tokens) = (self.cache_key(request.model), request.params.max_tokens);
        let prompt = request.prompt.as_slice().into();
        let generation = GenerationState::new(request, mask, self.tokenizer.as_ref(), events.clone())?;
        let ahead = generation.is_ahead();
        self.scheduler.submit(SeqRequest { id, key, prompt, max_new_tokens, scored_from: None, ahead })?;
        self.running.insert(id, generation);
        Ok(())
    }

    /// Ends a request and frees its pages at once.
    pub(super) fn cancel(&mut self, id: RequestId) {
        self.cancel_scoring(id);
        if self.scheduler.cancel(id) {
            self.forget(id);
        }
    }

    /// Drops a generation's state, here and, with the next step, in the executor.
    fn forget(&mut self, id: RequestId) -> Option<GenerationState> {
        let generation = self.running.remove(&id)?;
        if generation.has_started() {
            self.ended.push(id);
        }
        Some(generation)
    }
}

/// Ids must be rows of the embedding.
fn check_ids(ids: &[u32], config: &ModelConfig) -> Result<(), RequestError> {
    match ids.iter().find(|&&id| id as usize >= config.vocab_size) {
        None => Ok(()),
        Some(&id) => Err(RequestError::TokenId { id, vocab_size: config.vocab_size }),
    }
}
