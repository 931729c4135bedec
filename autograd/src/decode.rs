//! Decode steps as graphs: one new token of every sequence, launched as a whole.
//!
//! A graph holds up to a number of sequences and of pages, its bucket; what changes from step to step is in one buffer that is
//! written before each launch. Rows that no sequence uses are padding, which every kernel leaves out.

use std::sync::Arc;

use crate::cuda::WordRange;
use crate::cuda::attention::PagedArrays;
use crate::cuda::grouped_lora::{TILE_WORDS, Tiles};
use crate::cuda::{Buffer, Gpu, Graph, GraphMemory};
use crate::kv::PagedBatch;
use crate::ops::sample::{self, SampleArrays};
use crate::ops::{LoraSegments, PendingSamples, SampleArgs, SampleBuffer, Token};
use crate::{Index, Result, Tensor};

/// The next step of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct DecodeRow<'a> {
    /// The last token, whose successor is sampled.
    pub token: Token,
    /// Its position.
    pub position: usize,
    /// Pages of the sequence, up to that position's.
    pub pages: &'a [u32],
    /// How the next token is sampled.
    pub sample: SampleArgs<'a>,
}

/// The largest step that a graph runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GraphBucket {
    /// Sequences.
    pub rows: usize,
    /// Pages of each.
    pub pages: usize,
    /// Whether a row may have processors.
    pub processors: bool,
    /// Whether rows have different LoRA adapters, which come with each launch.
    pub adapters: bool,
}

impl GraphBucket {
    /// Whether these rows fit.
    #[must_use]
    pub fn holds(&self, rows: &[DecodeRow<'_>]) -> bool {
        let fits =
            |row: &DecodeRow<'_>| row.pages.len() <= self.pages && (self.processors || !row.sample.has_processors());
        rows.len() <= self.rows && rows.iter().all(fits)
    }
}

/// A captured decode step.
pub struct DecodeGraph {
    inputs: Inputs,
    samples: Arc<SampleBuffer>,
    graph: Graph,
}

/// The buffer of what changes, in words: sampling parameters, ids, positions, lengths, sequences of rows, page table, tiles of
/// rows with one adapter.
struct Inputs {
    buffer: Arc<Buffer>,
    bucket: GraphBucket,
    /// The words of the last step, kept for their memory.
    words: Vec<u32>,
}

/// Marks a padding row.
const NOWHERE: u32 = u32::MAX;

impl Inputs {
    fn new(gpu: &'static Gpu, bucket: GraphBucket) -> Result<Self> {
        let tiles = if bucket.adapters { TILE_WORDS } else { 0 };
        let words = SampleArrays::len(bucket.rows, bucket.processors) + bucket.rows * (4 + bucket.pages + tiles);
        Ok(Self { buffer: Arc::new(gpu.alloc(4 * words)?), bucket, words: vec![] })
    }

    /// The words behind the sampling parameters and `lists` lists of a word a row.
    fn part(&self, lists: usize) -> WordRange {
        let words = SampleArrays::len(self.bucket.rows, self.bucket.processors) + self.bucket.rows * lists;
        WordRange { buffer: self.buffer.clone(), offset: 4 * words }
    }

    fn ids(&self) -> Index {
        Index::on_device(self.part(0), self.bucket.rows)
    }

    fn batch(&self) -> PagedBatch {
        let positions = Index::on_device(self.part(1), self.bucket.rows);
        let arrays = [self.part(2), self.part(4), self.part(3)];
        PagedBatch::on_device(PagedArrays::on_device(arrays, self.bucket.pages, self.bucket.rows), positions)
    }

    fn args(&self) -> SampleArrays {
        let part = WordRange { buffer: self.buffer.clone(), offset: 0 };
        SampleArrays::on_device(part, self.bucket.rows, self.bucket.processors)
    }

    /// The adapters of the rows: as many tiles as rows at most, those without rows left out.
    fn lora(&self) -> Option<LoraSegments> {
        let GraphBucket { rows, pages, adapters, .. } = self.bucket;
        adapters.then(|| LoraSegments::on_device(Tiles::on_device(self.part(4 + pages), rows), rows))
    }

    fn write(
        &mut self,
        rows: &[DecodeRow<'_>],
        (args, allowed): (&[SampleArgs<'_>], Option<&Buffer>),
        tiles: &[u32],
    ) -> Result<()> {
        let GraphBucket { rows: most, pages, processors, adapters } = self.bucket;
        let words = &mut self.words;
        words.clear();
        SampleArrays::write(words, args, allowed, most, processors);
        let mut list = |value: fn(&DecodeRow<'_>) -> u32, padding: u32| {
            words.extend(rows.iter().map(value));
            words.resize(words.len() + most - rows.len(), padding);
        };
        list(|row| sample::word(row.token), 0);
        list(|row| row.position as u32, NOWHERE);
        list(|row| row.position as u32 + 1, 0);
        words.extend(0..most as u32);
        for row in rows {
            words.extend_from_slice(row.pages);
            words.resize(words.len() + pages - row.pages.len(), 0);
        }
        words.resize(words.len() + (most - rows.len()) * pages, 0);
        if adapters {
            words.extend_from_slice(tiles);
            words.resize(words.len() + most * TILE_WORDS - tiles.len(), 0);
        }
        self.buffer.gpu().upload_into(&self.buffer, 0, words)
    }
}

impl DecodeGraph {
    /// Captures `step`, which computes logits `[rows, V]` in f32 of the rows it is given, with the adapters it is given where the
    /// bucket has them, and the samples from them into `samples`. Whatever else `step` reads must outlive the graph. Graphs that share `memory` run one after another.
    ///
    /// # Errors
    /// What `step` refuses, or a device that is out of memory.
    pub fn capture(
        ordinal: usize,
        bucket: GraphBucket,
        memory: &GraphMemory,
        samples: &Arc<SampleBuffer>,
        step: impl Fn(&Index, &PagedBatch, Option<&LoraSegments>) -> Result<Tensor>,
    ) -> Result<Self> {
        let gpu = Gpu::get(ordinal)?;
        let mut inputs = Inputs::new(gpu, bucket)?;
        inputs.write(&[], (&[], None), &[])?;
        let (ids, batch, args, lora) = (inputs.ids(), inputs.batch(), inputs.args(), inputs.lora());
        let run = || {
            samples.fill_in(&inputs.part(0), bucket.rows)?;
            samples.launch(&step(&ids, &batch, lora.as_ref())?, &args)
        };
        // Once for real: kernels and products are loaded and planned at first use, which cannot be captured.
        run()?;
        let graph = gpu.capture(memory, run)?;
        Ok(Self { inputs, samples: samples.clone(), graph })
    }

    /// Launches one step of `rows`, which have to fit its bucket, with `lora` where the bucket has adapters.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Rows that do not fit the bucket, adapters for which [`LoraSegments::fits_graph`] does not hold.
    pub fn launch(&mut self, rows: &[DecodeRow<'_>], lora: Option<&LoraSegments>) -> Result<PendingSamples> {
        assert_eq!(self.inputs.bucket.adapters, lora.is_some(), "adapters in a graph for {:?}", self.inputs.bucket);
        assert!(self.inputs.bucket.holds(rows), "{} rows in a graph for {:?}", rows.len(), self.inputs.bucket);
        let args: Vec<SampleArgs<'_>> = rows.iter().map(|row| row.sample).collect();
        let allowed = SampleArrays::upload_allowed(self.inputs.buffer.gpu(), &args)?;
        let tiles = lora.map_or(Ok(vec![]), |lora| lora.tile_words(self.inputs.buffer.gpu()))?;
        self.inputs.write(rows, (&args, allowed.as_ref()), &tiles)?;
        self.graph.launch()?;
        self.samples.collect(&args)
    }
}
