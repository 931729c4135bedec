//! One resident model: its weights, its pages, its scheduler and the generations that run on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use autograd::kv::{KvPool, KvShape, PAGE_TOKENS, PagedBatch, PagedRows};
use autograd::{Device, Tape, Tensor, ops};
use rayon::prelude::*;

use super::decode::DecodeGraphs;
use super::generation::{Generation, Progress};
use crate::config::ModelConfig;
use crate::kv::CacheKey;
use crate::memory::Entry;
use crate::model::{Adapter, Decoder, ModelWeights, Paged, Pass, keep_layers};
use crate::request::{FinishReason, GenerateEvent, GenerateRequest, RuntimeSpec, Slot, SlotSpec};
use crate::sampler::{Sampled, SamplingError};
use crate::scheduler::{Plan, RequestId, Scheduler, SchedulerConfig, SchedulerStats, SeqRequest};
use crate::text::Tokenizer;
use crate::{Error, Result};

/// A model on the device with its continuous batch.
pub(crate) struct SlotEngine {
    slot: Slot,
    pub(super) decoder: Decoder,
    pub(super) serving: Pass,
    /// The frozen weights under `serving`'s branches.
    base: Arc<ModelWeights>,
    version: u64,
    tokenizer: Option<Arc<Tokenizer>>,
    pub(super) scheduler: Scheduler,
    pub(super) pool: KvPool,
    pub(super) running: BTreeMap<RequestId, Generation>,
    /// Decode steps on a GPU.
    pub(super) graphs: DecodeGraphs,
    /// Whether `serving` is this slot's own copy of trained weights.
    owns_copy: bool,
}

impl SlotEngine {
    /// Loads a model, or takes `shared` weights for its base.
    pub(super) fn load(
        slot: Slot,
        model: &SlotSpec,
        spec: &RuntimeSpec,
        shared: Option<Arc<ModelWeights>>,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self> {
        let (config, kept) = keep_layers(&model.files.config, model.layers.as_deref())?;
        let weights = match shared {
            Some(weights) => weights,
            None => {
                let kept = (&kept[..], model.files.config.num_layers);
                let offload = slot == Slot::Teacher && spec.training.as_ref().is_some_and(|t| t.offload.teacher);
                let load = if offload { ModelWeights::load_offloaded } else { ModelWeights::load };
                let weights = load(&config, &*model.files.weights, kept, spec.device, progress);
                Arc::new(weights.map_err(|e| e.asked_as(Entry::Weights))?)
            }
        };
        let adapter = model.adapter.as_ref().map(|dir| Adapter::load(dir, &config, spec.device)).transpose()?;
        let shape = KvShape { heads: config.num_heads, kv_heads: config.num_kv_heads, head_dim: config.head_dim };
        let num_pages = spec.engine.kv_bytes / (shape.page_bytes(spec.device) * config.num_layers);
        let scheduler = Scheduler::new(SchedulerConfig {
            token_budget: spec.engine.token_budget,
            max_running: spec.engine.max_running,
            max_waiting: spec.engine.max_waiting,
            num_pages,
            max_context: config.max_position_embeddings,
            prefix_cache: spec.engine.prefix_cache,
        })?;
        let positions = config.max_position_embeddings;
        Ok(Self {
            slot,
            pool: KvPool::new(spec.device, shape, config.num_layers, num_pages)
                .map_err(|e| Error::from(e).asked_as(Entry::Kv))?,
            decoder: Decoder::new(config, positions),
            base: weights.clone(),
            serving: Pass::inference(weights, adapter.map(Arc::new)),
            version: 0,
            tokenizer: model.files.tokenizer.clone(),
            scheduler,
            running: BTreeMap::new(),
            graphs: DecodeGraphs::default(),
            owns_copy: false,
        })
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        &self.decoder.config
    }

    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
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
        self.scheduler.is_idle()
    }

    pub(super) fn stats(&self) -> SchedulerStats {
        self.scheduler.stats()
    }

    /// Answers requests with `pass` from now on; cached prefixes of older weights are dropped.
    ///
    /// Training on a GPU changes weights in place, so requests are answered with a copy, which stays where it is: the
    /// captured decode steps read it. When every weight is trained, the weights that were loaded become that copy, unless
    /// a teacher has them too.
    pub(super) fn publish(&mut self, pass: Pass) -> Result<u64> {
        let full = pass.adapter.is_none();
        if matches!(self.device(), Device::Cuda(_)) {
            // `base` and `serving` hold them.
            self.owns_copy |=
                full && Arc::ptr_eq(&self.base, &self.serving.weights) && Arc::strong_count(&self.base) == 2;
            if self.owns_copy {
                self.serving.assign(&pass)?;
            } else {
                self.serving = pass.copied_from(&self.serving)?;
                self.graphs = DecodeGraphs::default();
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
        self.scheduler.publish(self.slot as u8, self.version);
        Ok(self.version)
    }

    fn cache_key(&self) -> CacheKey {
        // Pages never leave the process, so one tokenizer, adapter and page format per slot and version is all there is.
        CacheKey { slot: self.slot as u8, weights_version: self.version, adapter: 0, tokenizer: 0, kv_format: 0 }
    }

    /// Queues a generation, or reports on its stream why not.
    pub(super) fn submit(&mut self, id: RequestId, request: GenerateRequest, events: Sender<GenerateEvent>) {
        if let Err(e) = self.try_submit(id, request, &events) {
            drop(events.send(GenerateEvent::Failed(e)));
        }
    }

    fn try_submit(&mut self, id: RequestId, request: GenerateRequest, events: &Sender<GenerateEvent>) -> Result<()> {
        check_ids(&request.prompt, self.config())?;
        request.params.validate(self.config().vocab_size)?;
        let seq = SeqRequest {
            id,
            key: self.cache_key(),
            prompt: request.prompt.as_slice().into(),
            max_new_tokens: request.params.max_tokens,
        };
        let generation = Generation::new(request, self.tokenizer.as_ref(), events.clone())?;
        self.scheduler.submit(seq)?;
        self.running.insert(id, generation);
        Ok(())
    }

    /// Ends a generation and frees its pages at once.
    pub(super) fn cancel(&mut self, id: RequestId) {
        if self.scheduler.cancel(id) {
            self.running.remove(&id);
        }
    }

    /// One step of the continuous batch. An error is told to the requests of the step; the others go on.
    pub(super) fn step(&mut self) -> Result<()> {
        let plan = self.scheduler.plan();
        if plan.is_empty() {
            return Ok(());
        }
        match self.compute(&plan).map_err(|e| e.asked_as(Entry::Activations)) {
            Ok(sampled) => {
                self.deliver(sampled);
                Ok(())
            }
            Err(e) => {
                self.fail(plan.seqs.iter().map(|seq| seq.id), &e);
                self.scheduler.commit(&[]);
                Err(e)
            }
        }
    }

    /// Runs the planned tokens and draws the next ones.
    fn compute(&mut self, plan: &Plan) -> Result<Vec<(RequestId, Result<Sampled, SamplingError>)>> {
        for copy in &plan.copies {
            self.pool.copy_page(copy.src.0, copy.dst.0)?;
        }
        if let Some(sampled) = self.decode(plan)? {
            return Ok(sampled);
        }
        let mut ids = Vec::with_capacity(plan.num_tokens());
        let pages: Vec<Vec<u32>> = plan.seqs.iter().map(|s| s.pages.iter().map(|p| p.0).collect()).collect();
        let mut sequences = Vec::with_capacity(plan.seqs.len());
        let mut last_rows = Vec::new();
        for (seq, pages) in plan.seqs.iter().zip(&pages) {
            let tokens = self.scheduler.tokens(seq.id).expect("a planned request is in the scheduler");
            let first = ids.len();
            ids.extend_from_slice(&tokens[seq.tokens.clone()]);
            sequences.push(PagedRows { rows: first..ids.len(), position: seq.tokens.start, pages });
            if seq.sample {
                last_rows.push((seq.id, ids.len() - 1));
            }
            if let Some(generation) = self.running.get_mut(&seq.id) {
                generation.started(seq.tokens.start);
            }
        }
        let batch = PagedBatch::new(&sequences);
        let mut memory = Paged { pool: &mut self.pool, batch: &batch };
        let hidden = self.decoder.forward_paged(&self.serving, &ids.into(), &mut memory)?;
        if last_rows.is_empty() {
            return Ok(vec![]);
        }
        let rows = last_rows.iter().map(|(_, row)| *row as u32).collect();
        let hidden = ops::select_rows(&mut Tape::off(), &hidden, &rows)?;
        let logits = ops::logits(&hidden, self.serving.weights.output_head())?;
        let ids: Vec<RequestId> = last_rows.into_iter().map(|(id, _)| id).collect();
        let sampled = self.sample(&ids, &logits)?;
        Ok(ids.into_iter().zip(sampled).collect())
    }

    /// Draws a token for every row: on the GPU where the logits are there and no request needs them changed or listed.
    fn sample(&self, ids: &[RequestId], logits: &Tensor) -> Result<Vec<Result<Sampled, SamplingError>>> {
        let draws = matches!(logits.device(), Device::Cuda(_))
            .then(|| ids.iter().map(|id| self.running[id].plain_draw()).collect::<Option<Vec<_>>>());
        if let Some(draws) = draws.flatten() {
            let drawn = ops::draw(logits, &draws)?;
            return Ok(drawn.into_iter().map(|d| crate::sampler::from_device(d, logits.cols())).collect());
        }
        let (logits, eos) = (logits.read()?, &self.decoder.config.eos_token_ids);
        let rows = ids.par_iter().zip(logits.par_chunks(self.decoder.config.vocab_size));
        Ok(rows.map(|(id, logits)| self.running[id].draw(logits, eos)).collect())
    }

    /// Hands out sampled tokens and ends what has ended.
    fn deliver(&mut self, sampled: Vec<(RequestId, Result<Sampled, SamplingError>)>) {
        let tokens: Vec<(RequestId, u32)> =
            sampled.iter().filter_map(|(id, s)| s.as_ref().ok().map(|s| (*id, s.token))).collect();
        for (id, _) in sampled.iter().filter(|(_, s)| s.is_err()) {
            self.scheduler.cancel(*id);
        }
        self.scheduler.commit(&tokens);
        for (id, sampled) in sampled {
            let generation = self.running.get_mut(&id).expect("a sampled request is running");
            let progress = match sampled {
                Ok(sampled) => generation.push(sampled, &self.decoder.config.eos_token_ids, self.version),
                Err(e) => generation.fail(e.into()),
            };
            match progress {
                Progress::Continues => {}
                Progress::Ended(FinishReason::Cancelled) => self.cancel(id),
                Progress::Ended(_) => {
                    self.scheduler.finish(id);
                    self.running.remove(&id);
                }
            }
        }
    }

    /// Ends these requests with an error.
    fn fail(&mut self, ids: impl Iterator<Item = RequestId>, error: &Error) {
        for id in ids {
            if let Some(mut generation) = self.running.remove(&id) {
                generation.fail(error.for_another());
            }
            self.scheduler.cancel(id);
        }
    }

    /// Ends every request with an error.
    pub(super) fn fail_all(&mut self, error: &Error) {
        let ids: Vec<RequestId> = self.running.keys().copied().collect();
        self.fail(ids.into_iter(), error);
    }
}

/// Ids must be rows of the embedding.
pub(super) fn check_ids(ids: &[u32], config: &ModelConfig) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= config.vocab_size) {
        None => Ok(()),
        Some(id) => {
            Err(Error::Request(format!("token id {id} is outside the model's vocabulary of {}", config.vocab_size)))
        }
    }
}

const _: () = assert!(PAGE_TOKENS == crate::kv::PAGE_SIZE, "scheduler and device disagree about pages");
