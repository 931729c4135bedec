//! Steps on a GPU. Steps of decodes alone are CUDA graphs in buckets of sequences and pages, captured when first needed;
//! other steps are launched op by op. Both leave their samples in the buffer of the models that share their weights.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use autograd::cuda::{Gpu, GraphMemory};
use autograd::decode::{DecodeGraph, DecodeRow, GraphBucket};
use autograd::kv::{KvPool, PagedBatch};
use autograd::ops::{self, PendingSamples, SampleBuffer, Token};
use autograd::{Index, Tensor};

use super::batch::Batch;
use super::runner::ModelRunner;
use crate::ids::ModelId;
use crate::memory::{Entry, graph_pages, graph_rows};
use crate::model::{LoadedModel, ModelWeights, PagedKv};
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
    graphs: BTreeMap<(ModelId, GraphBucket), DecodeGraph>,
}

impl GraphRunners {
    /// For steps of up to `rows` sequences.
    pub(super) fn new(ordinal: usize, rows: usize) -> Result<Self> {
        let memory = GraphMemory::new(Gpu::get(ordinal)?);
        Ok(Self { ordinal, rows, memory, by_weights: vec![] })
    }

    /// Drops the graphs of a model: what they read has moved. No step is in flight.
    pub(super) fn drop_graphs(&mut self, model: ModelId) {
        self.by_weights.retain(|runner| runner.weights.strong_count() > 0);
        for runner in &mut self.by_weights {
            runner.graphs.retain(|(id, _), _| *id != model);
        }
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

    /// A graph of `model`, whose id is `id`, in whose bucket these rows fit.
    fn graph(
        &mut self,
        rows: &[DecodeRow<'_>],
        id: ModelId,
        model: &LoadedModel,
        pool: &mut KvPool,
    ) -> Result<&mut DecodeGraph> {
        let longest = rows.iter().map(|row| row.pages.len()).max().unwrap_or(1);
        let processors = rows.iter().any(|row| row.sample.has_processors());
        let bucket = GraphBucket { rows: graph_rows(rows.len()), pages: graph_pages(longest), processors };
        let (ordinal, memory) = (self.ordinal, self.memory.clone());
        let runner = self.runner(&model.serving().weights)?;
        if !runner.graphs.contains_key(&(id, bucket)) {
            let pool = RefCell::new(pool);
            let step = |ids: &Index, batch: &PagedBatch| step(*pool.borrow_mut(), model, ids, batch);
            let graph = DecodeGraph::capture(ordinal, bucket, &memory, &runner.samples, step)?;
            runner.graphs.insert((id, bucket), graph);
        }
        Ok(runner.graphs.get_mut(&(id, bucket)).expect("it was just made"))
    }
}

/// Logits of one new token of every sequence.
fn step(pool: &mut KvPool, model: &LoadedModel, ids: &Index, batch: &PagedBatch) -> autograd::Result<Tensor> {
    let mut memory = PagedKv { pool, batch };
    let (decoder, params) = (model.decoder(), model.serving());
    let residual = decoder.residual_paged(&params.weights, params.row_adapters(), ids, &mut memory);
    let hidden = residual.and_then(|residual| decoder.normalize(&params.weights, &residual)).map_err(|e| match e {
        Error::Op(e) => e,
        other => unreachable!("a forward pass only runs ops: {other}"),
    })?;
    ops::logits(model.head(&hidden))
}

impl ModelRunner {
    /// Launches a batch of one model, which is decodes alone, as a graph.
    pub(super) fn launch_graph(
        &mut self,
        graph_runners: &mut GraphRunners,
        plan: &SchedulerOutput,
        batch: &Batch<'_>,
        tokens: &[Token],
    ) -> Result<PendingSamples> {
        let (sequences, model, pool) = self.sequences_model_and_pool(batch.model());
        let row = |(seq, &token): (&ScheduledSeq, _)| DecodeRow {
            token,
            position: seq.tokens.start,
            pages: plan.pages(seq),
            sample: sequences[&seq.id].sample_args(seq.tokens.end),
        };
        let rows: Vec<DecodeRow<'_>> = batch.seqs().zip(tokens).map(row).collect();
        let graph = graph_runners.graph(&rows, batch.model(), model, pool);
        Ok(graph.map_err(|e| e.while_allocating(Entry::Graphs))?.launch(&rows)?)
    }
}
