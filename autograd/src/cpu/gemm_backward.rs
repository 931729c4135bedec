//! Gradients of [`super::gemm::linear`] with respect to its input and its weight.

use rayon::prelude::*;

use super::gemm::panels;
use super::shared::SharedMut;
use super::simd::{LANES, Simd, vectorized};

/// Columns of dX that one task computes; their weights are gathered into one contiguous strip.
const STRIP: usize = 8;

/// `dx[t, k] += factor * dy[t, n] w` with `w` in panels.
pub(crate) fn input_gradient(dx: &mut [f32], dy: &[f32], w: &[f32], [t, n, k]: [usize; 3], factor: f32) {
    assert_eq!((dx.len(), dy.len(), w.len()), (t * k, t * n, panels(n) * k * LANES), "input gradient [{t}, {n}, {k}]");
    let padded = pad_columns(dy, t, n);
    let dy = padded.as_deref().unwrap_or(dy);
    let out = SharedMut::new(dx);
    (0..k.div_ceil(STRIP)).into_par_iter().for_each(|strip| {
        let columns = [strip * STRIP, ((strip + 1) * STRIP).min(k)];
        let gathered = gather_strip(w, k, columns);
        input_strip(out, dy, &gathered, [t, panels(n), k], columns, factor);
    });
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

/// Columns `columns` of every panel, as `[panels][STRIP][16]`; rows past the last column are zero.
fn gather_strip(w: &[f32], k: usize, [first, last]: [usize; 2]) -> Vec<f32> {
    let width = (last - first) * LANES;
    let mut out = vec![0.0; w.len() / k * STRIP];
    for (to, panel) in out.chunks_exact_mut(STRIP * LANES).zip(w.chunks_exact(k * LANES)) {
        to[..width].copy_from_slice(&panel[first * LANES..last * LANES]);
    }
    out
}

vectorized! {
    /// `dx` in the columns of one strip, for all rows.
    fn input_strip(
        dx: SharedMut, dy: &[f32], strip: &[f32], dims: [usize; 3], columns: [usize; 2], factor: f32,
    ) = input_strip_body
}

#[inline(always)]
fn input_strip_body<S: Simd>(
    dx: SharedMut,
    dy: &[f32],
    strip: &[f32],
    dims @ [t, ..]: [usize; 3],
    columns: [usize; 2],
    factor: f32,
) {
    let mut row = 0;
    if S::WIDE {
        while row + 3 <= t {
            input_tile::<S, 3>(dx, dy, strip, dims, row, columns, factor);
            row += 3;
        }
    }
    while row < t {
        input_tile::<S, 1>(dx, dy, strip, dims, row, columns, factor);
        row += 1;
    }
}

#[inline(always)]
fn input_tile<S: Simd, const R: usize>(
    dx: SharedMut,
    dy: &[f32],
    strip: &[f32],
    [_, panels, k]: [usize; 3],
    row: usize,
    [first, last]: [usize; 2],
    factor: f32,
) {
    let width = panels * LANES;
    let dy = &dy[row * width..(row + R) * width];
    assert_eq!(strip.len(), width * STRIP);
    // SAFETY: the instruction set was detected; `dy` holds R rows of `width`, `strip` one block per panel.
    let sums = unsafe {
        let mut acc = [[S::splat(0.0); STRIP]; R];
        for p in 0..panels {
            let mut dv = [S::splat(0.0); R];
            for r in 0..R {
                dv[r] = S::load(dy.as_ptr().add(r * width + p * LANES));
            }
            for c in 0..STRIP {
                let wv = S::load(strip.as_ptr().add((p * STRIP + c) * LANES));
                for r in 0..R {
                    acc[r][c] = S::fma(dv[r], wv, acc[r][c]);
                }
            }
        }
        acc.map(|row| row.map(|v| S::sum(v)))
    };
    for (r, values) in sums.iter().enumerate() {
        // SAFETY: this task alone owns these columns of dX.
        let out = unsafe { dx.part((row + r) * k + first, last - first) };
        for (o, v) in out.iter_mut().zip(values) {
            *o = factor.mul_add(*v, *o);
        }
    }
}

/// `dw += factor * dy^T x`, in the panel layout of the weight `[n, k]`.
pub(crate) fn weight_gradient(dw: &mut [f32], dy: &[f32], x: &[f32], [t, n, k]: [usize; 3], factor: f32) {
    assert_eq!((dw.len(), dy.len(), x.len()), (panels(n) * k * LANES, t * n, t * k), "weight gradient [{t}, {n}, {k}]");
    let padded = pad_columns(dy, t, n);
    let dy = padded.as_deref().unwrap_or(dy);
    let blocks = k.div_ceil(WEIGHT_BLOCK);
    let out = SharedMut::new(dw);
    (0..panels(n).div_ceil(2) * blocks).into_par_iter().for_each(|task| {
        let (pair, block) = (task / blocks, task % blocks);
        let columns = [block * WEIGHT_BLOCK, ((block + 1) * WEIGHT_BLOCK).min(k)];
        weight_block(out, dy, x, [t, panels(n), k], pair * 2, columns, factor);
    });
}

/// Columns of the weight that one task walks, so that its strip of X stays in cache.
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
