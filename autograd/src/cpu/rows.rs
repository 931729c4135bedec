//! Kernels that work on rows or elements: norms, activations, rotary embedding, log-softmax.

use rayon::prelude::*;

use super::simd::{LANES, Simd, vectorized};

/// Elements below which a kernel runs on the calling thread.
const SERIAL_LIMIT: usize = 1 << 14;

/// Up to sixteen values, zero-padded.
///
/// SAFETY: the instruction set was detected.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd>(x: &[f32]) -> S::V {
    // SAFETY: a full vector is in bounds; a short one is copied into sixteen zeros.
    unsafe {
        if x.len() >= LANES {
            return S::load(x.as_ptr());
        }
        let mut lanes = [0.0f32; LANES];
        lanes[..x.len()].copy_from_slice(x);
        S::load(lanes.as_ptr())
    }
}

/// Stores the first `out.len()` lanes, at most sixteen.
///
/// SAFETY: the instruction set was detected.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(out: &mut [f32], v: S::V) {
    // SAFETY: a full vector is in bounds; a short one goes through sixteen lanes.
    unsafe {
        if out.len() >= LANES {
            return S::store(out.as_mut_ptr(), v);
        }
        let mut lanes = [0.0f32; LANES];
        S::store(lanes.as_mut_ptr(), v);
        out.copy_from_slice(&lanes[..out.len()]);
    }
}

/// Calls `work(first_row, rows_of_out)` for blocks of rows of `width`, on several threads when there is enough to do.
pub(crate) fn for_row_blocks(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if width == 0 || out.is_empty() {
        return;
    }
    if out.len() < SERIAL_LIMIT {
        return work(0, out);
    }
    let rows = out.len() / width;
    let block = rows.div_ceil(4 * rayon::current_num_threads()).max(1);
    out.par_chunks_mut(block * width).enumerate().for_each(|(i, part)| work(i * block, part));
}

/// `y = x / sqrt(mean(x^2) + eps) * w` on consecutive groups of `w.len()` values.
pub(crate) fn rms_norm(y: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    for_row_blocks(y, w.len(), |first, part| {
        let x = &x[first * w.len()..][..part.len()];
        rms_norm_block(part, x, w, eps);
    });
}

vectorized! {
    pub(crate) fn rms_norm_block(y: &mut [f32], x: &[f32], w: &[f32], eps: f32) = rms_norm_body
}

#[inline(always)]
fn rms_norm_body<S: Simd>(y: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    for (y, x) in y.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())) {
        let inverse = inverse_rms::<S>(x, eps);
        for ((y, x), w) in y.chunks_mut(LANES).zip(x.chunks(LANES)).zip(w.chunks(LANES)) {
            // SAFETY: the instruction set was detected.
            unsafe { store::<S>(y, S::mul(S::mul(load::<S>(x), S::splat(inverse)), load::<S>(w))) };
        }
    }
}

#[inline(always)]
fn inverse_rms<S: Simd>(x: &[f32], eps: f32) -> f32 {
    let sum = dot_rows::<S>(x, x);
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

/// Sum of products in a fixed order.
#[inline(always)]
pub(crate) fn dot_rows<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: the instruction set was detected.
    unsafe {
        let mut acc = S::splat(0.0);
        for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
            acc = S::fma(load::<S>(a), load::<S>(b), acc);
        }
        S::sum(acc)
    }
}

/// Gradients of [`rms_norm`]: writes `dx`, adds to `dw` when it is there.
pub(crate) fn rms_norm_backward(dx: &mut [f32], dw: Option<&mut [f32]>, dy: &[f32], x: &[f32], w: &[f32], eps: f32) {
    for_row_blocks(dx, w.len(), |first, part| {
        let range = first * w.len()..first * w.len() + part.len();
        rms_norm_input_gradient(part, &dy[range.clone()], &x[range], w, eps);
    });
    if let Some(dw) = dw {
        rms_norm_weight_gradient(dw, dy, x, eps);
    }
}

vectorized! {
    pub(crate) fn rms_norm_input_gradient(dx: &mut [f32], dy: &[f32], x: &[f32], w: &[f32], eps: f32) = rms_norm_input_body
}

/// With r = 1/rms: `dx = r (w dy - x r^2 mean(w dy x))`.
#[inline(always)]
fn rms_norm_input_body<S: Simd>(dx: &mut [f32], dy: &[f32], x: &[f32], w: &[f32], eps: f32) {
    let width = w.len();
    for ((dx, dy), x) in dx.chunks_exact_mut(width).zip(dy.chunks_exact(width)).zip(x.chunks_exact(width)) {
        let r = inverse_rms::<S>(x, eps);
        // SAFETY: the instruction set was detected.
        unsafe {
            let mut acc = S::splat(0.0);
            for ((dy, x), w) in dy.chunks(LANES).zip(x.chunks(LANES)).zip(w.chunks(LANES)) {
                acc = S::fma(S::mul(load::<S>(dy), load::<S>(w)), load::<S>(x), acc);
            }
            let along = -r * r * S::sum(acc) / width as f32;
            let vectors = dx.chunks_mut(LANES).zip(dy.chunks(LANES)).zip(x.chunks(LANES)).zip(w.chunks(LANES));
            for (((dx, dy), x), w) in vectors {
                let direct = S::mul(load::<S>(dy), load::<S>(w));
                let v = S::fma(S::splat(along), load::<S>(x), direct);
                store::<S>(dx, S::mul(S::splat(r), v));
            }
        }
    }
}

vectorized! {
    pub(crate) fn rms_norm_weight_gradient(dw: &mut [f32], dy: &[f32], x: &[f32], eps: f32) = rms_norm_weight_body
}

#[inline(always)]
fn rms_norm_weight_body<S: Simd>(dw: &mut [f32], dy: &[f32], x: &[f32], eps: f32) {
    let width = dw.len();
    for (dy, x) in dy.chunks_exact(width).zip(x.chunks_exact(width)) {
        let r = inverse_rms::<S>(x, eps);
        for ((dw, dy), x) in dw.chunks_mut(LANES).zip(dy.chunks(LANES)).zip(x.chunks(LANES)) {
            // SAFETY: the instruction set was detected.
            unsafe {
                let scaled = S::mul(load::<S>(x), S::splat(r));
                store::<S>(dw, S::fma(scaled, load::<S>(dy), load::<S>(dw)));
            }
        }
    }
}

/// `y = silu(gate) * up` of rows `[gate, up]`, `width` columns each.
pub(crate) fn swiglu(y: &mut [f32], gate_up: &[f32], width: usize) {
    for_row_blocks(y, width, |first, part| {
        for (y, x) in part.chunks_exact_mut(width).zip(gate_up[2 * first * width..].chunks_exact(2 * width)) {
            swiglu_block(y, &x[..width], &x[width..]);
        }
    });
}

vectorized! {
    fn swiglu_block(y: &mut [f32], gate: &[f32], up: &[f32]) = swiglu_body
}

#[inline(always)]
fn swiglu_body<S: Simd>(y: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((y, g), u) in y.chunks_mut(LANES).zip(gate.chunks(LANES)).zip(up.chunks(LANES)) {
        // SAFETY: the instruction set was detected.
        unsafe {
            let g = load::<S>(g);
            store::<S>(y, S::mul(S::mul(g, sigmoid::<S>(g)), load::<S>(u)));
        }
    }
}

/// SAFETY: the instruction set was detected.
#[inline(always)]
unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: forwarded.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, S::exp(S::sub(S::splat(0.0), x))))
    }
}

/// Gradients of [`swiglu`]: with s = sigmoid(g), `dgate = dy up s (1 + g (1 - s))` and `dup = dy g s`.
pub(crate) fn swiglu_backward(dx: &mut [f32], dy: &[f32], gate_up: &[f32], width: usize) {
    for_row_blocks(dx, 2 * width, |first, part| {
        let rows = gate_up[2 * first * width..].chunks_exact(2 * width).zip(dy[first * width..].chunks_exact(width));
        for (dx, (x, dy)) in part.chunks_exact_mut(2 * width).zip(rows) {
            let (dgate, dup) = dx.split_at_mut(width);
            swiglu_gradient(dgate, dup, dy, &x[..width], &x[width..]);
        }
    });
}

vectorized! {
    fn swiglu_gradient(dgate: &mut [f32], dup: &mut [f32], dy: &[f32], gate: &[f32], up: &[f32]) = swiglu_gradient_body
}

#[inline(always)]
fn swiglu_gradient_body<S: Simd>(dgate: &mut [f32], dup: &mut [f32], dy: &[f32], gate: &[f32], up: &[f32]) {
    for i in (0..dy.len()).step_by(LANES) {
        let range = i..(i + LANES).min(dy.len());
        // SAFETY: the instruction set was detected.
        unsafe {
            let (g, u, d) =
                (load::<S>(&gate[range.clone()]), load::<S>(&up[range.clone()]), load::<S>(&dy[range.clone()]));
            let s = sigmoid::<S>(g);
            let slope = S::mul(s, S::fma(g, S::sub(S::splat(1.0), s), S::splat(1.0)));
            store::<S>(&mut dgate[range.clone()], S::mul(S::mul(d, u), slope));
            store::<S>(&mut dup[range], S::mul(S::mul(d, g), s));
        }
    }
}

/// Rotates the halves of the heads in the first `rotated` columns of rows of `width`:
/// `(a, b) -> (a cos - b sin, b cos + a sin)`; `sign = -1` rotates back.
///
/// `cos` and `sin` hold one row of `head_dim / 2` per row of `y`.
pub(crate) fn rope(y: &mut [f32], [width, rotated]: [usize; 2], [cos, sin]: [&[f32]; 2], half: usize, sign: f32) {
    for_row_blocks(y, width, |first, part| {
        for (i, row) in part.chunks_exact_mut(width).enumerate() {
            let at = (first + i) * half;
            let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
            for head in row[..rotated].chunks_exact_mut(2 * half) {
                let (a, b) = head.split_at_mut(half);
                for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    let s = sign * s;
                    (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                }
            }
        }
    });
}

/// Largest value and log of the sum of exponentials of a row of logits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Normalizer {
    /// `ln sum exp(z)`, i.e. `log_softmax(z) = z - log_sum`.
    pub(crate) log_sum: f32,
}

vectorized! {
    /// Normalizer of one row; a NaN in the row gives a NaN.
    pub(crate) fn normalizer(z: &[f32]) -> Normalizer = normalizer_body
}

#[inline(always)]
fn normalizer_body<S: Simd>(z: &[f32]) -> Normalizer {
    // SAFETY: the instruction set was detected.
    unsafe {
        let mut top = S::splat(f32::NEG_INFINITY);
        let whole = z.chunks_exact(LANES);
        let rest = whole.remainder();
        for z in whole.clone() {
            top = S::max(load::<S>(z), top);
        }
        let max = rest.iter().copied().fold(S::max_lane(top), f32::max);
        // Groups of 256 values are summed in f32 and the groups in f64: the error stays below that of the inputs.
        let mut total = 0.0f64;
        for group in z[..z.len() - rest.len()].chunks(16 * LANES) {
            let mut acc = S::splat(0.0);
            for z in group.chunks_exact(LANES) {
                acc = S::add(acc, S::exp(S::sub(load::<S>(z), S::splat(max))));
            }
            total += f64::from(S::sum(acc));
        }
        for z in rest {
            total += f64::from((z - max).exp());
        }
        Normalizer { log_sum: max + total.ln() as f32 }
    }
}

vectorized! {
    /// Sum of a row, in f64 over groups of 256 values.
    pub(crate) fn sum(x: &[f32]) -> f64 = sum_body
}

#[inline(always)]
fn sum_body<S: Simd>(x: &[f32]) -> f64 {
    let mut total = 0.0;
    for group in x.chunks(16 * LANES) {
        // SAFETY: the instruction set was detected.
        unsafe {
            let mut acc = S::splat(0.0);
            for x in group.chunks(LANES) {
                acc = S::add(acc, load::<S>(x));
            }
            total += f64::from(S::sum(acc));
        }
    }
    total
}

vectorized! {
    /// Index of the largest value, the lowest one of equals; NaNs are passed over.
    pub(crate) fn first_max(z: &[f32]) -> usize = first_max_body
}

#[inline(always)]
fn first_max_body<S: Simd>(z: &[f32]) -> usize {
    let mut max = f32::NEG_INFINITY;
    // SAFETY: the instruction set was detected.
    unsafe {
        let mut top = S::splat(max);
        for z in z.chunks_exact(LANES) {
            top = S::max(load::<S>(z), top);
        }
        max = S::max_lane(top);
    }
    for &v in z.chunks_exact(LANES).remainder() {
        max = max.max(v);
    }
    const STRETCH: usize = 8 * LANES;
    for (i, stretch) in z.chunks(STRETCH).enumerate() {
        let mut found = false;
        for &v in stretch {
            found |= v == max;
        }
        if found {
            return i * STRETCH + stretch.iter().position(|&v| v == max).unwrap_or_default();
        }
    }
    0
}

vectorized! {
    /// `z <- factor * z`.
    pub(crate) fn scale_in_place(z: &mut [f32], factor: f32) = scale_body
}

#[inline(always)]
fn scale_body<S: Simd>(z: &mut [f32], factor: f32) {
    for z in z.chunks_mut(LANES) {
        // SAFETY: the instruction set was detected.
        unsafe { store::<S>(z, S::mul(load::<S>(z), S::splat(factor))) };
    }
}

vectorized! {
    /// `z <- exp(z - log_sum)`, the probabilities; returns their entropy in nats.
    pub(crate) fn entropy_and_exp(z: &mut [f32], log_sum: f32) -> f32 = entropy_body
}

#[inline(always)]
fn entropy_body<S: Simd>(z: &mut [f32], log_sum: f32) -> f32 {
    let mut total = 0.0f64;
    for group in z.chunks_mut(16 * LANES) {
        // SAFETY: the instruction set was detected. Lanes past the end are far below `log_sum` and add zero.
        unsafe {
            let mut acc = S::splat(0.0);
            for z in group.chunks_mut(LANES) {
                let mut lanes = [log_sum - 1e4; LANES];
                lanes[..z.len()].copy_from_slice(z);
                let log = S::sub(S::load(lanes.as_ptr()), S::splat(log_sum));
                let p = S::exp(log);
                acc = S::sub(acc, S::mul(p, log));
                store::<S>(z, p);
            }
            total += f64::from(S::sum(acc));
        }
    }
    total as f32
}

#[cfg(test)]
mod tests;
