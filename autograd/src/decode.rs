//! Decode steps as graphs: one new token of every sequence, launched as a whole.
//!
//! A graph has room for a number of sequences and of pages; what changes from step to step is in one buffer that is
//! written before each launch. Rows that no sequence uses are padding, which every kernel leaves out.

use std::sync::Arc;

use crate::cuda::attention::PagedArrays;
use crate::cuda::{Array, Buffer, Gpu, Graph, GraphMemory};
use crate::index::Part;
use crate::kv::PagedBatch;
use crate::ops::sample::{self, DrawArrays};
use crate::ops::{Draw, Drawn};
use crate::{Index, Result, Tensor};

/// The next step of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct DecodeRow<'a> {
    /// The last token, whose successor is drawn.
    pub token: u32,
    /// Its position.
    pub position: usize,
    /// Pages of the sequence, up to that position's.
    pub pages: &'a [u32],
    /// How the next token is drawn.
    pub draw: Draw,
}

/// A captured decode step.
pub struct DecodeGraph {
    inputs: Inputs,
    results: Array,
    graph: Graph,
}

/// The buffer of what changes, in words: draw parameters, ids, positions, lengths, sequences of rows, page table.
struct Inputs {
    buffer: Arc<Buffer>,
    rows: usize,
    pages: usize,
}

/// Marks a padding row.
const NOWHERE: u32 = u32::MAX;

impl Inputs {
    fn new(gpu: &'static Gpu, rows: usize, pages: usize) -> Result<Self> {
        let words = rows * (DrawArrays::WORDS + 4 + pages);
        Ok(Self { buffer: Arc::new(gpu.alloc(4 * words)?), rows, pages })
    }

    /// The words behind the draw parameters and `lists` lists of a word a row.
    fn part(&self, lists: usize) -> Part {
        Part { buffer: self.buffer.clone(), offset: 4 * self.rows * (DrawArrays::WORDS + lists) }
    }

    fn ids(&self) -> Index {
        Index::on_device(self.part(0), self.rows)
    }

    fn batch(&self) -> PagedBatch {
        let positions = Index::on_device(self.part(1), self.rows);
        let arrays = [self.part(2), self.part(4), self.part(3)];
        PagedBatch::on_device(PagedArrays::on_device(arrays, self.pages, positions.clone()), positions)
    }

    fn draws(&self) -> DrawArrays {
        DrawArrays::on_device(Part { buffer: self.buffer.clone(), offset: 0 }, self.rows)
    }

    fn write(&self, rows: &[DecodeRow<'_>]) -> Result<()> {
        let draws: Vec<Draw> = rows.iter().map(|r| r.draw).collect();
        let padded = |f: fn(&DecodeRow<'_>) -> u32, padding| {
            rows.iter().map(f).chain(std::iter::repeat(padding)).take(self.rows).collect::<Vec<u32>>()
        };
        let mut words = DrawArrays::words(&draws, self.rows);
        words.extend(padded(|r| r.token, 0));
        words.extend(padded(|r| r.position as u32, NOWHERE));
        words.extend(padded(|r| r.position as u32 + 1, 0));
        words.extend(0..self.rows as u32);
        for row in rows {
            words.extend_from_slice(row.pages);
            words.resize(words.len() + self.pages - row.pages.len(), 0);
        }
        words.resize(self.rows * (DrawArrays::WORDS + 4 + self.pages), 0);
        self.buffer.gpu().upload_into(&self.buffer, 0, &words)
    }
}

impl DecodeGraph {
    /// Captures `step`, which computes logits `[rows, V]` in f32 of the rows it is given, and the draw from them. Whatever
    /// else `step` reads must outlive the graph. Graphs that share `memory` run one after another.
    ///
    /// # Errors
    /// What `step` refuses, or a device that is out of memory.
    pub fn capture(
        ordinal: usize,
        [rows, pages]: [usize; 2],
        memory: &GraphMemory,
        step: impl Fn(&Index, &PagedBatch) -> Result<Tensor>,
    ) -> Result<Self> {
        let gpu = Gpu::get(ordinal)?;
        let inputs = Inputs::new(gpu, rows, pages)?;
        inputs.write(&[])?;
        let (ids, batch, draws) = (inputs.ids(), inputs.batch(), inputs.draws());
        let run = || sample::launch(&step(&ids, &batch)?, &draws);
        // Once for real: kernels and products are loaded and planned at first use, which cannot be captured.
        drop(run()?);
        let mut results = None;
        let graph = gpu.capture(memory, || {
            results = Some(run()?);
            Ok(())
        })?;
        Ok(Self { inputs, results: results.expect("the capture ran"), graph })
    }

    /// Runs one step of `rows`, at most as many as the graph has room for, each with at most as many pages.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// More rows or pages than there is room for.
    pub fn run(&self, rows: &[DecodeRow<'_>]) -> Result<Vec<Drawn>> {
        let fits = rows.len() <= self.inputs.rows && rows.iter().all(|r| r.pages.len() <= self.inputs.pages);
        assert!(fits, "{} rows in a graph for {} of {} pages", rows.len(), self.inputs.rows, self.inputs.pages);
        self.inputs.write(rows)?;
        self.graph.launch()?;
        Ok(sample::collect(&self.results.read()?, rows.len()))
    }
}
