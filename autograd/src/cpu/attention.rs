//! Causal attention of query rows over blocks of sixteen keys and values.
//!
//! One layout serves packed training batches and the paged KV pool: a *block* holds sixteen tokens of one KV head as
//! keys `[D][16]` followed by values `[16][Dp]`, Dp = D rounded up to sixteen. Scores of sixteen positions are then one
//! vector, and a query is a broadcast. The softmax is exact, in two passes over the row's scores, and each row's sums
//! run over positions in order, so a row's result depends on its own keys alone.

use rayon::prelude::*;

use super::shared::SharedMut;
use super::simd::{LANES, Simd, vectorized};

/// Floats of one block of one KV head.
pub(crate) fn block_len(head_dim: usize) -> usize {
    LANES * (head_dim + head_dim.next_multiple_of(LANES))
}

/// Writes one token's key and value of one head into slot `slot` of a block.
pub(crate) fn write_slot(block: &mut [f32], slot: usize, key: &[f32], value: &[f32]) {
    let d = key.len();
    for (i, &k) in key.iter().enumerate() {
        block[i * LANES + slot] = k;
    }
    let at = LANES * d + slot * d.next_multiple_of(LANES);
    block[at..at + d].copy_from_slice(value);
}

/// Rows of one sequence and where their keys are.
pub(crate) struct Span<'a> {
    /// First row of Q (and of the output) that belongs to the sequence.
    pub(crate) row: usize,
    /// Number of rows.
    pub(crate) len: usize,
    /// Position of the first row in its sequence.
    pub(crate) position: usize,
    /// For each block of sixteen positions, its offset in `blocks` at KV head 0.
    pub(crate) table: &'a [usize],
}

/// Heads and mask of an attention call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Heads {
    /// Query heads.
    pub(crate) query: usize,
    /// Key / value heads.
    pub(crate) kv: usize,
    /// Width of a head.
    pub(crate) dim: usize,
    /// Factor on the scores.
    pub(crate) scale: f32,
    /// Attend to this many last positions, the own one included.
    pub(crate) window: Option<usize>,
}

impl Heads {
    /// Width of a row of queries, keys and values side by side.
    pub(crate) fn row_len(&self) -> usize {
        (self.query + 2 * self.kv) * self.dim
    }

    /// First columns of the keys and of the values in such a row.
    pub(crate) fn kv_columns(&self) -> [usize; 2] {
        [self.query * self.dim, (self.query + self.kv) * self.dim]
    }

    /// First position that a row at `position` sees.
    pub(crate) fn first_visible(&self, position: usize) -> usize {
        self.window.map_or(0, |w| (position + 1).saturating_sub(w))
    }
}

/// Query rows that share a pass over the keys.
const TILE: usize = 6;

/// Attention output `[T, heads * D]` of the queries in `qkv`; `log_sums` gets `ln sum exp(score)` per row and head when training needs it.
pub(crate) fn attend(
    out: &mut [f32],
    log_sums: Option<&mut [f32]>,
    qkv: &[f32],
    blocks: &[f32],
    spans: &[Span<'_>],
    heads: Heads,
) {
    let tasks: Vec<(usize, usize, usize, usize)> = spans
        .iter()
        .enumerate()
        .flat_map(|(s, span)| {
            let group = heads.query / heads.kv;
            let rows = ROWS_PER_TASK.div_ceil(group).max(1);
            let cuts = (0..span.len).step_by(rows).map(move |first| (first, (first + rows).min(span.len)));
            cuts.flat_map(move |(first, last)| (0..heads.kv).map(move |head| (s, head, first, last)))
        })
        .collect();
    let call = Call { out: SharedMut::new(out), log_sums: log_sums.map(SharedMut::new), qkv, blocks, heads };
    let run = |&(s, head, first, last): &(usize, usize, usize, usize)| {
        attend_rows(call, &spans[s], head, [first, last]);
    };
    let work: usize = spans.iter().map(|s| s.len * (s.position + s.len)).sum::<usize>() * heads.query * heads.dim;
    if work < 1 << 16 { tasks.iter().for_each(run) } else { tasks.par_iter().for_each(run) }
}

/// Query rows (tokens times heads of a group) that one task works on.
const ROWS_PER_TASK: usize = 48;

/// What the tasks of one call share.
#[derive(Clone, Copy)]
struct Call<'a> {
    out: SharedMut,
    log_sums: Option<SharedMut>,
    qkv: &'a [f32],
    blocks: &'a [f32],
    heads: Heads,
}

vectorized! {
    /// Tokens `rows[0]..rows[1]` of a span against KV head `head`.
    fn attend_rows(call: Call<'_>, span: &Span<'_>, head: usize, rows: [usize; 2]) = attend_rows_body
}

#[inline(always)]
fn attend_rows_body<S: Simd>(call: Call<'_>, span: &Span<'_>, head: usize, [first, last]: [usize; 2]) {
    let group = call.heads.query / call.heads.kv;
    let mut scores = vec![0.0f32; TILE * (span.position + last).next_multiple_of(LANES)];
    let rows = (last - first) * group;
    for start in (0..rows).step_by(TILE) {
        // Row i of the tile: token `first + (start + i) / group`, query head `head * group + (start + i) % group`.
        // A short tile repeats its last row; the copy computes the same values and is not stored.
        let count = TILE.min(rows - start);
        let index: [(usize, usize); TILE] = std::array::from_fn(|i| {
            let flat = start + i.min(count - 1);
            (first + flat / group, head * group + flat % group)
        });
        tile::<S>(call, span, head, &index, count, &mut scores);
    }
}

#[inline(always)]
fn tile<S: Simd>(
    Call { out, log_sums, qkv, blocks, heads }: Call<'_>,
    span: &Span<'_>,
    head: usize,
    index: &[(usize, usize); TILE],
    count: usize,
    scores: &mut [f32],
) {
    let d = heads.dim;
    let (width, row_len) = (heads.query * d, heads.row_len());
    let query: [&[f32]; TILE] =
        std::array::from_fn(|i| &qkv[(span.row + index[i].0) * row_len + index[i].1 * d..][..d]);
    let positions: [usize; TILE] = std::array::from_fn(|i| span.position + index[i].0);
    let visible = [heads.first_visible(positions[0]), positions[TILE - 1] + 1];
    let pages = visible[0] / LANES..visible[1].div_ceil(LANES);
    let stride = scores.len() / TILE;
    let block = |page: usize| &blocks[span.table[page] + head * block_len(d)..][..block_len(d)];
    for page in pages.clone() {
        // SAFETY: the instruction set was detected; a block holds D key vectors.
        let acc = unsafe { scores_of_block::<S>(&query, block(page), d) };
        for (i, &v) in acc.iter().enumerate() {
            let row = &mut scores[i * stride + page * LANES..][..LANES];
            // SAFETY: `row` has LANES values.
            unsafe { S::store(row.as_mut_ptr(), S::mul(v, S::splat(heads.scale))) };
            mask(row, page * LANES, heads.first_visible(positions[i]), positions[i]);
        }
    }
    let mut inverse = [0.0f32; TILE];
    for i in 0..count {
        let row = &mut scores[i * stride..][pages.start * LANES..pages.end * LANES];
        let (max, sum) = softmax_in_place::<S>(row);
        inverse[i] = 1.0 / sum;
        if let Some(log_sums) = log_sums {
            let at = (span.row + index[i].0) * heads.query + index[i].1;
            // SAFETY: this task alone owns these rows of this head.
            unsafe { log_sums.part(at, 1)[0] = max + sum.ln() };
        }
    }
    for column in (0..d).step_by(LANES) {
        // SAFETY: the instruction set was detected; value rows hold D rounded up to LANES.
        let acc = unsafe { weighted_values::<S>(scores, stride, visible, &block, d, column) };
        for i in 0..count {
            let at = (span.row + index[i].0) * width + index[i].1 * d + column;
            // SAFETY: this task alone owns these rows of this head; the vector is stored up to the head's end.
            unsafe {
                let to = out.part(at, LANES.min(d - column));
                super::rows::store::<S>(to, S::mul(acc[i], S::splat(inverse[i])));
            }
        }
    }
}

/// `q . k` for sixteen positions and every row of the tile.
///
/// SAFETY: the instruction set was detected; `block` begins with `d` vectors.
#[inline(always)]
unsafe fn scores_of_block<S: Simd>(query: &[&[f32]; TILE], block: &[f32], d: usize) -> [S::V; TILE] {
    // SAFETY: by contract; every query has `d` values.
    unsafe {
        let mut acc = [S::splat(0.0); TILE];
        for j in 0..d {
            let keys = S::load(block.as_ptr().add(j * LANES));
            for i in 0..TILE {
                acc[i] = S::fma(S::splat(*query[i].get_unchecked(j)), keys, acc[i]);
            }
        }
        acc
    }
}

/// Sixteen columns of `sum_j p[j] v[j]` over the positions `first..end` for every row of the tile. Slots outside are not
/// read: a page may hold what an earlier sequence left there, and zero times that need not be zero.
///
/// SAFETY: the instruction set was detected.
#[inline(always)]
unsafe fn weighted_values<'b, S: Simd>(
    scores: &[f32],
    stride: usize,
    [first, end]: [usize; 2],
    block: &impl Fn(usize) -> &'b [f32],
    d: usize,
    column: usize,
) -> [S::V; TILE] {
    let padded = d.next_multiple_of(LANES);
    // SAFETY: by contract; blocks hold sixteen value rows after the keys, scores TILE rows of `stride`.
    unsafe {
        let mut acc = [S::splat(0.0); TILE];
        for page in first / LANES..end.div_ceil(LANES) {
            let values = block(page)[LANES * d..].as_ptr();
            let start = page * LANES;
            for j in first.saturating_sub(start)..LANES.min(end - start) {
                let v = S::load(values.add(j * padded + column));
                for (i, acc) in acc.iter_mut().enumerate() {
                    let p = *scores.get_unchecked(i * stride + start + j);
                    *acc = S::fma(S::splat(p), v, *acc);
                }
            }
        }
        acc
    }
}

/// Scores outside `first..=last` become minus infinity.
#[inline(always)]
pub(crate) fn mask(scores: &mut [f32], start: usize, first: usize, last: usize) {
    if start >= first && start + LANES <= last + 1 {
        return;
    }
    for (j, s) in scores.iter_mut().enumerate() {
        if start + j < first || start + j > last {
            *s = f32::NEG_INFINITY;
        }
    }
}

/// `exp(s - max)` in place; returns the maximum and the sum.
#[inline(always)]
fn softmax_in_place<S: Simd>(scores: &mut [f32]) -> (f32, f32) {
    // SAFETY: the instruction set was detected; the row is a whole number of vectors.
    unsafe {
        let mut top = S::splat(f32::NEG_INFINITY);
        for s in scores.chunks_exact(LANES) {
            top = S::max(S::load(s.as_ptr()), top);
        }
        let max = S::max_lane(top);
        let mut sum = S::splat(0.0);
        for s in scores.chunks_exact_mut(LANES) {
            let e = S::exp(S::sub(S::load(s.as_ptr()), S::splat(max)));
            sum = S::add(sum, e);
            S::store(s.as_mut_ptr(), e);
        }
        (max, S::sum(sum))
    }
}

/// Keys and values of packed rows as blocks, sequence by sequence, and each sequence's table.
pub(crate) fn pack_blocks(qkv: &[f32], cu_seqlens: &[usize], heads: Heads) -> (Vec<f32>, Vec<Vec<usize>>) {
    let page = heads.kv * block_len(heads.dim);
    let mut next = 0;
    let tables: Vec<Vec<usize>> = cu_seqlens
        .windows(2)
        .map(|w| {
            let count = (w[1] - w[0]).div_ceil(LANES);
            next += count;
            (next - count..next).map(|i| i * page).collect()
        })
        .collect();
    let mut blocks = vec![0.0f32; next * page];
    let starts: Vec<usize> = cu_seqlens.windows(2).flat_map(|w| (w[0]..w[1]).step_by(LANES)).collect();
    let ends: Vec<usize> =
        cu_seqlens.windows(2).flat_map(|w| (w[0]..w[1]).step_by(LANES).map(|s| (s + LANES).min(w[1]))).collect();
    blocks.par_chunks_mut(page.max(1)).zip(starts.par_iter().zip(&ends)).for_each(|(page, (&start, &end))| {
        for (head, block) in page.chunks_exact_mut(block_len(heads.dim)).enumerate() {
            for row in start..end {
                let [key, value] =
                    heads.kv_columns().map(|c| &qkv[row * heads.row_len() + c + head * heads.dim..][..heads.dim]);
                write_slot(block, row - start, key, value);
            }
        }
    });
    (blocks, tables)
}
