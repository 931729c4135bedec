//! Device memory of the paged KV cache, and attention over it.

use std::ops::Range;
use std::sync::OnceLock;

use crate::cpu::attention::{Heads, Span, attend, block_len, write_slot};
use crate::cuda::attention::PagedArrays;
use crate::cuda::{self, Array, DType, Gpu};
use crate::ops::{
    self, QkRope, check_layouts, check_window, ensure, ensure_index, reference_parts, reference_sequence,
};
use crate::{Device, Error, Index, Result, Tape, Tensor, reference};

pub use crate::page::PAGE_TOKENS;

/// Shape of one layer's attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KvShape {
    /// Query heads.
    pub heads: usize,
    /// Key / value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl KvShape {
    /// Bytes that one page takes in one layer on `device`.
    #[must_use]
    pub fn page_bytes(self, device: Device) -> usize {
        let values = match device {
            Device::Cuda(_) => 2 * PAGE_TOKENS * self.head_dim,
            Device::Cpu | Device::Reference => block_len(self.head_dim),
        };
        self.kv_heads * values * device.value_bytes()
    }
}

/// Rows of a batch that belong to one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PagedRows<'a> {
    /// The rows.
    pub rows: Range<usize>,
    /// Position of the first of them.
    pub position: usize,
    /// Pages of the sequence, in order, up to the last row's.
    pub pages: &'a [u32],
}

/// A batch of rows and the pages of their sequences, made once for all layers.
#[derive(Debug)]
pub struct PagedBatch {
    sequences: Vec<Paged>,
    positions: Index,
    /// What a GPU knows of it, once it was asked.
    device: OnceLock<PagedArrays>,
}

#[derive(Debug)]
struct Paged {
    rows: Range<usize>,
    position: usize,
    pages: Vec<u32>,
}

impl PagedBatch {
    /// The rows of `sequences`, which follow each other.
    #[must_use]
    pub fn new(sequences: &[PagedRows<'_>]) -> Self {
        let positions = sequences.iter().flat_map(|s| (s.position as u32..).take(s.rows.len())).collect();
        let owned = |s: &PagedRows<'_>| Paged { rows: s.rows.clone(), position: s.position, pages: s.pages.to_vec() };
        Self { sequences: sequences.iter().map(owned).collect(), positions, device: OnceLock::new() }
    }

    /// Every row's position in its sequence.
    #[must_use]
    pub fn positions(&self) -> &Index {
        &self.positions
    }

    /// Rows that only the GPU knows of; no op can check them.
    pub(crate) fn on_device(arrays: PagedArrays, positions: Index) -> Self {
        Self { sequences: vec![], positions, device: OnceLock::from(arrays) }
    }

    fn on(&self, gpu: &'static Gpu) -> Result<&PagedArrays> {
        if let Some(arrays) = self.device.get() {
            return Ok(arrays);
        }
        let sequences = self.sequences.iter().map(|s| (s.rows.clone(), s.end(), &s.pages[..])).collect::<Vec<_>>();
        let arrays = PagedArrays::new(gpu, &sequences)?;
        Ok(self.device.get_or_init(|| arrays))
    }

    /// `(row, slot in the pool)` of every row.
    fn slots(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.sequences.iter().flat_map(|s| s.rows.clone().zip(s.position..).map(|(row, at)| (row, s.slot(at))))
    }
}

impl Paged {
    /// Slot in the pool of a position.
    fn slot(&self, position: usize) -> usize {
        self.pages[position / PAGE_TOKENS] as usize * PAGE_TOKENS + position % PAGE_TOKENS
    }

    /// Tokens in memory once the rows are written.
    fn end(&self) -> usize {
        self.position + self.rows.len()
    }
}

enum Layer {
    /// `[page][kv head]` blocks of sixteen keys and values.
    Cpu(Vec<f32>),
    /// `[page][2][kv head][16][D]`: a page's keys, then its values.
    Cuda(Array),
    /// Keys and values `[pages * 16, kv_heads * head_dim]`.
    Reference(Box<[burn::Tensor<2>; 2]>),
}

/// Keys and values of every layer, in pages of [`PAGE_TOKENS`]. The cost of a write does not depend on the pool's size.
pub struct KvPool {
    device: Device,
    shape: KvShape,
    pages: usize,
    layers: Vec<Layer>,
}

impl KvPool {
    /// A pool of `pages` pages in each of `layers` layers, zeroed.
    ///
    /// # Errors
    /// The device is out of memory, or there is no such device.
    pub fn new(device: Device, shape: KvShape, layers: usize, pages: usize) -> Result<Self> {
        let layer = |_| -> Result<Layer> {
            Ok(match device {
                Device::Cpu => Layer::Cpu(vec![0.0; pages * shape.kv_heads * block_len(shape.head_dim)]),
                Device::Cuda(ordinal) => {
                    let values = pages * shape.page_bytes(device) / device.value_bytes();
                    Layer::Cuda(Array::zeros(Gpu::get(ordinal)?, values, DType::Bf16)?)
                }
                Device::Reference => {
                    let size = [pages * PAGE_TOKENS, shape.kv_heads * shape.head_dim];
                    Layer::Reference(Box::new([0, 1].map(|_| burn::Tensor::zeros(size, &reference::device()))))
                }
            })
        };
        Ok(Self { device, shape, pages, layers: (0..layers).map(layer).collect::<Result<_>>()? })
    }

    /// [`ops::qk_rope`] of the rows `[T, (heads + 2 kv_heads) * head_dim]`, whose keys and values are stored in the pages of
    /// their sequences. On a GPU one kernel.
    ///
    /// # Errors
    /// Shapes or devices that do not fit, a layer or a page that is not there, a position outside the table.
    pub fn write(
        &mut self,
        layer: usize,
        rope: QkRope,
        qkv: &Tensor,
        norms: Option<[&Tensor; 2]>,
        batch: &PagedBatch,
    ) -> Result<Tensor> {
        self.check("kv write", layer, qkv, batch)?;
        if let Layer::Cuda(pool) = &self.layers[layer] {
            let pages = cuda::attention::Pages { pool, batch: batch.on(pool.gpu())? };
            return rope.paged(qkv, norms, &pages);
        }
        let rotated = ops::qk_rope(&mut Tape::off(), rope, qkv, norms)?;
        self.store(layer, &rotated, batch);
        Ok(rotated)
    }

    /// Stores rotated rows on the host.
    fn store(&mut self, layer: usize, qkv: &Tensor, batch: &PagedBatch) {
        let heads = self.heads(1.0, None);
        let d = heads.dim;
        let page_len = heads.kv * block_len(d);
        match &mut self.layers[layer] {
            Layer::Cpu(pool) => {
                for (row, slot) in batch.slots() {
                    let row = &qkv.raw()[row * heads.row_len()..][..heads.row_len()];
                    let page = &mut pool[slot / PAGE_TOKENS * page_len..][..page_len];
                    for (head, block) in page.chunks_exact_mut(block_len(d)).enumerate() {
                        let [key, value] = heads.kv_columns().map(|c| &row[c + head * d..][..d]);
                        write_slot(block, slot % PAGE_TOKENS, key, value);
                    }
                }
            }
            Layer::Cuda(_) => unreachable!("a kernel stores them"),
            Layer::Reference(pool) => {
                let [_, k, v] = reference_parts(heads, &qkv.burn());
                for (store, new) in pool.iter_mut().zip([k, v]) {
                    for (row, slot) in batch.slots() {
                        let values = new.clone().narrow(0, row, 1);
                        // Moved out and back, so that the pool has one owner and is written in place.
                        let taken = std::mem::replace(store, burn::Tensor::zeros([1, 1], &reference::device()));
                        *store = taken.slice_assign([slot..slot + 1, 0..heads.kv * d], values);
                    }
                }
            }
        }
    }

    /// Attention of the queries in rows `[T, (heads + 2 kv_heads) * head_dim]` over the pages of their sequences, which
    /// hold the rows' own keys and values already. The output is `[T, heads * head_dim]`.
    ///
    /// # Errors
    /// Shapes or devices that do not fit, a layer or a page that is not there, a window of zero.
    pub fn attend(
        &self,
        layer: usize,
        qkv: &Tensor,
        batch: &PagedBatch,
        scale: f32,
        window: Option<usize>,
    ) -> Result<Tensor> {
        self.check("paged attention", layer, qkv, batch)?;
        check_window("paged attention", window)?;
        let heads = self.heads(scale, window);
        Ok(match &self.layers[layer] {
            Layer::Cpu(pool) => attend_cpu(pool, qkv, batch, heads),
            Layer::Cuda(pool) => {
                let out = cuda::attention::paged(pool, qkv.array(), batch.on(pool.gpu())?, heads)?;
                Tensor::cuda(out, [qkv.rows(), heads.query * heads.dim])
            }
            Layer::Reference(pool) => {
                let [q, ..] = reference_parts(heads, &qkv.burn());
                let parts = batch.sequences.iter().map(|s| {
                    let index = reference::indices((0..s.end()).map(|at| s.slot(at)));
                    let [k, v] = [0, 1].map(|i| pool[i].clone().select(0, index.clone()));
                    let q = q.clone().narrow(0, s.rows.start, s.rows.len());
                    reference_sequence(heads, [q, k, v])[0].clone()
                });
                Tensor::reference(burn::Tensor::cat(parts.collect(), 0))
            }
        })
    }

    fn heads(&self, scale: f32, window: Option<usize>) -> Heads {
        let KvShape { heads, kv_heads, head_dim } = self.shape;
        Heads { query: heads, kv: kv_heads, dim: head_dim, scale, window }
    }

    /// Whether `x` and its rows' sequences belong to this pool.
    fn check(&self, op: &'static str, layer: usize, x: &Tensor, batch: &PagedBatch) -> Result<()> {
        if x.device() != self.device {
            let (left, right) = (x.device().to_string(), self.device.to_string());
            return Err(Error::DeviceMismatch { op, left, right });
        }
        check_layouts(op, &[x], &[])?;
        let KvShape { heads, kv_heads, head_dim } = self.shape;
        ensure(x.cols() == (heads + 2 * kv_heads) * head_dim, op, "rows [T, (heads + 2 kv_heads) * D]", &[x])?;
        ensure_index(op, "layer", layer, self.layers.len())?;
        if batch.sequences.is_empty() && !batch.positions.is_empty() {
            return ensure(batch.positions.len() == x.rows(), op, "a row for every sequence", &[x]);
        }
        let mut next = 0;
        for s in &batch.sequences {
            ensure(s.rows.start == next, op, "sequences that cover the rows one after another", &[x])?;
            next = s.rows.end;
            let used = s.end().div_ceil(PAGE_TOKENS);
            ensure_index(op, "position", used.saturating_sub(1) * PAGE_TOKENS, s.pages.len() * PAGE_TOKENS)?;
            s.pages.iter().try_for_each(|&page| ensure_index(op, "page", page as usize, self.pages))?;
        }
        ensure(next == x.rows(), op, "sequences that cover the rows one after another", &[x])
    }

    /// Copies a page of every layer.
    ///
    /// # Errors
    /// The device was lost.
    pub fn copy_page(&mut self, from: u32, to: u32) -> Result<()> {
        let page_len = self.shape.kv_heads * block_len(self.shape.head_dim);
        for layer in &mut self.layers {
            match layer {
                Layer::Cpu(pool) => {
                    let at = from as usize * page_len;
                    pool.copy_within(at..at + page_len, to as usize * page_len);
                }
                Layer::Cuda(pool) => {
                    let len = self.shape.page_bytes(self.device) / self.device.value_bytes();
                    let page = |index: u32| pool.part(index as usize * len, len);
                    page(from).copy_to(&page(to))?;
                }
                Layer::Reference(pool) => {
                    for store in pool.iter_mut() {
                        let width = store.dims()[1];
                        let page = store.clone().narrow(0, from as usize * PAGE_TOKENS, PAGE_TOKENS);
                        let at = to as usize * PAGE_TOKENS;
                        let taken = std::mem::replace(store, burn::Tensor::zeros([1, 1], &reference::device()));
                        *store = taken.slice_assign([at..at + PAGE_TOKENS, 0..width], page);
                    }
                }
            }
        }
        Ok(())
    }
}

fn attend_cpu(pool: &[f32], qkv: &Tensor, batch: &PagedBatch, heads: Heads) -> Tensor {
    let page_len = heads.kv * block_len(heads.dim);
    let tables: Vec<Vec<usize>> =
        batch.sequences.iter().map(|s| s.pages.iter().map(|&p| p as usize * page_len).collect()).collect();
    let spans: Vec<Span<'_>> = batch
        .sequences
        .iter()
        .zip(&tables)
        .map(|(s, table)| Span { row: s.rows.start, len: s.rows.len(), position: s.position, table })
        .collect();
    let shape = [qkv.rows(), heads.query * heads.dim];
    let mut out = vec![0.0; shape[0] * shape[1]];
    attend(&mut out, None, qkv.raw(), pool, &spans, heads);
    Tensor::cpu(out, shape)
}
