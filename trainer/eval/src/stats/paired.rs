//! Two runs on the same documents: the difference of their means, and whether it is more than noise.
//!
//! The documents are the pairs: what one question costs both runs cancels, so that a paired test sees smaller differences
//! than two intervals that do not overlap would.

use crate::random::PythonRandom;
use crate::stats::{Interval, binomial_two_sided, mean, mean_interval, mean_stderr, normal_quantile, t_two_sided};

/// The comparison of B with A.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// Documents.
    pub n: usize,
    /// Mean of A.
    pub a: f64,
    /// Mean of B.
    pub b: f64,
    /// Mean of B - A.
    pub difference: f64,
    /// Its standard error; not a number for one document.
    pub stderr: f64,
    /// Where the difference lies, at the level asked for; `None` of numbers without bounds that do not vary, which say
    /// nothing about it.
    pub interval: Option<Interval>,
    /// The chance of such a difference where there is none.
    pub p: f64,
    /// Which test `p` is of.
    pub test: Test,
    /// Documents right in B only, where all values are 0 or 1.
    pub gained: usize,
    /// Documents right in A only, where all values are 0 or 1.
    pub lost: usize,
}

/// A test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// McNemar's, exact: of the documents that changed sides, half would have changed to each.
    McNemar,
    /// Student's, of the differences.
    PairedT,
}

impl Test {
    /// Its name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::McNemar => "McNemar, exact",
            Self::PairedT => "paired t",
        }
    }
}

/// Compares the values of the same documents, in the same order. Nothing without documents or where the lengths differ.
#[must_use]
pub fn compare(a: &[f64], b: &[f64], level: f64) -> Option<Comparison> {
    if a.is_empty() || a.len() != b.len() {
        return None;
    }
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let binary = a.iter().chain(b).all(|value| *value == 0.0 || *value == 1.0);
    let count = |sign: f64| differences.iter().filter(|difference| **difference == sign).count();
    let (gained, lost) = if binary { (count(1.0), count(-1.0)) } else { (0, 0) };
    let stderr = mean_stderr(&differences);
    let (p, test) = if binary {
        (binomial_two_sided(gained, gained + lost), Test::McNemar)
    } else {
        (paired_t(&differences), Test::PairedT)
    };
    let bounded = a.iter().chain(b).all(|value| (0.0..=1.0).contains(value));
    let difference = mean(&differences);
    let interval = if bounded {
        Some(bounded_interval(&differences, p, level))
    } else {
        (stderr > 0.0).then(|| mean_interval(&differences, level))
    };
    Some(Comparison { n: a.len(), a: mean(a), b: mean(b), difference, stderr, interval, p, test, gained, lost })
}

impl Comparison {
    /// Whether chance explains the difference: the interval has 0, or there is none.
    #[must_use]
    pub fn within_noise(&self) -> bool {
        self.interval.is_none_or(|interval| interval.low <= 0.0 && interval.high >= 0.0)
    }
}

/// Where the mean difference of scores between 0 and 1 lies. Agresti and Min's adjustment for pairs (Statistics in Medicine
/// 2005, 24:729): half a pair is added to each of the four outcomes right and wrong, so that few documents, or documents
/// that agree, leave doubt; within -1 and 1. It has 0 wherever the test, whose chance is `p`, does not reject 0.
fn bounded_interval(differences: &[f64], p: f64, level: f64) -> Interval {
    let n = differences.len() as f64 + 2.0;
    let mean = differences.iter().sum::<f64>() / n;
    let squares = differences.iter().map(|difference| difference * difference).sum::<f64>() + 1.0;
    let half = normal_quantile(0.5 + level / 2.0) * ((squares / n - mean * mean) / n).sqrt();
    let (low, high) = ((mean - half).max(-1.0), (mean + half).min(1.0));
    let rejected = p <= 1.0 - level;
    if rejected { Interval { low, high } } else { Interval { low: low.min(0.0), high: high.max(0.0) } }
}

/// Of the differences; 1 where all are nought, not a number for one document.
fn paired_t(differences: &[f64]) -> f64 {
    if differences.iter().all(|difference| *difference == 0.0) {
        return 1.0;
    }
    t_two_sided(mean(differences) / mean_stderr(differences), (differences.len() - 1) as f64)
}

/// Where the mean of the differences lies, by resampling documents: for values far from normal. Percentiles, with the
/// nearest rank.
#[must_use]
pub fn bootstrap_interval(differences: &[f64], level: f64, resamples: usize, seed: u64) -> Interval {
    let n = differences.len();
    let mut random = PythonRandom::new(seed);
    let mut means: Vec<f64> =
        (0..resamples.max(1)).map(|_| random.choices(n, n).map(|at| differences[at]).sum::<f64>() / n as f64).collect();
    means.sort_by(f64::total_cmp);
    let at = |p: f64| means[((p * means.len() as f64) as usize).min(means.len() - 1)];
    Interval { low: at((1.0 - level) / 2.0), high: at(0.5 + level / 2.0) }
}
