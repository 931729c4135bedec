//! Uncertainty of scores.
//!
//! The standard errors of `results.json` are lm-evaluation-harness' (`stderr`). [`wilson`] is the interval that a score of right and wrong is reported with: unlike mean +- 2 stderr it stays within 0..1
//! and is not empty at 0 and 1; [`score_interval`] is that of other scores. [`mod@paired`] compares two runs on the same documents. Golden values are made by
//! `scripts/fixtures/make_stats.py` with scipy and statsmodels.

mod distribution;
pub(crate) mod metric;
pub mod paired;
pub mod stderr;

pub use distribution::{binomial_two_sided, normal_quantile, t_quantile, t_two_sided};

/// An interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// The mean; not a number without values.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard deviation of a sample, n - 1 below; not a number for fewer than two values.
#[must_use]
pub fn sample_stddev(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    if values.len() < 2 { f64::NAN } else { (squares / (values.len() - 1) as f64).sqrt() }
}

/// The standard error of the mean; not a number for fewer than two values.
#[must_use]
pub fn mean_stderr(values: &[f64]) -> f64 {
    sample_stddev(values) / (values.len() as f64).sqrt()
}

/// Wilson's interval for `right` of `n` (at least one) at a level such as 0.95.
#[must_use]
pub fn wilson(right: usize, n: usize, level: f64) -> Interval {
    let (p, n) = (right as f64 / n as f64, n as f64);
    let z = normal_quantile(0.5 + level / 2.0);
    let scale = 1.0 + z * z / n;
    let centre = (p + z * z / (2.0 * n)) / scale;
    let half = z / scale * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    // Rounding must not put the ends of 0 and n beyond them.
    let low = if p == 0.0 { 0.0 } else { centre - half };
    let high = if p == 1.0 { 1.0 } else { centre + half };
    Interval { low, high }
}

/// The interval of a mean of `n` scores between 0 and 1 by Agresti and Coull's adjustment (two scores of 0 and two of 1
/// are added), so that few scores, or equal ones, leave doubt; within 0 and 1.
#[must_use]
pub fn score_interval(mean: f64, stderr: f64, n: usize, level: f64) -> Interval {
    let n = n as f64;
    // From the standard error back to the sum of squares.
    let squares = n * mean * mean + (n - 1.0).max(0.0) * n * stderr * stderr;
    let (sum, squares, n) = (n * mean + 2.0, squares + 2.0, n + 4.0);
    let centre = sum / n;
    let half = normal_quantile(0.5 + level / 2.0) * ((squares / n - centre * centre).max(0.0) / n).sqrt();
    Interval { low: (centre - half).max(0.0).min(mean), high: (centre + half).min(1.0).max(mean) }
}

/// The interval of a perplexity, which is above 0: the standard error is one of its logarithm.
#[must_use]
pub fn perplexity_interval(perplexity: f64, stderr: f64, level: f64) -> Interval {
    let factor = (normal_quantile(0.5 + level / 2.0) * stderr / perplexity).exp();
    Interval { low: perplexity / factor, high: perplexity * factor }
}

/// Mean +- a quantile of Student's distribution times the standard error; infinite for fewer than two values.
#[must_use]
pub fn mean_interval(values: &[f64], level: f64) -> Interval {
    if values.len() < 2 {
        return Interval { low: f64::NEG_INFINITY, high: f64::INFINITY };
    }
    let half = t_quantile(0.5 + level / 2.0, (values.len() - 1) as f64) * mean_stderr(values);
    Interval { low: mean(values) - half, high: mean(values) + half }
}

/// The chance that one of `k` draws without replacement from `n` answers, of which `correct` are right, is right: the
/// unbiased estimator of pass@k. Nothing where there are fewer than `k` answers.
#[must_use]
pub fn pass_at_k(n: usize, correct: usize, k: usize) -> Option<f64> {
    if k > n || correct > n {
        return None;
    }
    let wrong = n - correct;
    // 1 - C(wrong, k) / C(n, k), multiplied out so that nothing overflows.
    let none_right: f64 = if wrong < k { 0.0 } else { (wrong + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product() };
    Some(1.0 - none_right)
}

#[cfg(test)]
mod tests;
