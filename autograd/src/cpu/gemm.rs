//! `Y = X W^T` over weights stored in panels.
//!
//! A weight `[N, K]` is kept as `ceil(N / 16)` panels; panel p holds rows `16 p .. 16 p + 16` transposed, as `[K][16]`,
//! zero where N is not a multiple of 16. One output value is one chain of fused multiply-adds over k = 0..K in order,
//! so it does not depend on how many rows X has. Register tiles of R rows by P panels reuse each loaded panel vector R
//! times; a group of P panels stays in the L2 cache while all rows pass by.

use rayon::prelude::*;

use super::shared::SharedMut;
use super::simd::{LANES, Simd, vectorized};

/// What becomes of a finished product.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Store {
    /// `y = acc`
    Set,
    /// `y += factor * acc`
    AddScaled(f32),
}

/// Panels a task works on at a time; their vectors fill the register tile.
const GROUP: usize = 4;
/// Multiply-adds below which threads cost more than they bring.
const SERIAL_LIMIT: usize = 1 << 17;

/// Number of panels of a weight with `n` rows.
pub(crate) fn panels(n: usize) -> usize {
    n.div_ceil(LANES)
}

/// Row-major `[n, k]` to panels.
pub(crate) fn pack(w: &[f32], n: usize, k: usize) -> Vec<f32> {
    let mut out = vec![0.0; panels(n) * k * LANES];
    out.par_chunks_mut((k * LANES).max(1)).enumerate().for_each(|(p, panel)| {
        for lane in 0..LANES.min(n - p * LANES) {
            let row = &w[(p * LANES + lane) * k..][..k];
            for (j, &v) in row.iter().enumerate() {
                panel[j * LANES + lane] = v;
            }
        }
    });
    out
}

/// Panels back to row-major `[n, k]`.
pub(crate) fn unpack(w: &[f32], n: usize, k: usize) -> Vec<f32> {
    let mut out = vec![0.0; n * k];
    out.par_chunks_mut(k.max(1)).enumerate().for_each(|(row, values)| unpack_row(w, row, values));
    out
}

/// Row `row` of a panel weight, into `out` (length K).
pub(crate) fn unpack_row(w: &[f32], row: usize, out: &mut [f32]) {
    let panel = &w[row / LANES * out.len() * LANES..][..out.len() * LANES];
    for (v, lanes) in out.iter_mut().zip(panel.chunks_exact(LANES)) {
        *v = lanes[row % LANES];
    }
}

/// `y[t, n] (=|+=) x[t, k] w^T` with `w` in panels.
pub(crate) fn linear(y: &mut [f32], x: &[f32], w: &[f32], [t, n, k]: [usize; 3], store: Store) {
    assert_eq!((y.len(), x.len(), w.len()), (t * n, t * k, panels(n) * k * LANES), "linear [{t}, {n}, {k}]");
    let groups = panels(n).div_ceil(GROUP);
    let out = SharedMut::new(y);
    if t * n * k < SERIAL_LIMIT {
        (0..groups).for_each(|g| group(out, x, w, [t, n, k], [0, t], g, store));
        return;
    }
    let row_blocks = row_blocks(t, groups);
    let rows_per_block = t.div_ceil(row_blocks);
    (0..groups * row_blocks).into_par_iter().for_each(|task| {
        let (g, block) = (task / row_blocks, task % row_blocks);
        let first = block * rows_per_block;
        let last = (first + rows_per_block).min(t);
        if first < last {
            group(out, x, w, [t, n, k], [first, last], g, store);
        }
    });
}

/// Cuts of the row dimension, so that every thread finds work when there are few panel groups.
fn row_blocks(t: usize, groups: usize) -> usize {
    let wanted = 4 * rayon::current_num_threads();
    wanted.div_ceil(groups).min(t.div_ceil(48)).max(1)
}

vectorized! {
    /// Rows `rows[0]..rows[1]` of the output columns of panel group `g`.
    fn group(y: SharedMut, x: &[f32], w: &[f32], dims: [usize; 3], rows: [usize; 2], g: usize, store: Store) = group_body
}

#[inline(always)]
fn group_body<S: Simd>(y: SharedMut, x: &[f32], w: &[f32], dims: [usize; 3], rows: [usize; 2], g: usize, store: Store) {
    let first = g * GROUP;
    match (panels(dims[1]) - first).min(GROUP) {
        4 => group_rows::<S, 4>(y, x, w, dims, rows, first, store),
        3 => group_rows::<S, 3>(y, x, w, dims, rows, first, store),
        2 => group_rows::<S, 2>(y, x, w, dims, rows, first, store),
        _ => group_rows::<S, 1>(y, x, w, dims, rows, first, store),
    }
}

#[inline(always)]
fn group_rows<S: Simd, const P: usize>(
    y: SharedMut,
    x: &[f32],
    w: &[f32],
    dims: [usize; 3],
    [mut row, last]: [usize; 2],
    first_panel: usize,
    store: Store,
) {
    if S::WIDE {
        while row + 6 <= last {
            tile::<S, 6, P>(y, x, w, dims, row, first_panel, store);
            row += 6;
        }
        while row + 3 <= last {
            tile::<S, 3, P>(y, x, w, dims, row, first_panel, store);
            row += 3;
        }
    } else {
        while row + 2 <= last {
            tile::<S, 2, P>(y, x, w, dims, row, first_panel, store);
            row += 2;
        }
    }
    while row < last {
        tile::<S, 1, P>(y, x, w, dims, row, first_panel, store);
        row += 1;
    }
}

#[inline(always)]
fn tile<S: Simd, const R: usize, const P: usize>(
    y: SharedMut,
    x: &[f32],
    w: &[f32],
    [_, n, k]: [usize; 3],
    row: usize,
    first_panel: usize,
    store: Store,
) {
    let x = &x[row * k..(row + R) * k];
    let w = &w[first_panel * k * LANES..(first_panel + P) * k * LANES];
    // SAFETY: the instruction set was detected by the dispatcher; `x` holds R rows of k and `w` P panels of k vectors.
    let acc = unsafe {
        let mut acc = [[S::splat(0.0); P]; R];
        for j in 0..k {
            let mut wv = [S::splat(0.0); P];
            for p in 0..P {
                wv[p] = S::load(w.as_ptr().add((p * k + j) * LANES));
            }
            for r in 0..R {
                let xv = S::splat(*x.get_unchecked(r * k + j));
                for p in 0..P {
                    acc[r][p] = S::fma(xv, wv[p], acc[r][p]);
                }
            }
        }
        acc
    };
    for (r, values) in acc.iter().enumerate() {
        for (p, &v) in values.iter().enumerate() {
            let column = (first_panel + p) * LANES;
            // SAFETY: this task alone owns these columns of these rows.
            let out = unsafe { y.part((row + r) * n + column, LANES.min(n - column)) };
            write::<S>(out, v, store);
        }
    }
}

/// Stores up to sixteen lanes.
#[inline(always)]
fn write<S: Simd>(out: &mut [f32], v: S::V, store: Store) {
    if out.len() == LANES {
        // SAFETY: `out` has LANES values; the instruction set was detected.
        unsafe {
            let v = match store {
                Store::Set => v,
                Store::AddScaled(s) => S::fma(S::splat(s), v, S::load(out.as_ptr())),
            };
            S::store(out.as_mut_ptr(), v);
        }
        return;
    }
    let mut lanes = [0.0f32; LANES];
    // SAFETY: `lanes` has LANES values.
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    for (o, v) in out.iter_mut().zip(lanes) {
        match store {
            Store::Set => *o = v,
            Store::AddScaled(s) => *o = s.mul_add(v, *o),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::uniform;

    fn random(len: usize, key: u64) -> Vec<f32> {
        (0..len).map(|i| uniform(key, 0, i as u64) as f32 - 0.5).collect()
    }

    fn product(x: &[f32], w: &[f32], [t, n, k]: [usize; 3]) -> Vec<f32> {
        let mut y = vec![0.0; t * n];
        linear(&mut y, x, &pack(w, n, k), [t, n, k], Store::Set);
        y
    }

    #[test]
    fn agrees_with_a_double_precision_sum() {
        for dims @ [t, n, k] in [[1, 1, 1], [5, 17, 33], [7, 64, 40], [50, 100, 24], [130, 33, 70]] {
            let (x, w) = (random(t * k, 1), random(n * k, 2));
            for (i, &y) in product(&x, &w, dims).iter().enumerate() {
                let (row, col) = (i / n, i % n);
                let exact: f64 = (0..k).map(|j| f64::from(x[row * k + j]) * f64::from(w[col * k + j])).sum();
                assert!((f64::from(y) - exact).abs() < 1e-5, "{dims:?} at {row},{col}: {y} against {exact}");
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_rows_around_it() {
        let dims @ [t, n, k] = [131, 200, 90];
        let (x, w) = (random(t * k, 3), random(n * k, 4));
        let all = product(&x, &w, dims);
        for row in 0..t {
            let alone = product(&x[row * k..][..k], &w, [1, n, k]);
            assert_eq!(&all[row * n..][..n], &alone, "row {row}");
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let [t, n, k] = [9, 40, 61];
        let (x, w) = (random(t * k, 5), pack(&random(n * k, 6), n, k));
        let run = |f: &dyn Fn(SharedMut, usize)| {
            let mut y = vec![0.0; t * n];
            let out = SharedMut::new(&mut y);
            (0..panels(n).div_ceil(GROUP)).for_each(|g| f(out, g));
            y
        };
        let native = run(&|y, g| group(y, &x, &w, [t, n, k], [0, t], g, Store::Set));
        let scalar = run(&|y, g| {
            group_body::<super::super::simd::Scalar>(y, &x, &w, [t, n, k], [0, t], g, Store::Set);
        });
        assert_eq!(native, scalar);
    }

    #[test]
    fn packing_is_lossless() {
        let w = random(37 * 11, 7);
        assert_eq!(unpack(&pack(&w, 37, 11), 37, 11), w);
    }
}
