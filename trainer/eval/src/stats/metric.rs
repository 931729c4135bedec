//! Metrics of a sample and how those of all samples become one number.

use serde::{Deserialize, Serialize};

/// A metric's value on one sample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MetricValue {
    /// A number, such as 1 for right and 0 for wrong.
    Number(f64),
    /// A log-probability and the words or bytes that it is over.
    Weighted(f64, f64),
}

impl MetricValue {
    /// The number; of a weighted one the quotient.
    #[must_use]
    pub fn number(self) -> f64 {
        match self {
            Self::Number(number) => number,
            Self::Weighted(sum, weight) => sum / weight,
        }
    }
}

/// How the values of all samples become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregation {
    /// Their mean.
    Mean,
    /// exp(-mean).
    Perplexity,
    /// exp(-sum / sum of weights).
    WeightedPerplexity,
    /// -sum / sum of weights, in bits.
    BitsPerByte,
}

impl Aggregation {
    /// lm-evaluation-harness' name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Perplexity => "perplexity",
            Self::WeightedPerplexity => "weighted_perplexity",
            Self::BitsPerByte => "bits_per_byte",
        }
    }

    /// The number for these samples, which are at least one. Sums go from the first to the last, as in Python.
    #[must_use]
    pub fn of(self, values: &[MetricValue]) -> f64 {
        let mean = || values.iter().map(|value| value.number()).sum::<f64>() / values.len() as f64;
        match self {
            Self::Mean => mean(),
            Self::Perplexity => (-mean()).exp(),
            Self::WeightedPerplexity => (-weighted_mean(values)).exp(),
            Self::BitsPerByte => -weighted_mean(values) / std::f64::consts::LN_2,
        }
    }
}

fn weighted_mean(values: &[MetricValue]) -> f64 {
    let pairs = values.iter().map(|value| match *value {
        MetricValue::Weighted(sum, weight) => (sum, weight),
        MetricValue::Number(number) => (number, 1.0),
    });
    let (sums, weights): (Vec<f64>, Vec<f64>) = pairs.unzip();
    sums.iter().sum::<f64>() / weights.iter().sum::<f64>()
}

/// A metric of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// Its name, such as `exact_match`.
    pub name: String,
    /// The filter that it looks through, such as `strict-match`; `none` where there is one only.
    pub filter: String,
    /// How it is aggregated.
    pub aggregation: Aggregation,
    /// Whether more is better.
    pub higher_is_better: bool,
}

impl Metric {
    /// A mean that should be high, without a filter.
    #[must_use]
    pub fn mean(name: &str) -> Self {
        Self::filtered(name, "none")
    }

    /// A mean that should be high, through a filter.
    #[must_use]
    pub fn filtered(name: &str, filter: &str) -> Self {
        Self {
            name: name.to_owned(),
            filter: filter.to_owned(),
            aggregation: Aggregation::Mean,
            higher_is_better: true,
        }
    }

    /// A metric that should be low, without a filter.
    #[must_use]
    pub fn low(name: &str, aggregation: Aggregation) -> Self {
        Self { aggregation, higher_is_better: false, ..Self::mean(name) }
    }

    /// `exact_match,strict-match`: its key in samples and results.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{},{}", self.name, self.filter)
    }

    /// `exact_match_stderr,strict-match`.
    #[must_use]
    pub fn stderr_key(&self) -> String {
        format!("{}_stderr,{}", self.name, self.filter)
    }
}
