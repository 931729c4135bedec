//! Decode steps on a GPU: graphs by the number of sequences and of pages, captured when first needed.

use std::collections::BTreeMap;

use autograd::cuda::{Gpu, GraphMemory};
use autograd::decode::{DecodeGraph, DecodeRow};
use autograd::{Device, ops};

use super::slot::SlotEngine;
use crate::Result;
use crate::memory::Entry;
use crate::model::Paged;
use crate::sampler::{Sampled, SamplingError, from_device};
use crate::scheduler::{Plan, RequestId};

/// The graphs of one slot.
#[derive(Default)]
pub(super) struct DecodeGraphs {
    memory: Option<GraphMemory>,
    /// By room for sequences and for pages of each.
    graphs: BTreeMap<[usize; 2], DecodeGraph>,
}

/// Room for `count`: powers of two up to 8, then steps of an eighth of the next power of two, so that padding stays small.
fn room(count: usize) -> usize {
    let step = (count.next_power_of_two() / 8).max(1);
    count.next_multiple_of(step)
}

/// Every sequence's draw.
type Draws = Vec<(RequestId, Result<Sampled, SamplingError>)>;

/// Pages that graphs have room for at least.
const PAGES: usize = 16;

impl SlotEngine {
    /// Runs the plan as one captured step if it is one new token of each of some sequences, drawn in the plain way.
    pub(super) fn decode(&mut self, plan: &Plan) -> Result<Option<Draws>> {
        let Device::Cuda(ordinal) = self.device() else { return Ok(None) };
        if self.serving.weights.is_offloaded() {
            // A graph would read the layers where they passed through when it was captured.
            return Ok(None);
        }
        let single = plan.seqs.iter().all(|s| s.sample && s.tokens.len() == 1);
        let draws = plan.seqs.iter().map(|s| self.running[&s.id].plain_draw()).collect::<Option<Vec<_>>>();
        let Some(draws) = draws.filter(|_| single) else { return Ok(None) };
        for seq in &plan.seqs {
            if let Some(generation) = self.running.get_mut(&seq.id) {
                generation.started(seq.tokens.start);
            }
        }
        let pages: Vec<Vec<u32>> = plan.seqs.iter().map(|s| s.pages.iter().map(|p| p.0).collect()).collect();
        let rows: Vec<DecodeRow<'_>> = plan
            .seqs
            .iter()
            .zip(&pages)
            .zip(draws)
            .map(|((seq, pages), draw)| {
                let tokens = self.scheduler.tokens(seq.id).expect("a planned request is in the scheduler");
                let position = seq.tokens.start;
                DecodeRow { token: tokens[position], position, pages, draw }
            })
            .collect();
        let longest = pages.iter().map(Vec::len).max().unwrap_or(1);
        let key = [room(rows.len()), longest.next_power_of_two().max(PAGES)];
        if !self.graphs.graphs.contains_key(&key) {
            let graph = capture(&mut self.graphs.memory, ordinal, key, &mut self.pool, &self.decoder, &self.serving)
                .map_err(|e| e.asked_as(Entry::Graphs))?;
            self.graphs.graphs.insert(key, graph);
        }
        let drawn = self.graphs.graphs[&key].run(&rows)?;
        let vocab = self.decoder.config.vocab_size;
        Ok(Some(plan.seqs.iter().map(|s| s.id).zip(drawn.into_iter().map(|d| from_device(d, vocab))).collect()))
    }
}

fn capture(
    memory: &mut Option<GraphMemory>,
    ordinal: usize,
    key: [usize; 2],
    pool: &mut autograd::kv::KvPool,
    decoder: &crate::model::Decoder,
    pass: &crate::model::Pass,
) -> Result<DecodeGraph> {
    let gpu = Gpu::get(ordinal)?;
    let memory = memory.get_or_insert_with(|| GraphMemory::new(gpu));
    let pool = std::cell::RefCell::new(pool);
    let step = |ids: &autograd::Index, batch: &autograd::kv::PagedBatch| {
        let mut memory = Paged { pool: &mut pool.borrow_mut(), batch };
        let hidden = decoder.forward_paged(pass, ids, &mut memory).map_err(|e| match e {
            crate::Error::Op(e) => e,
            other => unreachable!("a forward pass only runs ops: {other}"),
        })?;
        ops::logits(&hidden, pass.weights.output_head())
    };
    Ok(DecodeGraph::capture(ordinal, key, memory, step)?)
}
