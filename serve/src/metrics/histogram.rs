//! Counts of observations by upper bound.

use std::sync::atomic::{AtomicU64, Ordering};

/// Observations since the start, from any thread.
pub(crate) struct Histogram {
    /// Rising; one more bucket takes what exceeds the last.
    bounds: &'static [f64],
    buckets: Vec<AtomicU64>,
    /// Bits of an `f64`.
    sum: AtomicU64,
}

/// What a histogram held at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Distribution {
    /// Upper bound and number of observations up to it; the last bound is infinite.
    pub(crate) cumulative: Vec<(f64, u64)>,
    pub(crate) sum: f64,
}

impl Distribution {
    pub(crate) fn count(&self) -> u64 {
        self.cumulative.last().map_or(0, |&(_, count)| count)
    }

    /// The value below which this part of the observations lies, as if they were spread evenly over each bucket; of those
    /// beyond the last bound it is that bound.
    pub(crate) fn quantile(&self, part: f64) -> Option<f64> {
        let wanted = part * self.count() as f64;
        let place = self.cumulative.iter().position(|&(_, count)| count > 0 && count as f64 >= wanted)?;
        let (lower, below) = if place == 0 { (0.0, 0) } else { self.cumulative[place - 1] };
        let (upper, count) = self.cumulative[place];
        if upper.is_infinite() {
            return Some(lower);
        }
        Some(lower + (upper - lower) * (wanted - below as f64) / (count - below) as f64)
    }

    pub(crate) fn mean(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.sum / self.count() as f64)
    }
}

impl Histogram {
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, sum: AtomicU64::new(0f64.to_bits()) }
    }

    pub(crate) fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // The update function never refuses.
        let _added = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    pub(crate) fn read(&self) -> Distribution {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let mut total = 0;
        let cumulative = bounds.zip(&self.buckets).map(|(bound, bucket)| {
            total += bucket.load(Ordering::Relaxed);
            (bound, total)
        });
        Distribution { cumulative: cumulative.collect(), sum: f64::from_bits(self.sum.load(Ordering::Relaxed)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 2.0, 7.0] {
            histogram.observe(value);
        }
        let read = histogram.read();
        assert_eq!(read.cumulative, [(1.0, 2), (2.0, 4), (f64::INFINITY, 5)]);
        assert_eq!((read.sum, read.count(), read.mean()), (12.0, 5, Some(2.4)));
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let histogram = Histogram::new(&[1.0, 2.0, 4.0]);
        assert_eq!(histogram.read().quantile(0.5), None);
        for value in [1.5, 1.6, 3.0, 3.5] {
            histogram.observe(value);
        }
        let read = histogram.read();
        let quantiles = [0.25, 0.5, 0.75, 1.0].map(|part| read.quantile(part).expect("some"));
        assert_eq!(quantiles, [1.5, 2.0, 3.0, 4.0]);
        histogram.observe(100.0);
        assert_eq!(histogram.read().quantile(0.99), Some(4.0));
    }
}
