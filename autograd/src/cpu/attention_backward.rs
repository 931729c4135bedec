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
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    pub(crate) out: &'a [f32],
    pub(crate) log_sums: &'a [f32],
    pub(crate) dout: &'a [f32],
}

/// Gradients of `[q, k, v]`, written from zero.
pub(crate) fn attend_backward(saved: &Saved<'_>, cu_seqlens: &[usize], heads: Heads) -> [Vec<f32>; 3] {
    let mut grads = [vec![0.0; saved.q.len()], vec![0.0; saved.k.len()], vec![0.0; saved.v.len()]];
    let out = grads.each_mut().map(|g| SharedMut::new(g));
    let tasks: Vec<([usize; 2], usize)> =
        cu_seqlens.windows(2).flat_map(|w| (0..heads.kv).map(move |head| ([w[0], w[1]], head))).collect();
    tasks.par_iter().for_each(|&(rows, head)| head_gradient(saved, out, rows, head, heads));
    grads
}

vectorized! {
    /// One KV head of the sequence in rows `rows[0]..rows[1]`.
    fn head_gradient(saved: &Saved<'_>, grads: [SharedMut; 3], rows: [usize; 2], head: usize, heads: Heads) = head_gradient_body
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
            it.q.extend_from_slice(&saved.q[at..at + d]);
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
    [dq, dk, dv]: [SharedMut; 3],
    rows @ [first, last]: [usize; 2],
    head: usize,
    heads: Heads,
) {
    let (d, group, kv_width) = (heads.dim, heads.query / heads.kv, heads.kv * heads.dim);
    let queries = gather::<S>(saved, rows, head, heads);
    let tokens = last - first;
    let mut dq_rows = vec![0.0f32; tokens * group * d];
    let (mut keys, mut values) = (Block::new(d), Block::new(d));
    let mut weights = vec![0.0f32; tokens * group * LANES];
    let mut dscores = vec![0.0f32; tokens * group * LANES];
    for start in (0..tokens).step_by(LANES) {
        let count = LANES.min(tokens - start);
        let from = (first + start) * kv_width;
        keys.fill(&saved.k[from..], kv_width, head * d, d, count);
        values.fill(&saved.v[from..], kv_width, head * d, d, count);
        // Rows that see this block: from its first position to where the window has passed it.
        let end = heads.window.map_or(tokens, |w| (start + count - 1 + w).min(tokens));
        let range = start * group..end * group;
        for row in range.clone() {
            let at = row * LANES..(row + 1) * LANES;
            score_gradient::<S>(
                &queries,
                row,
                start,
                heads,
                [&keys, &values],
                &mut weights[at.clone()],
                &mut dscores[at.clone()],
            );
            add_rows::<S>(&mut dq_rows[row * d..(row + 1) * d], &dscores[at], &keys.rows, d);
        }
        for j in 0..count {
            let at = (first + start + j) * kv_width + head * d;
            // SAFETY: this task alone owns this head of this sequence.
            let (dk, dv) = unsafe { (dk.part(at, d), dv.part(at, d)) };
            add_column::<S>(dk, &dscores, &queries.q, range.clone(), j, d);
            add_column::<S>(dv, &weights, &queries.dout, range.clone(), j, d);
        }
    }
    for (row, values) in dq_rows.chunks_exact(d).enumerate() {
        let at = ((first + row / group) * heads.query + head * group + row % group) * d;
        // SAFETY: this task alone owns these query heads of this sequence.
        unsafe { dq.part(at, d) }.copy_from_slice(values);
    }
}

/// Probabilities of one query row on one block, and the gradient of its scaled scores times the scale.
#[inline(always)]
fn score_gradient<S: Simd>(
    queries: &Queries,
    row: usize,
    start: usize,
    heads: Heads,
    [keys, values]: [&Block; 2],
    weights: &mut [f32],
    dscores: &mut [f32],
) {
    let d = heads.dim;
    let position = row / (heads.query / heads.kv);
    // SAFETY: the instruction set was detected; the slices hold LANES values, the columns D vectors.
    unsafe {
        let (mut s, mut dp) = (S::splat(0.0), S::splat(0.0));
        for i in 0..d {
            s = S::fma(S::splat(queries.q[row * d + i]), S::load(keys.columns.as_ptr().add(i * LANES)), s);
            dp = S::fma(S::splat(queries.dout[row * d + i]), S::load(values.columns.as_ptr().add(i * LANES)), dp);
        }
        S::store(weights.as_mut_ptr(), S::mul(s, S::splat(heads.scale)));
        mask(weights, start, heads.first_visible(position), position);
        let p = S::exp(S::sub(S::load(weights.as_ptr()), S::splat(queries.log_sums[row])));
        S::store(weights.as_mut_ptr(), p);
        let ds = S::mul(p, S::sub(dp, S::splat(queries.delta[row])));
        S::store(dscores.as_mut_ptr(), S::mul(ds, S::splat(heads.scale)));
    }
}

/// `out += sum_j weights[j] rows[j]`.
#[inline(always)]
fn add_rows<S: Simd>(out: &mut [f32], weights: &[f32], rows: &[f32], d: usize) {
    for (c, out) in out.chunks_mut(LANES).enumerate() {
        // SAFETY: the instruction set was detected; `rows` has sixteen rows of D rounded up.
        unsafe {
            let mut acc = load::<S>(out);
            for (j, &w) in weights.iter().enumerate() {
                let v = S::load(rows.as_ptr().add(j * d.next_multiple_of(LANES) + c * LANES));
                acc = S::fma(S::splat(w), v, acc);
            }
            store::<S>(out, acc);
        }
    }
}

/// `out += sum over rows of weights[row][j] x[row]`.
#[inline(always)]
fn add_column<S: Simd>(out: &mut [f32], weights: &[f32], x: &[f32], rows: std::ops::Range<usize>, j: usize, d: usize) {
    for (c, out) in out.chunks_mut(LANES).enumerate() {
        // SAFETY: the instruction set was detected.
        unsafe {
            let mut acc = load::<S>(out);
            for row in rows.clone() {
                let at = row * d + c * LANES;
                let v = load::<S>(&x[at..at + LANES.min(d - c * LANES)]);
                acc = S::fma(S::splat(weights[row * LANES + j]), v, acc);
            }
            store::<S>(out, acc);
        }
    }
}
