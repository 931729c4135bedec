//! Distributions: normal, Student's t, binomial.

use std::f64::consts::{PI, SQRT_2};

/// The quantile of the standard normal distribution, for 0 < p < 1.
#[must_use]
pub fn normal_quantile(p: f64) -> f64 {
    invert(p, normal_cdf)
}

/// The quantile of Student's distribution with `freedom` degrees, for 0 < p < 1.
#[must_use]
pub fn t_quantile(p: f64, freedom: f64) -> f64 {
    invert(p, |t| {
        let tail = t_two_sided(t, freedom) / 2.0;
        if t < 0.0 { tail } else { 1.0 - tail }
    })
}

/// The chance of a t as far from nought as this one, or farther.
#[must_use]
pub fn t_two_sided(t: f64, freedom: f64) -> f64 {
    if t.is_infinite() {
        return 0.0;
    }
    incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + t * t))
}

/// The chance, of `n` fair coins, of a count as far from half as `count`, or farther.
#[must_use]
pub fn binomial_two_sided(count: usize, n: usize) -> f64 {
    let few = count.min(n - count);
    let log_half = n as f64 * 0.5f64.ln();
    let term = |k: usize| {
        (ln_gamma(n as f64 + 1.0) - ln_gamma(k as f64 + 1.0) - ln_gamma((n - k) as f64 + 1.0) + log_half).exp()
    };
    (2.0 * (0..=few).map(term).sum::<f64>()).min(1.0)
}

/// By bisection: the functions are cheap, and this is exact to the last digits without a formula of its own.
fn invert(p: f64, cdf: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (-1.0, 1.0);
    while cdf(low) > p && low > -1e300 {
        low *= 2.0;
    }
    while cdf(high) < p && high < 1e300 {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = low + (high - low) / 2.0;
        if cdf(middle) < p { low = middle } else { high = middle }
    }
    low + (high - low) / 2.0
}

fn normal_cdf(z: f64) -> f64 {
    // erfc(x) = Q(1/2, x^2) for x >= 0.
    let x = z / SQRT_2;
    let upper = incomplete_gamma_upper(x * x) / 2.0;
    if z < 0.0 { upper } else { 1.0 - upper }
}

/// Q(1/2, x): a series below 1.5, a continued fraction above.
fn incomplete_gamma_upper(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let a = 0.5;
    let front = (-x + a * x.ln() - ln_gamma(a)).exp();
    if x < a + 1.0 {
        let (mut term, mut sum, mut n) = (1.0 / a, 1.0 / a, a);
        while term > sum * f64::EPSILON / 4.0 {
            n += 1.0;
            term *= x / n;
            sum += term;
        }
        return 1.0 - sum * front;
    }
    let terms = |i: f64| (-i * (i - a), x + 2.0 * i + 1.0 - a);
    front / continued(x + 1.0 - a, terms)
}

/// b0 + a1 / (b1 + a2 / (b2 + ...)) by Lentz's method; `terms(i)` is (ai, bi).
fn continued(b0: f64, terms: impl Fn(f64) -> (f64, f64)) -> f64 {
    const TINY: f64 = 1e-300;
    let mut value = if b0 == 0.0 { TINY } else { b0 };
    let (mut c, mut d) = (value, 0.0);
    for i in 1..10_000 {
        let (a, b) = terms(f64::from(i));
        d = b + a * d;
        d = 1.0 / if d == 0.0 { TINY } else { d };
        c = b + a / c;
        c = if c == 0.0 { TINY } else { c };
        let step = c * d;
        value *= step;
        if (step - 1.0).abs() < f64::EPSILON {
            break;
        }
    }
    value
}

/// The regularised incomplete beta function.
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    // The fraction is quick on one side of the mean only.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp() / a;
    let terms = |i: f64| {
        let m = (i / 2.0).floor();
        let top = if i % 2.0 == 0.0 {
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m))
        } else {
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))
        };
        (top, 1.0)
    };
    front / continued(1.0, terms)
}

/// The logarithm of the gamma function for x > 0: Stirling's series, after a step up where x is small.
fn ln_gamma(mut x: f64) -> f64 {
    let mut lowered = 0.0;
    while x < 15.0 {
        lowered += x.ln();
        x += 1.0;
    }
    let inverse = 1.0 / (x * x);
    let series = [1.0 / 12.0, -1.0 / 360.0, 1.0 / 1260.0, -1.0 / 1680.0, 1.0 / 1188.0, -691.0 / 360_360.0];
    let tail = series.iter().rev().fold(0.0, |sum, term| sum * inverse + term) / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * PI).ln() + tail - lowered
}
