//! `Y = X W^T` over weights stored in panels.
//!
//! A weight `[N, K]` is kept as `ceil(N / 16)` panels; panel p holds rows `16 p .. 16 p + 16` transposed, as `[K][16]`,
//! zero where N is not a multiple of 16. One output value is one chain of fused multiply-adds over k = 0..K in order,
//! so it does not depend on how many rows X has. Register tiles of R rows by P panels reuse each loaded panel vector R
//! times; a group of panels stays in the L2 cache while all rows pass by, and up to sixteen rows pass in one go, so
//! that a small batch reads each weight from memory once.

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

/// Packed a task works on at a time.
const GROUP: usize = 3;
/// Vectors of a panel that are fetched ahead of their use: the processor's own prefetching stops at each 4 KiB page.
const AHEAD: usize = 128;
/// Multiply-adds below which threads cost more than they bring, when the weight is small too.
const SERIAL_LIMIT: usize = 1 << 19;
/// Values of a weight that two threads read faster than one.
const SERIAL_WEIGHT: usize = 1 << 16;

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

/// Packed back to row-major `[n, k]`.
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
    side_by_side(y, &[Map { x, w, dims: [n, k], first: 0, store }], [t, n]);
}

/// One of several products that share the rows of an output.
pub(crate) struct Map<'a> {
    /// `[t, k]`
    pub(crate) x: &'a [f32],
    /// Packed of `[n, k]`
    pub(crate) w: &'a [f32],
    /// `[n, k]`
    pub(crate) dims: [usize; 2],
    /// First column of the output.
    pub(crate) first: usize,
    /// What becomes of the product.
    pub(crate) store: Store,
}

/// The maps' products in their columns of `y [t, width]`, all in one parallel loop.
pub(crate) fn side_by_side(y: &mut [f32], maps: &[Map<'_>], [t, width]: [usize; 2]) {
    assert_eq!(y.len(), t * width, "output [{t}, {width}]");
    let y = SharedMut::new(y);
    let products = maps.iter().map(|map| {
        let &Map { x, w, dims: [n, k], first, store } = map;
        let fits = (x.len(), w.len()) == (t * k, panels(n) * k * LANES) && first + n <= width;
        assert!(fits, "linear [{t}, {n}, {k}] at column {first} of {width}");
        Product { y, row_len: width, first, x, w, width: n, stride: k, depth: k, store }
    });
    multiply(&products.collect::<Vec<_>>(), t);
}

/// All of some products with `t` rows, on several threads when there is enough to do.
pub(super) fn multiply(products: &[Product<'_>], t: usize) {
    let groups = |p: &Product<'_>| panels(p.width).div_ceil(GROUP);
    let (total, values): (usize, usize) =
        (products.iter().map(groups).sum(), products.iter().map(|p| p.width * p.depth).sum());
    if t * values < SERIAL_LIMIT && values < SERIAL_WEIGHT {
        products.iter().for_each(|p| (0..groups(p)).for_each(|g| group(p, g, [0, t])));
        return;
    }
    let depth = products.iter().map(|p| p.depth).max().unwrap_or(1).max(1);
    let rows = row_block(t, total, CACHED / depth);
    (0..total * t.div_ceil(rows)).into_par_iter().for_each(|task| {
        let (block, mut g) = (task / total, task % total);
        let mut rest = products.iter();
        let product = rest.find(|p| {
            let here = g < groups(p);
            g -= if here { 0 } else { groups(p) };
            here
        });
        let product = product.expect("the groups of all products are counted");
        group(product, g, [block * rows, ((block + 1) * rows).min(t)]);
    });
}

/// Rows that one task works on: at most about `most`, and few enough that every thread finds work.
fn row_block(t: usize, groups: usize, most: usize) -> usize {
    let blocks = (4 * rayon::current_num_threads()).div_ceil(groups);
    t.div_ceil(blocks).clamp(3 * BULK, most.max(3 * BULK)).next_multiple_of(BULK)
}

/// Values of X that stay in the L2 cache.
const CACHED: usize = 1 << 17;
/// Most rows of a register tile.
const BULK: usize = 16;

/// `y (=|+=) x w^T`.
pub(super) struct Product<'a> {
    /// Rows of `row_len`, of which the columns `first..first + width` are the product's.
    pub(super) y: SharedMut,
    pub(super) row_len: usize,
    pub(super) first: usize,
    /// Rows of `stride` values, of which the first `depth` count.
    pub(super) x: &'a [f32],
    /// Packed of `depth` vectors.
    pub(super) w: &'a [f32],
    pub(super) width: usize,
    pub(super) stride: usize,
    pub(super) depth: usize,
    pub(super) store: Store,
}

vectorized! {
    /// Rows `rows[0]..rows[1]` of the columns of panel group `g`; no other task has them.
    fn group(product: &Product<'_>, g: usize, rows: [usize; 2]) = group_body
}

#[inline(always)]
fn group_body<S: Simd>(product: &Product<'_>, g: usize, [mut row, last]: [usize; 2]) {
    let group = [g * GROUP, ((g + 1) * GROUP).min(panels(product.width))];
    // Rows at a time while many are left: 24 accumulators (16 where a group has one panel) hide the latency.
    let bulk = match group[1] - group[0] {
        _ if !S::WIDE => 2,
        1 => 16,
        2 => 12,
        _ => 8,
    };
    while row < last {
        let left = last - row;
        let rows = if left > 16 || !S::WIDE { left.min(bulk) } else { left };
        rows_of::<S>(product, group, row, rows);
        row += rows;
    }
}

/// The group's panels for `rows` rows, at most 16.
#[inline(always)]
fn rows_of<S: Simd>(product: &Product<'_>, group: [usize; 2], row: usize, rows: usize) {
    macro_rules! tiles {
        ($($r:literal: $p:literal)*) => {
            match rows {
                $($r => strip::<S, $r, $p>(product, group, row),)*
                _ => unreachable!("at most sixteen rows"),
            }
        };
    }
    if S::WIDE {
        tiles!(1: 3 2: 3 3: 3 4: 3 5: 3 6: 3 7: 3 8: 3 9: 2 10: 2 11: 2 12: 2 13: 1 14: 1 15: 1 16: 1);
    } else {
        tiles!(1: 3 2: 3);
    }
}

/// R rows, P panels at a time and the rest one by one.
#[inline(always)]
fn strip<S: Simd, const R: usize, const P: usize>(product: &Product<'_>, [mut panel, end]: [usize; 2], row: usize) {
    while panel + P <= end {
        tile::<S, R, P>(product, row, panel);
        panel += P;
    }
    while panel < end {
        tile::<S, R, 1>(product, row, panel);
        panel += 1;
    }
}

#[inline(always)]
fn tile<S: Simd, const R: usize, const P: usize>(product: &Product<'_>, row: usize, panel: usize) {
    let &Product { y, row_len, first, x, w, width, stride, depth, store } = product;
    let x = &x[row * stride..(row + R - 1) * stride + depth];
    let w = &w[panel * depth * LANES..][..P * depth * LANES];
    // SAFETY: the instruction set was detected by the dispatcher; `x` holds R rows of `depth` values, `w` P panels of
    // as many vectors.
    let acc = unsafe {
        let mut acc = [[S::splat(0.0); P]; R];
        for j in 0..depth {
            let mut wv = [S::splat(0.0); P];
            for p in 0..P {
                let at = w.as_ptr().wrapping_add((p * depth + j) * LANES);
                wv[p] = S::load(at);
                S::prefetch(at.wrapping_add(AHEAD * LANES));
            }
            for r in 0..R {
                let xv = S::splat(*x.get_unchecked(r * stride + j));
                for p in 0..P {
                    acc[r][p] = S::fma(xv, wv[p], acc[r][p]);
                }
            }
        }
        acc
    };
    for (r, values) in acc.iter().enumerate() {
        for (p, &v) in values.iter().enumerate() {
            let column = (panel + p) * LANES;
            // SAFETY: this task alone owns these columns of these rows.
            let out = unsafe { y.part((row + r) * row_len + first + column, LANES.min(width - column)) };
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
        let few = (1..=17).map(|t| [t, 70, 21]);
        let dims = [[1, 1, 1], [5, 17, 33], [7, 64, 40], [50, 100, 24], [130, 33, 70], [40, 16, 9]];
        for dims @ [t, n, k] in dims.into_iter().chain(few) {
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
        let run = |group: &dyn Fn(&Product<'_>, usize)| {
            let mut y = vec![0.0; t * n];
            let (out, store) = (SharedMut::new(&mut y), Store::Set);
            let product = Product { y: out, row_len: n, first: 0, x: &x, w: &w, width: n, stride: k, depth: k, store };
            (0..panels(n).div_ceil(GROUP)).for_each(|g| group(&product, g));
            y
        };
        let native = run(&|product, g| group(product, g, [0, t]));
        let scalar = run(&|product, g| group_body::<super::super::simd::Scalar>(product, g, [0, t]));
        assert_eq!(native, scalar);
    }

    #[test]
    fn packing_is_lossless() {
        let w = random(37 * 11, 7);
        assert_eq!(unpack(&pack(&w, 37, 11), 37, 11), w);
    }
}
