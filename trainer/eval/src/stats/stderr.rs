//! Standard errors as lm-evaluation-harness 0.4.13 computes them.

use crate::random::PythonRandom;
use crate::stats::metric::{Aggregation, MetricValue};

/// Resamples of a bootstrap.
pub const BOOTSTRAP_ITERATIONS: usize = 100_000;

/// Resamples that share a seed.
const CHUNK: usize = 1000;

/// The standard error of an aggregated metric; `None` where the library has none, or of a single sample.
#[must_use]
pub fn stderr(aggregation: Aggregation, values: &[MetricValue]) -> Option<f64> {
    let numbers: Vec<f64> = values.iter().map(|value| value.number()).collect();
    match aggregation {
        _ if numbers.len() < 2 => None,
        Aggregation::Mean => Some(sample_stddev(&numbers) / (numbers.len() as f64).sqrt()),
        Aggregation::Perplexity => Some(bootstrap(&numbers, BOOTSTRAP_ITERATIONS, |mean| (-mean).exp())),
        Aggregation::WeightedPerplexity | Aggregation::BitsPerByte => None,
    }
}

/// The standard error of a mean over groups of these sizes, weighted by them.
#[must_use]
pub fn pooled_stderr(stderrs: &[f64], sizes: &[usize]) -> f64 {
    let total: usize = sizes.iter().sum();
    let parts = stderrs.iter().zip(sizes).map(|(stderr, &size)| (size as f64 - 1.0) * stderr.powi(2) * size as f64);
    let variance = parts.sum::<f64>() / (total as f64 - sizes.len() as f64);
    (variance / total as f64).sqrt()
}

fn sample_stddev(numbers: &[f64]) -> f64 {
    let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
    (numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (numbers.len() as f64 - 1.0)).sqrt()
}

/// Spread of `of(mean)` over resamples. Chunk `i` of them draws with seed `i`, so threads do not change the result.
fn bootstrap(numbers: &[f64], iterations: usize, of: fn(f64) -> f64) -> f64 {
    let chunk = |seed: usize| {
        let mut random = PythonRandom::new(seed as u64);
        let resample = |_| {
            let drawn = random.choices(numbers.len(), numbers.len());
            of(drawn.map(|i| numbers[i]).sum::<f64>() / numbers.len() as f64)
        };
        (0..CHUNK).map(resample).collect::<Vec<f64>>()
    };
    let seeds: Vec<usize> = (0..iterations / CHUNK).collect();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let shares = seeds.chunks(seeds.len().div_ceil(threads).max(1));
    let values: Vec<f64> = std::thread::scope(|scope| {
        let share = |seeds: &[usize]| seeds.iter().flat_map(|&seed| chunk(seed)).collect::<Vec<f64>>();
        let running: Vec<_> = shares.map(|seeds| scope.spawn(move || share(seeds))).collect();
        running.into_iter().flat_map(|thread| thread.join().expect("drawing does not panic")).collect()
    });
    sample_stddev(&values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(values: &[f64]) -> Vec<MetricValue> {
        values.iter().map(|&value| MetricValue::Number(value)).collect()
    }

    /// Values that lm-evaluation-harness 0.4.13 computes.
    #[test]
    fn they_are_the_librarys() {
        let right: Vec<f64> = (0..50).map(|i| f64::from(u8::from(i % 3 == 0))).collect();
        assert_eq!(stderr(Aggregation::Mean, &numbers(&right)), Some(MEAN));
        assert_eq!(pooled_stderr(&[0.01, 0.05, 0.02], &[100, 20, 57]), POOLED);
        let logprobs: Vec<f64> = (0..20).map(|i| -f64::from(i) * 0.37 - 0.1).collect();
        assert_eq!(bootstrap(&logprobs, 2000, |mean| (-mean).exp()), BOOTSTRAP);
        assert_eq!(stderr(Aggregation::BitsPerByte, &numbers(&right)), None);
        assert_eq!(stderr(Aggregation::Mean, &numbers(&[1.0])), None);
    }

    const MEAN: f64 = 0.067_672_681_613_297_19;
    const POOLED: f64 = 0.010_219_997_103_783_872;
    const BOOTSTRAP: f64 = 21.407_385_997_924_695;
}
