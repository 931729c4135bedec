//! Steps on a GPU. Steps of decodes alone are CUDA graphs in buckets of sequences and pages, captured when first needed;
//! other steps are launched op by op. Both leave their samples in the model's sample buffer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use autograd::cuda::{Gpu, GraphMemory};
use autograd::decode::{DecodeGraph, DecodeRow, GraphBucket};
use autograd::kv::{KvPool, PagedBatch};
use autograd::ops::{self, PendingSamples, SampleBuffer, Token};
use autograd::{Index, Tensor};

use super::runner::ModelRunner;
use crate::ids::ModelId;
use crate::memory::{Entry, graph_pages, graph_rows};
use crate::model::{LoadedModel, PagedKv};
use crate::scheduler::{ModelGroup, ScheduledSeq, SchedulerOutput};
use crate::{Error, Result};

/// What the steps of a runner's models need on a GPU, by model.
pub(super) struct GraphRunners {
    ordinal: usize,
    /// Most sequences of a step.
    rows: usize,
    /// Graphs run one after another, so they share their memory.
    memory: GraphMemory,
    by_model: BTreeMap<ModelId, CudaGraphRunner>,
}

/// The CUDA graphs of a model and the buffer of its samples.
struct CudaGraphRunner {
    samples: Arc<SampleBuffer>,
    graphs: BTreeMap<GraphBucket, DecodeGraph>,
}

impl GraphRunners {
    /// For steps of up to `rows` sequences.
    pub(super) fn new(ordinal: usize, rows: usize) -> Result<Self> {
        let memory = GraphMemory::new(Gpu::get(ordinal)?);
        Ok(Self { ordinal, rows, memory, by_model: BTreeMap::new() })
    }

    /// Drops the graphs of a model: the weights that they read have moved. No step is in flight.
    pub(super) fn drop_graphs(&mut self, model: ModelId) {
        self.by_model.remove(&model);
    }

    /// The buffer of a model's samples.
    pub(super) fn samples(&mut self, model: ModelId) -> Result<Arc<SampleBuffer>> {
        Ok(self.runner(model)?.samples.clone())
    }

    fn runner(&mut self, model: ModelId) -> Result<&mut CudaGraphRunner> {
        if !self.by_model.contains_key(&model) {
            let samples = Arc::new(SampleBuffer::new(self.ordinal, graph_rows(self.rows))?);
            self.by_model.insert(model, CudaGraphRunner { samples, graphs: BTreeMap::new() });
        }
        Ok(self.by_model.get_mut(&model).expect("it was just made"))
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
        self.runner(id)?;
        let Self { ordinal, memory, by_model, .. } = self;
        let runner = by_model.get_mut(&id).expect("it was just made");
        if !runner.graphs.contains_key(&bucket) {
            let pool = RefCell::new(pool);
            let step = |ids: &Index, batch: &PagedBatch| step(*pool.borrow_mut(), model, ids, batch);
            let graph = DecodeGraph::capture(*ordinal, bucket, memory, &runner.samples, step)?;
            runner.graphs.insert(bucket, graph);
        }
        Ok(runner.graphs.get_mut(&bucket).expect("it was just made"))
    }
}

/// Logits of one new token of every sequence.
fn step(pool: &mut KvPool, model: &LoadedModel, ids: &Index, batch: &PagedBatch) -> autograd::Result<Tensor> {
    let mut memory = PagedKv { pool, batch };
    let hidden = model.decoder().forward_paged(model.serving(), ids, &mut memory).map_err(|e| match e {
        Error::Op(e) => e,
        other => unreachable!("a forward pass only runs ops: {other}"),
    })?;
    ops::logits(model.head(&hidden))
}

impl ModelRunner {
    /// Launches a model's part of a step, which is decodes alone, as a graph.
    pub(super) fn launch_graph(
        &mut self,
        graph_runners: &mut GraphRunners,
        plan: &SchedulerOutput,
        group: &ModelGroup<'_>,
        tokens: &[Token],
    ) -> Result<PendingSamples> {
        let (sequences, model, pool) = self.sequences_model_and_pool(group.model);
        let row = |(seq, &token): (&ScheduledSeq, _)| DecodeRow {
            token,
            position: seq.tokens.start,
            pages: plan.pages(seq),
            sample: sequences[&seq.id].sample_args(seq.tokens.end),
        };
        let rows: Vec<DecodeRow<'_>> = group.seqs.iter().zip(tokens).map(row).collect();
        let graph = graph_runners.graph(&rows, group.model, model, pool);
        Ok(graph.map_err(|e| e.while_allocating(Entry::Graphs))?.launch(&rows)?)
    }
}
