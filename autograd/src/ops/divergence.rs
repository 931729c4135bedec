//! Divergences between a teacher's and a student's next-token distribution, one row of logits at a time.
//!
//! Notation: p teacher, q student, both `softmax(z / T)`. With g = dL/dq and h = q g, the gradient with respect to the
//! student's logits is `(h - q sum(h)) / T`; adding a constant to g changes nothing. Definitions: generalized JSD as in
//! GKD (<https://arxiv.org/abs/2306.13649>) and TRL, where beta = 0 and 1 are the two KL divergences themselves; skewed
//! KL as in DistiLLM (<https://arxiv.org/abs/2402.03898>).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::cpu::rows::{first_max, load, normalizer, scale_in_place, store, sum};
use crate::cpu::simd::{LANES, Simd, vectorized};
use crate::{Error, Result};

/// A divergence between teacher p and student q.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Divergence {
    /// Generalized Jensen-Shannon: KL(p‖q) at `beta` 0, KL(q‖p) at 1, else
    /// `beta KL(p‖M) + (1 - beta) KL(q‖M)` with `M = beta p + (1 - beta) q`.
    Jsd {
        /// In `[0, 1]`.
        beta: f64,
    },
    /// `KL(p ‖ alpha p + (1 - alpha) q)`.
    SkewedForward {
        /// In `[0, 1)`.
        alpha: f64,
    },
    /// `KL(q ‖ alpha q + (1 - alpha) p)`.
    SkewedReverse {
        /// In `[0, 1)`.
        alpha: f64,
    },
    /// Generalized JSD on a support of k tokens plus one bucket for all others. The support is the teacher's top k at
    /// `beta` 0, the student's at 1, the union of both between; ties go to the lower id.
    TopK {
        /// Tokens taken from each side.
        k: usize,
        /// In `[0, 1]`.
        beta: f64,
    },
}

impl Divergence {
    /// Ranges of the constants; `vocab` is the number of logits.
    pub(super) fn check(self, vocab: usize) -> Result<()> {
        let (what, value, fits, expected) = match self {
            Self::Jsd { beta } => ("beta", beta, (0.0..=1.0).contains(&beta), "in [0, 1]"),
            Self::SkewedForward { alpha } | Self::SkewedReverse { alpha } => {
                ("alpha", alpha, (0.0..1.0).contains(&alpha), "in [0, 1)")
            }
            Self::TopK { beta, .. } if !(0.0..=1.0).contains(&beta) => ("beta", beta, false, "in [0, 1]"),
            Self::TopK { k, .. } => ("top k", k as f64, (1..=vocab).contains(&k), "between 1 and the vocabulary"),
        };
        if fits { Ok(()) } else { Err(Error::Domain { op: "linear_distill", what, value, expected }) }
    }

    /// What the GPU's kernels call it: kind, constant and k of a top-k divergence.
    pub(super) fn code(self) -> (i32, f32, Option<usize>) {
        let (kind, constant) = match self.kind() {
            Kind::Forward => (0, 0.0),
            Kind::Reverse => (1, 0.0),
            Kind::Mixed(beta) => (2, beta),
            Kind::SkewedForward(alpha) => (3, alpha),
            Kind::SkewedReverse(alpha) => (4, alpha),
        };
        let k = if let Self::TopK { k, .. } = self { Some(k) } else { None };
        (kind, constant, k)
    }

    /// Vector form of the divergence on full rows; a top-k divergence uses its JSD on the reduced rows.
    fn kind(self) -> Kind {
        match self {
            Self::Jsd { beta } | Self::TopK { beta, .. } if beta == 0.0 => Kind::Forward,
            Self::Jsd { beta } | Self::TopK { beta, .. } if beta == 1.0 => Kind::Reverse,
            Self::Jsd { beta } | Self::TopK { beta, .. } => Kind::Mixed(beta as f32),
            Self::SkewedForward { alpha } => Kind::SkewedForward(alpha as f32),
            Self::SkewedReverse { alpha } => Kind::SkewedReverse(alpha as f32),
        }
    }

    /// Loss and statistics of one row. `student` and `teacher` hold logits and are used as scratch; with `gradient`,
    /// `student` ends as the loss's gradient with respect to the student's logits.
    pub(super) fn row(self, student: &mut [f32], teacher: &mut [f32], temperature: f32, gradient: bool) -> RowTerms {
        let agree = first_max(student) == first_max(teacher);
        if temperature != 1.0 {
            scale_in_place(student, 1.0 / temperature);
            scale_in_place(teacher, 1.0 / temperature);
        }
        let log_sums = [normalizer(student).log_sum, normalizer(teacher).log_sum];
        let mut terms = match self {
            Self::TopK { k, .. } => self.reduced(student, teacher, log_sums, k, gradient),
            _ => {
                let (terms, total) = full_row(self.kind(), student, teacher, log_sums);
                if gradient {
                    combine(student, teacher, total);
                }
                terms
            }
        };
        if gradient && temperature != 1.0 {
            scale_in_place(student, 1.0 / temperature);
        }
        terms.agreement = f32::from(agree);
        terms
    }

    /// The divergence on the support and its tail bucket.
    fn reduced(self, z: &mut [f32], zt: &mut [f32], log_sums: [f32; 2], k: usize, gradient: bool) -> RowTerms {
        let support = self.support(z, zt, k);
        let gather = |z: &[f32], log_sum: f32| -> Vec<f32> { support.iter().map(|&i| z[i] - log_sum).collect() };
        let (mut logs, mut logs_t) = (gather(z, log_sums[0]), gather(zt, log_sums[1]));
        // Leaves q in `z` and -p in `zt`.
        let (statistics, _) = full_row(Kind::Forward, z, zt, log_sums);
        let tail = (support.len() < z.len()).then(|| [outside(z, &support), -outside(zt, &support)]);
        if let Some([q, p]) = tail {
            logs.push(q.max(TAIL_LIMIT).ln() as f32);
            logs_t.push(p.max(TAIL_LIMIT).ln() as f32);
        }
        let (reduced, mut total) = full_row(self.kind(), &mut logs, &mut logs_t, [0.0, 0.0]);
        if gradient {
            // A token of the tail shares the bucket's h in proportion to q; a bucket at its limit is a constant.
            let share = match tail {
                Some([q, _]) if q > TAIL_LIMIT => logs_t[support.len()] / q as f32,
                Some(_) => {
                    total -= logs_t[support.len()];
                    0.0
                }
                None => 0.0,
            };
            for q in z.iter_mut() {
                *q *= share - total;
            }
            for (i, &token) in support.iter().enumerate() {
                z[token] = logs_t[i] - logs[i] * total;
            }
        }
        RowTerms { loss: reduced.loss, ..statistics }
    }

    fn support(self, student: &[f32], teacher: &[f32], k: usize) -> Vec<usize> {
        let Self::TopK { beta, .. } = self else { unreachable!("only a top-k divergence has a support") };
        let mut support = Vec::with_capacity(2 * k);
        if beta < 1.0 {
            support.extend(top_k(teacher, k));
        }
        if beta > 0.0 {
            support.extend(top_k(student, k));
        }
        support.sort_unstable();
        support.dedup();
        support
    }
}

/// Loss of one row and what is reported beside it, all in nats at the loss's temperature.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RowTerms {
    pub(super) loss: f32,
    pub(super) forward_kl: f32,
    pub(super) reverse_kl: f32,
    pub(super) entropy: f32,
    pub(super) teacher_entropy: f32,
    /// 1 when both rows have their maximum at the same token.
    pub(super) agreement: f32,
}

/// Least mass of a tail bucket, as in TRL, so that its logarithm is finite.
const TAIL_LIMIT: f64 = 1e-7;

/// Sum of the values that are not in `support` (ascending): by addition, because one minus the rest would cancel.
fn outside(values: &[f32], support: &[usize]) -> f64 {
    let starts = std::iter::once(0).chain(support.iter().map(|i| i + 1));
    let ends = support.iter().copied().chain([values.len()]);
    starts.zip(ends).map(|(start, end)| sum(&values[start..end])).sum()
}

/// Indices of the k largest values, ties to the lower index.
fn top_k(z: &[f32], k: usize) -> Vec<usize> {
    // In the order of `f32::total_cmp`, then the lower index first.
    let rank = |i: usize| {
        let bits = z[i].to_bits() as i32;
        (bits ^ ((bits >> 31) as u32 >> 1) as i32, Reverse(i))
    };
    let mut best: BinaryHeap<_> = (0..k.min(z.len())).map(|i| Reverse(rank(i))).collect();
    for start in (k..z.len()).step_by(4 * LANES) {
        let end = (start + 4 * LANES).min(z.len());
        let worst = best.peek().map_or(f32::NEG_INFINITY, |Reverse((_, Reverse(i)))| z[*i]);
        // Most stretches hold nothing better than what there is.
        if z[start..end].iter().fold(true, |none, &v| none & (v <= worst)) {
            continue;
        }
        for i in start..end {
            if best.peek().is_some_and(|Reverse(worst)| rank(i) > *worst) {
                best.pop();
                best.push(Reverse(rank(i)));
            }
        }
    }
    best.into_iter().map(|Reverse((_, Reverse(i)))| i).collect()
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Forward,
    Reverse,
    Mixed(f32),
    SkewedForward(f32),
    SkewedReverse(f32),
}

vectorized! {
    /// One pass over a row: sums, and in place `z <- q`, `zt <- h`; also returns the sum of h.
    fn full_row(kind: Kind, z: &mut [f32], zt: &mut [f32], log_sums: [f32; 2]) -> (RowTerms, f32) = full_row_body
}

#[inline(always)]
fn full_row_body<S: Simd>(kind: Kind, z: &mut [f32], zt: &mut [f32], log_sums: [f32; 2]) -> (RowTerms, f32) {
    let mut totals = [0.0f64; 6];
    // Sums of 256 values in f32, of those in f64.
    for (z, zt) in z.chunks_mut(16 * LANES).zip(zt.chunks_mut(16 * LANES)) {
        let part = group::<S>(kind, z, zt, log_sums);
        for (total, part) in totals.iter_mut().zip(part) {
            *total += f64::from(part);
        }
    }
    let [loss, total, forward_kl, reverse_kl, entropy, teacher_entropy] = totals.map(|t| t as f32);
    (RowTerms { loss, forward_kl, reverse_kl, entropy, teacher_entropy, agreement: 0.0 }, total)
}

#[inline(always)]
fn group<S: Simd>(kind: Kind, z: &mut [f32], zt: &mut [f32], [log_sum, log_sum_t]: [f32; 2]) -> [f32; 6] {
    // SAFETY: the instruction set was detected.
    unsafe {
        let zero = S::splat(0.0);
        let mut sums = [zero; 6];
        for (z, zt) in z.chunks_mut(LANES).zip(zt.chunks_mut(LANES)) {
            let lq = S::sub(load_logs::<S>(z, log_sum), S::splat(log_sum));
            let lp = S::sub(load_logs::<S>(zt, log_sum_t), S::splat(log_sum_t));
            let (q, p) = (S::exp(lq), S::exp(lp));
            let (loss, h) = terms::<S>(kind, [p, q], [lp, lq]);
            let gap = S::sub(lp, lq);
            sums[0] = S::add(sums[0], loss);
            sums[1] = S::add(sums[1], h);
            sums[2] = S::fma(p, gap, sums[2]);
            sums[3] = S::fma(q, S::sub(lq, lp), sums[3]);
            sums[4] = S::sub(sums[4], S::mul(q, lq));
            sums[5] = S::sub(sums[5], S::mul(p, lp));
            store::<S>(z, q);
            store::<S>(zt, h);
        }
        let mut totals = [0.0; 6];
        for (total, v) in totals.iter_mut().zip(sums) {
            *total = S::sum(v);
        }
        totals
    }
}

/// Logits of a vector; lanes past the end of the row are so low that their probability is zero.
///
/// SAFETY: the instruction set was detected.
#[inline(always)]
unsafe fn load_logs<S: Simd>(z: &[f32], log_sum: f32) -> S::V {
    // SAFETY: a short vector goes through sixteen lanes.
    unsafe {
        if z.len() == LANES {
            return load::<S>(z);
        }
        let mut lanes = [log_sum - 1e4; LANES];
        lanes[..z.len()].copy_from_slice(z);
        S::load(lanes.as_ptr())
    }
}

/// Contribution to the loss, and h = q dL/dq up to a multiple of q.
///
/// SAFETY: the instruction set was detected.
#[inline(always)]
unsafe fn terms<S: Simd>(kind: Kind, [p, q]: [S::V; 2], [lp, lq]: [S::V; 2]) -> (S::V, S::V) {
    // SAFETY: forwarded.
    unsafe {
        match kind {
            Kind::Forward => (S::mul(p, S::sub(lp, lq)), S::sub(S::splat(0.0), p)),
            Kind::Reverse => {
                let term = S::mul(q, S::sub(lq, lp));
                (term, term)
            }
            Kind::Mixed(beta) => {
                let (_, lm) = mix::<S>(beta, p, q);
                let h = S::mul(S::splat(1.0 - beta), S::mul(q, S::sub(lq, lm)));
                (S::fma(S::splat(beta), S::mul(p, S::sub(lp, lm)), h), h)
            }
            Kind::SkewedForward(alpha) => {
                let (m, lm) = mix::<S>(alpha, p, q);
                let h = S::mul(S::splat(alpha - 1.0), S::div(S::mul(p, q), m));
                (S::mul(p, S::sub(lp, lm)), h)
            }
            Kind::SkewedReverse(alpha) => {
                let (m, lm) = mix::<S>(alpha, q, p);
                let term = S::mul(q, S::sub(lq, lm));
                (term, S::sub(term, S::mul(S::splat(alpha), S::div(S::mul(q, q), m))))
            }
        }
    }
}

/// `a x + (1 - a) y` and its logarithm. (A function, because vector code in a closure is not compiled for the vector
/// units.)
///
/// SAFETY: the instruction set was detected.
#[inline(always)]
unsafe fn mix<S: Simd>(a: f32, x: S::V, y: S::V) -> (S::V, S::V) {
    // SAFETY: forwarded.
    unsafe {
        let m = S::fma(S::splat(a), x, S::mul(S::splat(1.0 - a), y));
        // Both may underflow to zero; then their terms are zero whatever the logarithm. A NaN must stay one, so `m` is
        // the operand that `max` returns then.
        let m = S::max(S::splat(f32::MIN_POSITIVE), m);
        (m, S::ln(m))
    }
}

vectorized! {
    /// `q <- h - q * total`.
    fn combine(q: &mut [f32], h: &[f32], total: f32) = combine_body
}

#[inline(always)]
fn combine_body<S: Simd>(q: &mut [f32], h: &[f32], total: f32) {
    for (q, h) in q.chunks_mut(LANES).zip(h.chunks(LANES)) {
        // SAFETY: the instruction set was detected.
        unsafe { store::<S>(q, S::fma(S::splat(-total), load::<S>(q), load::<S>(h))) };
    }
}

/// The divergence of every row as a burn expression, `[T, 1]`, from log-probabilities `[T, V]`.
pub(super) fn reference_divergence(kind: Divergence, lq: burn::Tensor<2>, lp: burn::Tensor<2>) -> burn::Tensor<2> {
    let (q, p) = (lq.clone().exp(), lp.clone().exp());
    let mix = |a: f64, x: &burn::Tensor<2>, y: &burn::Tensor<2>| {
        (x.clone().mul_scalar(a) + y.clone().mul_scalar(1.0 - a)).clamp_min(f32::MIN_POSITIVE).log()
    };
    let forward = || p.clone() * (lp.clone() - lq.clone());
    let reverse = || q.clone() * (lq.clone() - lp.clone());
    let terms = match kind {
        Divergence::Jsd { beta: 0.0 } => forward(),
        Divergence::Jsd { beta: 1.0 } => reverse(),
        Divergence::Jsd { beta } => {
            let lm = mix(beta, &p, &q);
            (p.clone() * (lp.clone() - lm.clone())).mul_scalar(beta)
                + (q.clone() * (lq.clone() - lm)).mul_scalar(1.0 - beta)
        }
        Divergence::SkewedForward { alpha } => p.clone() * (lp.clone() - mix(alpha, &p, &q)),
        Divergence::SkewedReverse { alpha } => q.clone() * (lq.clone() - mix(alpha, &q, &p)),
        Divergence::TopK { k, beta } => return reference_top_k(k, beta, lq, lp),
    };
    terms.sum_dim(1)
}

/// Support mask `[T, V]` in the expression, then the JSD on it and on the tail bucket.
fn reference_top_k(k: usize, beta: f64, lq: burn::Tensor<2>, lp: burn::Tensor<2>) -> burn::Tensor<2> {
    let [t, v] = lq.dims();
    let rows = |x: &burn::Tensor<2>| crate::reference::download(x.clone().detach().without_autodiff());
    let (student, teacher) = (rows(&lq), rows(&lp));
    let mut mask = vec![0.0f32; t * v];
    for row in 0..t {
        let at = row * v..(row + 1) * v;
        for token in (Divergence::TopK { k, beta }).support(&student[at.clone()], &teacher[at.clone()], k) {
            mask[row * v + token] = 1.0;
        }
    }
    let whole = mask.iter().all(|&m| m == 1.0);
    let mask = crate::reference::upload(mask, [t, v]);
    let tail = |l: &burn::Tensor<2>| {
        let inside = (l.clone().exp() * mask.clone()).sum_dim(1);
        inside.mul_scalar(-1.0).add_scalar(1.0).clamp_min(1e-7).log()
    };
    // Outside the support both logs become equal and tiny, so that their terms vanish.
    let keep = |l: burn::Tensor<2>| l * mask.clone() + mask.clone().sub_scalar(1.0).mul_scalar(80.0);
    let inside = reference_divergence(Divergence::Jsd { beta }, keep(lq.clone()), keep(lp.clone()));
    if whole { inside } else { inside + reference_divergence(Divergence::Jsd { beta }, tail(&lq), tail(&lp)) }
}
