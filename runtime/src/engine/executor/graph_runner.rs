//! Steps on a GPU. Steps of decodes alone are CUDA graphs in buckets of sequences and pages, captured when first needed;
//! other steps are launched op by op. Both leave their samples in the buffer of the models that share their weights.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use autograd::cuda::{Gpu, GraphMemory};
use autograd::decode::{DecodeGraph, DecodeRow, GraphBucket};
use autograd::kv::{KvPool, PagedBatch};
use autograd::ops::{self, LoraSegments, PendingSamples, SampleBuffer, Token};
use autograd::{Index, Tensor};

use super::batch::Batch;
use super::runner::ModelRunner;
use crate::ids::ModelId;
use crate::memory::{Entry, graph_pages, graph_rows};
use crate::model::{LoadedModel, ModelWeights, PagedKv, RowAdapters};
use crate::scheduler::{ScheduledSeq, SchedulerOutput};
use crate::{Error, Result};

/// What the steps of a runner's models need on a GPU.
pub(super) struct GraphRunners {
    ordinal: usize,
    /// Most sequences of a step.
    rows: usize,
    /// Graphs run one after another, so they share their memory.
    memory: GraphMemory,
    by_weights: Vec<CudaGraphRunner>,
}

/// The CUDA graphs of the models that have the same weights, and the buffer of the samples of their batches.
struct CudaGraphRunner {
    weights: Weak<ModelWeights>,
    samples: Arc<SampleBuffer>,
    /// Of one model, or of rows with adapters that come with each launch.
    graphs: BTreeMap<(Option<ModelId>, GraphBucket), DecodeGraph>,
}

impl GraphRunners {
    /// For steps of up to `rows` sequences.
    pub(super) fn new(gpu: &'static Gpu, rows: usize) -> Result<Self> {
        let memory = GraphMemory::new(gpu);
        Ok(Self { ordinal: gpu.info().ordinal, rows, memory, by_weights: vec![] })
    }

    /// Drops the graphs of a model: what they read has moved. No step is in flight.
    pub(super) fn drop_graphs(&mut self, model: ModelId) {
        self.by_weights.retain(|runner| runner.weights.strong_count() > 0);
        for runner in &mut self.by_weights {
            runner.graphs.retain(|(id, _), _| *id != Some(model));
        }
    }

    /// Whether a decode graph can have these adapters.
    pub(super) fn fit(&self, lora: Option<&LoraSegments>) -> Result<bool> {
        Ok(lora.map_or(Ok(true), |lora| lora.fits_graph(self.ordinal))?)
    }

    /// The buffer of the samples of batches with these weights.
    pub(super) fn samples(&mut self, weights: &Arc<ModelWeights>) -> Result<Arc<SampleBuffer>> {
        Ok(self.runner(weights)?.samples.clone())
    }

    fn runner(&mut self, weights: &Arc<ModelWeights>) -> Result<&mut CudaGraphRunner> {
        let weights = Arc::downgrade(weights);
        let found = self.by_weights.iter().position(|runner| runner.weights.ptr_eq(&weights));
        let place = match found {
            Some(place) => place,
            None => {
                let samples = Arc::new(SampleBuffer::new(self.ordinal, graph_rows(self.rows))?);
                self.by_weights.push(CudaGraphRunner { weights, samples, graphs: BTreeMap::new() });
                self.by_weights.len() - 1
            }
        };
        Ok(&mut self.by_weights[place])
    }

    /// A graph of `model`, with the adapter of model `of` or, without one, with adapters that come with each launch, in whose
    /// bucket these rows fit.
    fn graph(
        &mut self,
        rows: &[DecodeRow<'_>],
        of: Option<ModelId>,
        model: &LoadedModel,
        pool: &mut KvPool,
    ) -> Result<&mut DecodeGraph> {
        let longest = rows.iter().map(|row| row.pages.len()).max().unwrap_or(1);
        let processors = rows.iter().any(|row| row.sample.has_processors());
        let (count, pages) = (graph_rows(rows.len()), graph_pages(longest));
        let bucket = GraphBucket { rows: count, pages, processors, adapters: of.is_none() };
        let (ordinal, memory) = (self.ordinal, self.memory.clone());
        let runner = self.runner(&model.serving().weights)?;
        if !runner.graphs.contains_key(&(of, bucket)) {
            let pool = RefCell::new(pool);
            let step = |ids: &Index, batch: &PagedBatch, lora: Option<&LoraSegments>| {
                let adapters = lora.map_or_else(|| model.serving().row_adapters(), RowAdapters::Segments);
                step(PagedKv { pool: *pool.borrow_mut(), batch }, model, adapters, ids)
            };
            let graph = DecodeGraph::capture(ordinal, bucket, &memory, &runner.samples, step)?;
            runner.graphs.insert((of, bucket), graph);
        }
        Ok(runner.graphs.get_mut(&(of, bucket)).expect("it was just made"))
    }
}

/// Logits of one new token of every sequence.
fn step(
    mut memory: PagedKv<'_>,
    model: &LoadedModel,
    adapters: RowAdapters<'_>,
    ids: &Index,
) -> autograd::Result<Tensor> {
    let (decoder, weights) = (model.decoder(), &*model.serving().weights);
    let residual = decoder.residual_paged(weights, adapters, ids, &mut memory);
    let hidden = residual.and_then(|residual| decoder.normalize(weights, &residual)).map_err(|e| match e {
        Error::Op(e) => e,
        other => unreachable!("a forward pass only runs ops: {other}"),
    })?;
    ops::logits(model.head(&hidden))
}

impl ModelRunner {
    /// Launches a batch, which is decodes alone, as a graph; `lora` are the adapters of a batch of several.
    pub(super) fn launch_graph(
        &mut self,
        graph_runners: &mut GraphRunners,
        plan: &SchedulerOutput,
        batch: &Batch<'_>,
        tokens: &[Token],
        lora: Option<&LoraSegments>,
    ) -> Result<PendingSamples> {
        let (sequences, model, pool) = self.sequences_model_and_pool(batch.model());
        let row = |(seq, &token): (&ScheduledSeq, _)| DecodeRow {
            token,
            position: seq.tokens.start,
            pages: plan.pages(seq),
            sample: sequences[&seq.id].sample_args(seq.tokens.end),
        };
        let rows: Vec<DecodeRow<'_>> = batch.seqs().zip(tokens).map(row).collect();
        let graph = graph_runners.graph(&rows, lora.is_none().then(|| batch.model()), model, pool);
        Ok(graph.map_err(|e| e.while_allocating(Entry::Graphs))?.launch(&rows, lora)?)
    }
}
