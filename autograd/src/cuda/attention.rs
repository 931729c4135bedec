//! Attention over packed sequences and over pages, and the pages' writes.

use std::ops::Range;
use std::sync::Arc;

use super::rows::blocks;
use super::{Arg, Array, Buffer, DType, Gpu};
use crate::cpu::attention::Heads;
use crate::cuda::WordRange;
use crate::page::PAGE_TOKENS;
use crate::{Error, Result};

/// Head widths that there are kernels for.
const HEAD_DIMS: [usize; 4] = [64, 96, 128, 256];
/// Positions that one block of a decode step reads.
pub const DECODE_CHUNK: usize = 256;

/// Query rows of a forward block, of a backward block over queries; keys of a backward block over keys. As the kernels
/// have them, by the head's width.
struct Tiles {
    rows: usize,
    backward_rows: usize,
    backward_keys: usize,
}

fn tiles(dim: usize) -> Tiles {
    let rows = if dim <= 128 { 128 } else { 64 };
    Tiles { rows, backward_rows: rows, backward_keys: if dim == 64 { 128 } else { 64 } }
}

fn check_dim(dim: usize) -> Result<()> {
    if HEAD_DIMS.contains(&dim) {
        return Ok(());
    }
    let expected = "64, 96, 128 or 256 on a GPU";
    Err(Error::Domain { op: "attention", what: "the width of a head", value: dim as f64, expected })
}

/// `{sequence, tile}` for every tile of `size` rows, long sequences first.
struct TileList {
    buffer: Buffer,
    count: usize,
}

impl TileList {
    fn new(gpu: &'static Gpu, lengths: &[usize], size: usize) -> Result<Self> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&s| std::cmp::Reverse(lengths[s]));
        // The last tile of a sequence looks furthest back, so it comes first.
        let tiles = order.iter().flat_map(|&s| (0..lengths[s].div_ceil(size)).rev().map(move |t| [s as u32, t as u32]));
        let flat: Vec<u32> = tiles.flatten().collect();
        Ok(Self { count: flat.len() / 2, buffer: gpu.upload(&flat)? })
    }
}

/// Borders of packed sequences and the tiles of their kernels.
pub(crate) struct PackedArrays {
    borders: Buffer,
    tokens: usize,
    forward: TileList,
    backward_rows: TileList,
    backward_keys: TileList,
}

impl std::fmt::Debug for PackedArrays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedArrays of {} tokens", self.tokens)
    }
}

impl PackedArrays {
    pub(crate) fn new(gpu: &'static Gpu, ends: &[usize], dim: usize) -> Result<Self> {
        check_dim(dim)?;
        let lengths: Vec<usize> = ends.windows(2).map(|w| w[1] - w[0]).collect();
        let borders: Vec<u32> = ends.iter().map(|&e| e as u32).collect();
        let Tiles { rows, backward_rows, backward_keys } = tiles(dim);
        Ok(Self {
            borders: gpu.upload(&borders)?,
            tokens: ends[ends.len() - 1],
            forward: TileList::new(gpu, &lengths, rows)?,
            backward_rows: TileList::new(gpu, &lengths, backward_rows)?,
            backward_keys: TileList::new(gpu, &lengths, backward_keys)?,
        })
    }
}

/// `q_heads, kv_heads, scale, window`.
fn heads_args(heads: Heads) -> [Arg; 4] {
    let window = heads.window.map_or(0, |w| i32::try_from(w).unwrap_or(i32::MAX));
    [Arg::I32(heads.query as i32), Arg::I32(heads.kv as i32), Arg::F32(heads.scale), Arg::I32(window)]
}

/// Output `[T, heads * D]` and, when asked, `ln sum exp(score)` per row and head.
pub(crate) fn packed(
    qkv: &Array,
    sequences: &PackedArrays,
    heads: Heads,
    want_log_sums: bool,
) -> Result<(Array, Option<Array>)> {
    let (gpu, d) = (qkv.gpu(), heads.dim);
    let out = Array::uninit(gpu, sequences.tokens * heads.query * d, DType::Bf16)?;
    let log_sums = want_log_sums.then(|| Array::uninit(gpu, sequences.tokens * heads.query, DType::F32)).transpose()?;
    let head = [
        out.arg(),
        log_sums.as_ref().map_or(Arg::Ptr(0), Array::arg),
        qkv.arg(),
        Arg::from(&sequences.borders),
        Arg::from(&sequences.forward.buffer),
    ];
    let args: Vec<Arg> = head.into_iter().chain(heads_args(heads)).collect();
    let grid = [heads.query as u32, sequences.forward.count as u32, 1];
    gpu.launch(&format!("attention_forward_d{d}"), grid, [128, 1, 1], forward_shared(d), &args)?;
    Ok((out, log_sums))
}

fn forward_shared(d: usize) -> u32 {
    ((tiles(d).rows + 64 + 64) * d * 2) as u32
}

/// Gradient of the rows from `[qkv, out, log_sums, dout]`.
pub(crate) fn packed_backward(saved: [&Array; 4], sequences: &PackedArrays, heads: Heads) -> Result<Array> {
    let [qkv, out, log_sums, dout] = saved;
    let (gpu, d) = (qkv.gpu(), heads.dim);
    let rows = sequences.tokens * heads.query;
    let delta = Array::uninit(gpu, rows, DType::F32)?;
    let lanes = (d / 8).next_power_of_two();
    let args = [delta.arg(), out.arg(), dout.arg(), Arg::I32(rows as i32), Arg::I32(d as i32)];
    gpu.launch("attention_backward_delta", [blocks(rows * lanes, 256), 1, 1], [256, 1, 1], 0, &args)?;
    let dqkv = Array::uninit(gpu, qkv.len(), DType::Bf16)?;
    let head = [dqkv.arg(), qkv.arg(), dout.arg(), log_sums.arg(), delta.arg(), Arg::from(&sequences.borders)];
    let run = |kernel: &str, heads_of_grid: usize, list: &TileList, parts: u32, shared: usize| {
        let args: Vec<Arg> = head.iter().copied().chain([Arg::from(&list.buffer)]).chain(heads_args(heads)).collect();
        let grid = [heads_of_grid as u32, list.count as u32, parts];
        gpu.launch(&format!("{kernel}_d{d}"), grid, [128, 1, 1], shared as u32, &args)
    };
    let (stages, row_bytes) = (if d <= 128 { 2 } else { 1 }, 2 * d);
    let Tiles { backward_rows, backward_keys, .. } = tiles(d);
    let shared = (2 * backward_rows + stages * 2 * 32) * row_bytes;
    run("attention_backward_q", heads.query, &sequences.backward_rows, 1, shared)?;
    let step = if d == 64 || d == 256 { 32 } else { 64 };
    let shared = 2 * backward_keys * row_bytes + stages * (2 * step * row_bytes + 2 * step * 4);
    let parts = if d == 256 { 2 } else { 1 };
    run("attention_backward_kv", heads.kv, &sequences.backward_keys, parts, shared)?;
    Ok(dqkv)
}

/// A batch of rows over pages, as the kernels want it.
pub(crate) struct PagedArrays {
    /// Rows `borders[s]..borders[s + 1]` are sequence s's; not needed where each has one row.
    borders: Option<Buffer>,
    lengths: WordRange,
    table: WordRange,
    table_stride: usize,
    row_sequences: WordRange,
    /// Rows of each sequence, and the longest memory.
    row_counts: Vec<usize>,
    longest: usize,
    tiles: [Option<TileList>; 2],
}

impl std::fmt::Debug for PagedArrays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PagedArrays of {} sequences", self.row_counts.len())
    }
}

impl PagedArrays {
    /// `(rows, tokens in memory with them, pages)` of every sequence.
    pub(crate) fn new(gpu: &'static Gpu, sequences: &[(Range<usize>, usize, &[u32])]) -> Result<Self> {
        let row_counts: Vec<usize> = sequences.iter().map(|(rows, ..)| rows.len()).collect();
        let borders: Vec<u32> = [0].into_iter().chain(sequences.iter().map(|(rows, ..)| rows.end as u32)).collect();
        let lengths: Vec<u32> = sequences.iter().map(|(_, end, _)| *end as u32).collect();
        let table_stride = sequences.iter().map(|(.., pages)| pages.len()).max().unwrap_or(1).max(1);
        let mut table = vec![0; sequences.len() * table_stride];
        for (row, (.., pages)) in table.chunks_exact_mut(table_stride).zip(sequences) {
            row[..pages.len()].copy_from_slice(pages);
        }
        let row_sequences: Vec<u32> =
            row_counts.iter().enumerate().flat_map(|(s, &count)| std::iter::repeat_n(s as u32, count)).collect();
        let tiles = if row_counts.iter().all(|&n| n == 1) {
            [None, None]
        } else {
            // One list for heads of up to 128, one for wider ones.
            [
                Some(TileList::new(gpu, &row_counts, tiles(128).rows)?),
                Some(TileList::new(gpu, &row_counts, tiles(256).rows)?),
            ]
        };
        let part = |values: &[u32]| -> Result<WordRange> {
            Ok(WordRange { buffer: Arc::new(gpu.upload(values)?), offset: 0 })
        };
        Ok(Self {
            borders: Some(gpu.upload(&borders)?),
            longest: lengths.iter().copied().max().unwrap_or(0) as usize,
            lengths: part(&lengths)?,
            table: part(&table)?,
            table_stride,
            row_sequences: part(&row_sequences)?,
            row_counts,
            tiles,
        })
    }

    fn rows(&self) -> usize {
        self.row_counts.iter().sum()
    }

    /// One row of each of `rows` sequences, whose lengths and pages only the GPU has.
    pub(crate) fn on_device([lengths, table, row_sequences]: [WordRange; 3], table_stride: usize, rows: usize) -> Self {
        let row_counts = vec![1; rows];
        let longest = table_stride * PAGE_TOKENS;
        Self { borders: None, lengths, table, table_stride, row_sequences, row_counts, longest, tiles: [None, None] }
    }
}

/// Where the keys and values of a batch go.
pub(crate) struct Pages<'a> {
    pub(crate) pool: &'a Array,
    pub(crate) batch: &'a PagedArrays,
}

impl Pages<'_> {
    /// `pool, seq_of_row, page_table, table_stride`.
    pub(super) fn args(&self) -> [Arg; 4] {
        let batch = self.batch;
        [
            self.pool.arg(),
            Arg::Ptr(batch.row_sequences.ptr()),
            Arg::Ptr(batch.table.ptr()),
            Arg::I32(batch.table_stride as i32),
        ]
    }
}

/// Attention of the rows over their sequences' pages.
pub(crate) fn paged(pool: &Array, qkv: &Array, batch: &PagedArrays, heads: Heads) -> Result<Array> {
    check_dim(heads.dim)?;
    let (gpu, d) = (qkv.gpu(), heads.dim);
    let out = Array::uninit(gpu, batch.rows() * heads.query * d, DType::Bf16)?;
    match &batch.tiles[usize::from(d > 128)] {
        None if gpu.is_deterministic() => single(&out, pool, qkv, batch, heads)?,
        None => decode(&out, pool, qkv, batch, heads)?,
        Some(tiles) => {
            let head = [
                out.arg(),
                Arg::Ptr(0),
                qkv.arg(),
                pool.arg(),
                Arg::Ptr(batch.table.ptr()),
                Arg::I32(batch.table_stride as i32),
                batch.borders.as_ref().map_or(Arg::Ptr(0), Arg::from),
                Arg::Ptr(batch.lengths.ptr()),
                Arg::from(&tiles.buffer),
            ];
            let args: Vec<Arg> = head.into_iter().chain(heads_args(heads)).collect();
            let grid = [heads.query as u32, tiles.count as u32, 1];
            gpu.launch(&format!("attention_paged_d{d}"), grid, [128, 1, 1], forward_shared(d), &args)?;
        }
    }
    Ok(out)
}

/// One row of every sequence, with the bits of the tiles.
fn single(out: &Array, pool: &Array, qkv: &Array, batch: &PagedArrays, heads: Heads) -> Result<()> {
    let (d, count) = (heads.dim, batch.row_counts.len());
    let head = [
        out.arg(),
        qkv.arg(),
        pool.arg(),
        Arg::Ptr(batch.table.ptr()),
        Arg::I32(batch.table_stride as i32),
        Arg::Ptr(batch.lengths.ptr()),
    ];
    let args: Vec<Arg> = head.into_iter().chain(heads_args(heads)).collect();
    let group_blocks = (heads.query / heads.kv).div_ceil(16);
    let grid = [count as u32, (heads.kv * group_blocks) as u32, 1];
    // As in the kernel: a warp's stages of 16 keys and 64 rows of its columns, two buffers of 16 rows of scores.
    let (stages, columns) = match d {
        64 => (4, 16),
        96 => (3, 32),
        128 => (2, 32),
        _ => (1, 64),
    };
    let shared = 4 * stages * (PAGE_TOKENS * d + 4 * PAGE_TOKENS * columns) * 2 + 2 * 16 * (4 * PAGE_TOKENS + 8) * 4;
    qkv.gpu().launch(&format!("attention_single_d{d}"), grid, [128, 1, 1], shared as u32, &args)
}

/// One row of every sequence, the positions shared out among blocks.
fn decode(out: &Array, pool: &Array, qkv: &Array, batch: &PagedArrays, heads: Heads) -> Result<()> {
    let (gpu, d, count) = (qkv.gpu(), heads.dim, batch.row_counts.len());
    let parts = batch.longest.div_ceil(DECODE_CHUNK).max(1);
    let partial = Array::uninit(gpu, count * parts * heads.query * d, DType::F32)?;
    let state = Array::uninit(gpu, count * parts * heads.query * 2, DType::F32)?;
    let [chunk, parts_arg] = [DECODE_CHUNK, parts].map(|v| Arg::I32(v as i32));
    let [q_heads, kv_heads, scale, window] = heads_args(heads);
    let args = [
        out.arg(),
        partial.arg(),
        state.arg(),
        qkv.arg(),
        pool.arg(),
        Arg::Ptr(batch.table.ptr()),
        Arg::I32(batch.table_stride as i32),
        Arg::Ptr(batch.lengths.ptr()),
        q_heads,
        kv_heads,
        chunk,
        parts_arg,
        scale,
        window,
    ];
    let group_blocks = (heads.query / heads.kv).div_ceil(16);
    let grid = [count as u32, (heads.kv * group_blocks) as u32, parts as u32];
    let (warps, stages) = (if d <= 128 { 4 } else { 2 }, if d == 64 { 4 } else { 3 });
    let shared = (warps * stages * 2 * PAGE_TOKENS * d * 2).max(warps * 16 * (d * 4 + 8));
    gpu.launch(&format!("attention_decode_d{d}"), grid, [32 * warps as u32, 1, 1], shared as u32, &args)?;
    if parts == 1 {
        return Ok(());
    }
    let args =
        [out.arg(), partial.arg(), state.arg(), Arg::Ptr(batch.lengths.ptr()), q_heads, chunk, parts_arg, window];
    let grid = [count as u32, heads.query as u32, 1];
    gpu.launch(&format!("attention_combine_d{d}"), grid, [d as u32, 1, 1], 0, &args)
}
