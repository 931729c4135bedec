//! Gradient of packed causal attention.
//!
//! Scores are recomputed from Q and K with the saved log-sums. One task owns one KV head of one sequence, walks the
//! blocks of sixteen keys in order and, for each, the query rows that see it; so no two tasks write one value and the
//! order of additions is fixed.

use rayon::prelude::*;

use super::attention::{Heads, mask};
use super::rows::{dot_rows, load, store};
use super::shared::SharedMut;
use super::simd::{LANES, Simd, vectorized};

/// What the forward pass kept and the gradient of its output.
pub(crate) struct Saved<'a> {
    pub(crate) qkv: &'a [f32],
    pub(crate) out: &'a [f32],
    pub(crate) log_sums: &'a [f32],
    pub(crate) dout: &'a [f32],
}

/// Gradient of `qkv`, written from zero.
pub(crate) fn attend_backward(saved: &Saved<'_>, cu_seqlens: &[usize], heads: Heads) -> Vec<f32> {
    let mut grads = vec![0.0; saved.qkv.len()];
    let out = SharedMut::new(&mut grads);
    let tasks: Vec<([usize; 2], usize)> =
        cu_seqlens.windows(2).flat_map(|w| (0..heads.kv).map(move |head| ([w[0], w[1]], head))).collect();
    tasks.par_iter().for_each(|&(rows, head)| head_gradient(saved, out, rows, head, heads));
    grads
}

vectorized! {
    /// One KV head of the sequence in rows `rows[0]..rows[1]`.
    fn head_gradient(saved: &Saved<'_>, grads: SharedMut, rows: [usize; 2], head: usize, heads: Heads) = head_gradient_body
}

/// The query heads of one KV head, gathered so that row `token * group + g` is contiguous.
struct Queries {
    q: Vec<f32>,
    dout: Vec<f32>,
    log_sums: Vec<f32>,
    /// `sum_d dout * out` per row.
    delta: Vec<f32>,
}

#[inline(always)]
fn gather<S: Simd>(saved: &Saved<'_>, [first, last]: [usize; 2], head: usize, heads: Heads) -> Queries {
    let (d, group) = (heads.dim, heads.query / heads.kv);
    let rows = (last - first) * group;
    let mut it = Queries {
        q: Vec::with_capacity(rows * d),
        dout: Vec::with_capacity(rows * d),
        log_sums: Vec::with_capacity(rows),
        delta: Vec::with_capacity(rows),
    };
    for token in first..last {
        for h in head * group..(head + 1) * group {
            let at = (token * heads.query + h) * d;
            it.q.extend_from_slice(&saved.qkv[token * heads.row_len() + h * d..][..d]);
            it.dout.extend_from_slice(&saved.dout[at..at + d]);
            it.log_sums.push(saved.log_sums[token * heads.query + h]);
            it.delta.push(dot_rows::<S>(&saved.dout[at..at + d], &saved.out[at..at + d]));
        }
    }
    it
}

/// Sixteen keys or values of one head, as rows `[16][Dp]` and as columns `[D][16]`, zero past the sequence's end.
struct Block {
    rows: Vec<f32>,
    columns: Vec<f32>,
}

impl Block {
    fn new(d: usize) -> Self {
        Self { rows: vec![0.0; LANES * d.next_multiple_of(LANES)], columns: vec![0.0; LANES * d] }
    }

    fn fill(&mut self, x: &[f32], width: usize, at: usize, d: usize, count: usize) {
        self.rows.fill(0.0);
        self.columns.fill(0.0);
        for j in 0..count {
            let row = &x[j * width + at..][..d];
            self.rows[j * d.next_multiple_of(LANES)..][..d].copy_from_slice(row);
            for (i, &v) in row.iter().enumerate() {
                self.columns[i * LANES + j] = v;
            }
        }
    }
}

#[inline(always)]
fn head_gradient_body<S: Simd>(
    saved: &Saved<'_>,
    grads: SharedMut,
    rows @ [first, last]: [usize; 2],
    head: usize,
    heads: Heads,
) {
    let (d, group, row_len) = (heads.dim, heads.query / heads.kv, heads.row_len());
    let [key_column, value_column] = heads.kv_columns().map(|c| c + head * d);
    let queries = gather::<S>(saved, rows, head, heads);
    let tokens = last - first;
    let mut dq_rows = vec![0.0f32; tokens * group * d];
    let (mut keys, mut values) = (Block::new(d), Block::new(d));
    let mut weights = vec![0.0f32; tokens * group * LANES];
    let mut dscores = vec![0.0f32; tokens * group * LANES];
    let mut columns = vec![0.0f32; d * LANES];
    for start in (0..tokens).step_by(LANES) {
        let count = LANES.min(tokens - start);
        let block = &saved.qkv[(first + start) * row_len..];
        keys.fill(block, row_len, key_column, d, count);
        values.fill(block, row_len, value_column, d, count);
        // Rows that see this block: from its first position to where the window has passed it.
        let end = heads.window.map_or(tokens, |w| (start + count - 1 + w).min(tokens));
        let (from, end) = (start * group, end * group);
        for row in (from..end).step_by(TILE) {
            let tile = [row, (row + TILE).min(end)];
            score_gradients::<S>(&queries, tile, start, heads, [&keys, &values], &mut weights, &mut dscores);
            add_keys::<S>(&mut dq_rows, tile, &dscores, &keys.rows, d);
        }
        let seen = [from, end];
        columns.fill(0.0);
        add_outer::<S>(&mut columns, &dscores, &queries.q, seen, d);
        // SAFETY: this task alone owns this head of this sequence.
        scatter(&columns, d, count, |j| unsafe { grads.part((first + start + j) * row_len + key_column, d) });
        columns.fill(0.0);
        add_outer::<S>(&mut columns, &weights, &queries.dout, seen, d);
        // SAFETY: as above.
        scatter(&columns, d, count, |j| unsafe { grads.part((first + start + j) * row_len + value_column, d) });
    }
    for (row, values) in dq_rows.chunks_exact(d).enumerate() {
        let at = (first + row / group) * row_len + (head * group + row % group) * d;
        // SAFETY: this task alone owns these query heads of this sequence.
        unsafe { grads.part(at, d) }.copy_from_slice(values);
    }
}

/// Query rows that share a pass over a block.
const TILE: usize = 6;

/// Probabilities of the query rows `first..last` on one block, and the gradients of their scaled scores times the scale.
#[inline(always)]
fn score_gradients<S: Simd>(
    queries: &Queries,
    [first, last]: [usize; 2],
    start: usize,
    heads: Heads,
    [keys, values]: [&Block; 2],
    weights: &mut [f32],
    dscores: &mut [f32],
) {
    let d = heads.dim;
    // A short tile repeats its last row; the copy is not stored.
    let q: [&[f32]; TILE] = std::array::from_fn(|i| &queries.q[(first + i).min(last - 1) * d..][..d]);
    let dout: [&[f32]; TILE] = std::array::from_fn(|i| &queries.dout[(first + i).min(last - 1) * d..][..d]);
    // SAFETY: the instruction set was detected; the rows hold D values, the columns D vectors.
    unsafe {
        let (mut s, mut dp) = ([S::splat(0.0); TILE], [S::splat(0.0); TILE]);
        for i in 0..d {
            let (key, value) =
                (S::load(keys.columns.as_ptr().add(i * LANES)), S::load(values.columns.as_ptr().add(i * LANES)));
            for r in 0..TILE {
                s[r] = S::fma(S::splat(*q[r].get_unchecked(i)), key, s[r]);
                dp[r] = S::fma(S::splat(*dout[r].get_unchecked(i)), value, dp[r]);
            }
        }
        for (r, row) in (first..last).enumerate() {
            let position = row / (heads.query / heads.kv);
            let weights = &mut weights[row * LANES..(row + 1) * LANES];
            S::store(weights.as_mut_ptr(), S::mul(s[r], S::splat(heads.scale)));
            mask(weights, start, heads.first_visible(position), position);
            let p = S::exp(S::sub(S::load(weights.as_ptr()), S::splat(queries.log_sums[row])));
            S::store(weights.as_mut_ptr(), p);
            let ds = S::mul(p, S::sub(dp[r], S::splat(queries.delta[row])));
            S::store(dscores[row * LANES..(row + 1) * LANES].as_mut_ptr(), S::mul(ds, S::splat(heads.scale)));
        }
    }
}

/// `dq[row] += sum_j dscores[row][j] keys[j]` for the rows `first..last`.
#[inline(always)]
fn add_keys<S: Simd>(dq: &mut [f32], [first, last]: [usize; 2], dscores: &[f32], keys: &[f32], d: usize) {
    let scores: [&[f32]; TILE] = std::array::from_fn(|i| &dscores[(first + i).min(last - 1) * LANES..][..LANES]);
    for column in (0..d).step_by(LANES) {
        // SAFETY: the instruction set was detected; `keys` has sixteen rows of D rounded up, scores have LANES values.
        unsafe {
            let mut acc = [S::splat(0.0); TILE];
            for j in 0..LANES {
                let key = S::load(keys.as_ptr().add(j * d.next_multiple_of(LANES) + column));
                for r in 0..TILE {
                    acc[r] = S::fma(S::splat(*scores[r].get_unchecked(j)), key, acc[r]);
                }
            }
            for (r, row) in (first..last).enumerate() {
                let out = &mut dq[row * d + column..row * d + d.min(column + LANES)];
                let sum = S::add(load::<S>(out), acc[r]);
                store::<S>(out, sum);
            }
        }
    }
}

/// `out[i][j] += sum over rows of x[row][i] weights[row][j]`, for all i below `d`.
#[inline(always)]
fn add_outer<S: Simd>(out: &mut [f32], weights: &[f32], x: &[f32], rows: [usize; 2], d: usize) {
    let mut i = 0;
    while S::WIDE && i + 16 <= d {
        outer_tile::<S, 16>(out, weights, x, rows, d, i);
        i += 16;
    }
    while i + 4 <= d {
        outer_tile::<S, 4>(out, weights, x, rows, d, i);
        i += 4;
    }
    while i < d {
        outer_tile::<S, 1>(out, weights, x, rows, d, i);
        i += 1;
    }
}

#[inline(always)]
fn outer_tile<S: Simd, const C: usize>(
    out: &mut [f32],
    weights: &[f32],
    x: &[f32],
    [first, last]: [usize; 2],
    d: usize,
    i: usize,
) {
    let weights = &weights[first * LANES..last * LANES];
    let out = &mut out[i * LANES..(i + C) * LANES];
    // SAFETY: the instruction set was detected; `out` has C vectors.
    unsafe {
        let mut acc = [S::splat(0.0); C];
        for (weights, x) in weights.chunks_exact(LANES).zip(x[first * d..last * d].chunks_exact(d)) {
            let (w, x) = (S::load(weights.as_ptr()), &x[i..i + C]);
            for c in 0..C {
                acc[c] = S::fma(S::splat(x[c]), w, acc[c]);
            }
        }
        for (c, &acc) in acc.iter().enumerate() {
            let at = out.as_mut_ptr().add(c * LANES);
            S::store(at, S::add(S::load(at), acc));
        }
    }
}

/// Adds the columns `[d][16]` of `count` keys to their rows.
fn scatter<'a>(columns: &[f32], d: usize, count: usize, row: impl Fn(usize) -> &'a mut [f32]) {
    for j in 0..count {
        row(j).iter_mut().zip(columns[j..].iter().step_by(LANES).take(d)).for_each(|(out, v)| *out += v);
    }
}
