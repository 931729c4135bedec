//! Steps on a GPU. Steps of decodes alone are CUDA graphs in buckets of sequences and pages, captured when first needed;
//! other steps are launched op by op. Both leave their samples in the runner's sample buffer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use autograd::cuda::{Gpu, GraphMemory};
use autograd::decode::{DecodeGraph, DecodeRow, Room};
use autograd::kv::{KvPool, PagedBatch};
use autograd::ops::{self, DrawBoard, DrawRow, PendingDraws};
use autograd::{Index, Tensor};

use super::runner::ModelRunner;
use crate::memory::{Entry, graph_pages, graph_rows};
use crate::model::{Decoder, Paged, Pass};
use crate::scheduler::SchedulerOutput;
use crate::{Error, Result};

/// The CUDA graphs of a model and the buffer of its samples.
pub(super) struct CudaGraphRunner {
    ordinal: usize,
    board: Arc<DrawBoard>,
    memory: GraphMemory,
    graphs: BTreeMap<Room, DecodeGraph>,
}

impl CudaGraphRunner {
    /// For steps of up to `rows` sequences.
    pub(super) fn new(ordinal: usize, rows: usize) -> Result<Self> {
        let memory = GraphMemory::new(Gpu::get(ordinal)?);
        let board = Arc::new(DrawBoard::new(ordinal, graph_rows(rows))?);
        Ok(Self { ordinal, board, memory, graphs: BTreeMap::new() })
    }

    /// Drops all graphs: the weights that they read have moved.
    pub(super) fn drop_graphs(&mut self) {
        self.graphs.clear();
    }

    /// A graph that holds these rows.
    fn graph(
        &mut self,
        rows: &[DecodeRow<'_>],
        pool: &mut KvPool,
        decoder: &Decoder,
        pass: &Pass,
    ) -> Result<&mut DecodeGraph> {
        let longest = rows.iter().map(|row| row.pages.len()).max().unwrap_or(1);
        let extras = rows.iter().any(|row| row.draw.has_extras());
        let room = Room { rows: graph_rows(rows.len()), pages: graph_pages(longest), extras };
        if !self.graphs.contains_key(&room) {
            let pool = RefCell::new(pool);
            let step = |ids: &Index, batch: &PagedBatch| step(*pool.borrow_mut(), decoder, pass, ids, batch);
            let graph = DecodeGraph::capture(self.ordinal, room, &self.memory, &self.board, step)?;
            self.graphs.insert(room, graph);
        }
        Ok(self.graphs.get_mut(&room).expect("it was just made"))
    }
}

/// Logits of one new token of every sequence.
fn step(
    pool: &mut KvPool,
    decoder: &Decoder,
    pass: &Pass,
    ids: &Index,
    batch: &PagedBatch,
) -> autograd::Result<Tensor> {
    let hidden = decoder.forward_paged(pass, ids, &mut Paged { pool, batch }).map_err(|e| match e {
        Error::Op(e) => e,
        other => unreachable!("a forward pass only runs ops: {other}"),
    })?;
    ops::logits(ops::Head { hidden: &hidden, weight: pass.weights.output_head(), ids: decoder.config.token_ids })
}

impl ModelRunner {
    /// Launches the step on a GPU; `None` when it samples nothing.
    pub(super) fn launch_on(
        &mut self,
        graph_runner: &mut CudaGraphRunner,
        plan: &SchedulerOutput,
    ) -> Result<Option<PendingDraws>> {
        // A graph would read offloaded layers where they passed through when it was captured.
        let fixed = !self.serving.weights.is_offloaded();
        if fixed && plan.seqs.iter().all(|seq| seq.sample && seq.tokens.len() == 1) {
            return self.launch_graph(graph_runner, plan).map(Some);
        }
        let ids = graph_runner.board.feed(&plan.tokens)?;
        let Some(logits) = self.logits(plan, &ids)? else { return Ok(None) };
        let drawn = plan.seqs.iter().filter(|seq| seq.sample);
        let rows: Vec<DrawRow<'_>> = drawn.map(|seq| self.running[&seq.id].sample_args(seq.tokens.end)).collect();
        Ok(Some(graph_runner.board.draw(&logits, &rows)?))
    }

    fn launch_graph(&mut self, graph_runner: &mut CudaGraphRunner, plan: &SchedulerOutput) -> Result<PendingDraws> {
        let row = |(seq, &token): (&crate::scheduler::ScheduledSeq, _)| DecodeRow {
            token,
            position: seq.tokens.start,
            pages: plan.pages(seq),
            draw: self.running[&seq.id].sample_args(seq.tokens.end),
        };
        let rows: Vec<DecodeRow<'_>> = plan.seqs.iter().zip(&plan.tokens).map(row).collect();
        let graph = graph_runner.graph(&rows, &mut self.pool, &self.decoder, &self.serving);
        let pending = graph.map_err(|e| e.while_allocating(Entry::Graphs))?.launch(&rows)?;
        self.steps.graphs += 1;
        Ok(pending)
    }
}
