//! Gradients of [`super::gemm::linear`] with respect to its input and its weight.

use rayon::prelude::*;

use super::gemm::{Product, Store, multiply, panels};
use super::shared::SharedMut;
use super::simd::{LANES, Simd, vectorized};

/// Rows of the weight that are transposed at a time, so that their part of dY stays in cache.
const DEPTH: usize = 1024;

/// `dx[t, k] += factor * dy[t, n] w` with `w` in panels: the forward kernel on `DEPTH` rows of the weight at a time,
/// transposed into panels over K.
pub(crate) fn input_gradient(dx: &mut [f32], dy: &[f32], w: &[f32], [t, n, k]: [usize; 3], factor: f32) {
    assert_eq!((dx.len(), dy.len(), w.len()), (t * k, t * n, panels(n) * k * LANES), "input gradient [{t}, {n}, {k}]");
    let (y, store) = (SharedMut::new(dx), Store::AddScaled(factor));
    let mut transposed = vec![0.0; panels(k) * LANES * DEPTH.min(n)];
    for start in (0..n).step_by(DEPTH) {
        let depth = DEPTH.min(n - start);
        let transposed = &mut transposed[..panels(k) * LANES * depth];
        transpose(transposed, &w[start * k..], k, depth);
        let x = &dy[start..];
        multiply(&[Product { y, row_len: k, first: 0, x, w: transposed, width: k, stride: n, depth, store }], t);
    }
}

/// Values below which threads cost more than they bring to a copy.
const SERIAL_LIMIT: usize = 1 << 15;

/// The first `depth` rows of a weight as panels over its `k` columns, `[panels(k)][depth][16]`. Lanes past the last
/// column are left as they are: nothing is stored from them.
fn transpose(out: &mut [f32], w: &[f32], k: usize, depth: usize) {
    let panel = |(q, out): (usize, &mut [f32])| {
        let width = LANES.min(k - q * LANES);
        for (p, rows) in out.chunks_mut(LANES * LANES).enumerate() {
            let block = &w[(p * k + q * LANES) * LANES..][..width * LANES];
            if let (Some(block), Some(rows)) = (block.as_array(), rows.as_mut_array()) {
                transpose_block(rows, block);
                continue;
            }
            for (i, row) in rows.chunks_exact_mut(LANES).enumerate() {
                row.iter_mut().zip(block[i..].iter().step_by(LANES)).for_each(|(to, from)| *to = *from);
            }
        }
    };
    let len = depth * LANES;
    if out.len() < SERIAL_LIMIT {
        out.chunks_exact_mut(len).enumerate().for_each(panel);
    } else {
        out.par_chunks_exact_mut(len).enumerate().for_each(panel);
    }
}

/// Sixteen by sixteen.
fn transpose_block(out: &mut [f32; LANES * LANES], from: &[f32; LANES * LANES]) {
    for i in 0..LANES {
        for j in 0..LANES {
            out[i * LANES + j] = from[j * LANES + i];
        }
    }
}

/// `dy` with zero columns up to a multiple of sixteen; `None` when it has that already.
fn pad_columns(dy: &[f32], t: usize, n: usize) -> Option<Vec<f32>> {
    let width = panels(n) * LANES;
    if width == n {
        return None;
    }
    let mut out = vec![0.0; t * width];
    for (to, from) in out.chunks_exact_mut(width).zip(dy.chunks_exact(n)) {
        to[..n].copy_from_slice(from);
    }
    Some(out)
}

/// `dw += factor * dy^T x`, in the panel layout of the weight `[n, k]`.
pub(crate) fn weight_gradient(dw: &mut [f32], dy: &[f32], x: &[f32], [t, n, k]: [usize; 3], factor: f32) {
    assert_eq!((dw.len(), dy.len(), x.len()), (panels(n) * k * LANES, t * n, t * k), "weight gradient [{t}, {n}, {k}]");
    let padded = pad_columns(dy, t, n);
    let dy = padded.as_deref().unwrap_or(dy);
    let (out, width, blocks) = (SharedMut::new(dw), panels(n) * LANES, k.div_ceil(WEIGHT_BLOCK));
    for first in (0..t).step_by(WEIGHT_ROWS) {
        let rows = WEIGHT_ROWS.min(t - first);
        let (dy, x) = (&dy[first * width..][..rows * width], &x[first * k..][..rows * k]);
        (0..panels(n).div_ceil(2) * blocks).into_par_iter().for_each(|task| {
            let (pair, block) = (task / blocks, task % blocks);
            let columns = [block * WEIGHT_BLOCK, ((block + 1) * WEIGHT_BLOCK).min(k)];
            weight_block(out, dy, x, [rows, panels(n), k], pair * 2, columns, factor);
        });
    }
}

/// Rows and columns of X that one task walks; they stay in the L2 cache.
const WEIGHT_ROWS: usize = 512;
const WEIGHT_BLOCK: usize = 96;

vectorized! {
    /// Columns `columns` of the gradient's panels `panel` and `panel + 1`.
    fn weight_block(
        dw: SharedMut, dy: &[f32], x: &[f32], dims: [usize; 3], panel: usize, columns: [usize; 2], factor: f32,
    ) = weight_block_body
}

#[inline(always)]
fn weight_block_body<S: Simd>(
    dw: SharedMut,
    dy: &[f32],
    x: &[f32],
    dims @ [_, panels, _]: [usize; 3],
    panel: usize,
    columns: [usize; 2],
    factor: f32,
) {
    if panel + 2 <= panels {
        weight_columns::<S, 2>(dw, dy, x, dims, panel, columns, factor);
    } else {
        weight_columns::<S, 1>(dw, dy, x, dims, panel, columns, factor);
    }
}

#[inline(always)]
fn weight_columns<S: Simd, const P: usize>(
    dw: SharedMut,
    dy: &[f32],
    x: &[f32],
    dims: [usize; 3],
    panel: usize,
    [mut column, last]: [usize; 2],
    factor: f32,
) {
    if S::WIDE && P == 1 {
        while column + 16 <= last {
            weight_tile::<S, 16, P>(dw, dy, x, dims, panel, column, factor);
            column += 16;
        }
    }
    if S::WIDE {
        while column + 12 <= last {
            weight_tile::<S, 12, P>(dw, dy, x, dims, panel, column, factor);
            column += 12;
        }
    }
    while column + 4 <= last {
        weight_tile::<S, 4, P>(dw, dy, x, dims, panel, column, factor);
        column += 4;
    }
    while column < last {
        weight_tile::<S, 1, P>(dw, dy, x, dims, panel, column, factor);
        column += 1;
    }
}

#[inline(always)]
fn weight_tile<S: Simd, const C: usize, const P: usize>(
    dw: SharedMut,
    dy: &[f32],
    x: &[f32],
    [t, panels, k]: [usize; 3],
    panel: usize,
    column: usize,
    factor: f32,
) {
    let width = panels * LANES;
    assert!(dy.len() == t * width && x.len() == t * k && column + C <= k && panel + P <= panels);
    // SAFETY: the instruction set was detected; indices are inside by the assertion. This task alone owns these
    // columns of these panels of dW.
    unsafe {
        let mut acc = [[S::splat(0.0); P]; C];
        for row in 0..t {
            let mut dv = [S::splat(0.0); P];
            for p in 0..P {
                dv[p] = S::load(dy.as_ptr().add(row * width + (panel + p) * LANES));
            }
            for c in 0..C {
                let xv = S::splat(*x.get_unchecked(row * k + column + c));
                for p in 0..P {
                    acc[c][p] = S::fma(xv, dv[p], acc[c][p]);
                }
            }
        }
        for p in 0..P {
            for c in 0..C {
                let out = dw.part(((panel + p) * k + column + c) * LANES, LANES);
                let sum = S::fma(S::splat(factor), acc[c][p], S::load(out.as_ptr()));
                S::store(out.as_mut_ptr(), sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::gemm::{pack, unpack};
    use crate::rng::uniform;

    fn random(len: usize, key: u64) -> Vec<f32> {
        (0..len).map(|i| uniform(key, 0, i as u64) as f32 - 0.5).collect()
    }

    #[test]
    fn gradients_agree_with_double_precision_sums() {
        for [t, n, k] in [[1, 1, 1], [5, 17, 9], [13, 40, 30], [33, 100, 110]] {
            let (x, w, dy) = (random(t * k, 1), random(n * k, 2), random(t * n, 3));
            let mut dx = vec![1.0; t * k];
            input_gradient(&mut dx, &dy, &pack(&w, n, k), [t, n, k], 2.0);
            for (i, &v) in dx.iter().enumerate() {
                let (r, c) = (i / k, i % k);
                let sum: f64 = (0..n).map(|j| f64::from(dy[r * n + j]) * f64::from(w[j * k + c])).sum();
                assert!((f64::from(v) - 1.0 - 2.0 * sum).abs() < 1e-5, "dx {r},{c}");
            }
            let mut dw = pack(&vec![1.0; n * k], n, k);
            weight_gradient(&mut dw, &dy, &x, [t, n, k], 3.0);
            for (i, v) in unpack(&dw, n, k).iter().enumerate() {
                let (r, c) = (i / k, i % k);
                let sum: f64 = (0..t).map(|j| f64::from(dy[j * n + r]) * f64::from(x[j * k + c])).sum();
                assert!((f64::from(*v) - 1.0 - 3.0 * sum).abs() < 1e-5, "dw {r},{c}");
            }
        }
    }
}
