//! How often a model is right when it is so sure of its answer.

use crate::run::sample::Sample;
use crate::task::question::EvalResponse;

/// Bins of confidence between 0 and 1.
const BINS: usize = 10;

/// Answers of about one confidence.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Bin {
    pub(super) count: usize,
    /// Mean confidence.
    pub(super) confidence: f64,
    /// Share of right answers.
    pub(super) accuracy: f64,
}

/// Bins that are not empty, by rising confidence.
pub(super) fn bins(answers: &[(f64, bool)]) -> Vec<Bin> {
    let mut bins = [Bin::default(); BINS];
    for &(confidence, right) in answers {
        let bin = &mut bins[((confidence * BINS as f64) as usize).min(BINS - 1)];
        bin.count += 1;
        bin.confidence += confidence;
        bin.accuracy += f64::from(u8::from(right));
    }
    let mean = |bin: Bin| {
        let count = bin.count as f64;
        Bin { confidence: bin.confidence / count, accuracy: bin.accuracy / count, ..bin }
    };
    bins.into_iter().filter(|bin| bin.count > 0).map(mean).collect()
}

/// Expected calibration error: the mean distance of confidence and accuracy, weighted by answers
/// (<https://arxiv.org/abs/1706.04599>).
pub(super) fn error(bins: &[Bin]) -> f64 {
    let total: usize = bins.iter().map(|bin| bin.count).sum();
    bins.iter().map(|bin| bin.count as f64 * (bin.confidence - bin.accuracy).abs()).sum::<f64>() / total as f64
}

/// Confidence and verdict of every answer that has both: of a choice the probability of the likeliest among the choices, of a
/// text the geometric mean of its tokens' probabilities.
pub(super) fn answers(samples: &[Sample]) -> Vec<(f64, bool)> {
    samples.iter().filter_map(|sample| Some((confidence(sample)?, sample.correct?))).collect()
}

fn confidence(sample: &Sample) -> Option<f64> {
    match &sample.responses[..] {
        [EvalResponse::Text { logprobs, .. }, ..] if !logprobs.is_empty() => {
            Some((logprobs.iter().sum::<f64>() / logprobs.len() as f64).exp())
        }
        [EvalResponse::LogLikelihood { .. }, _, ..] => {
            let logprobs: Vec<f64> = sample.responses.iter().map(EvalResponse::logprob).collect();
            let best = logprobs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            best.is_finite().then(|| 1.0 / logprobs.iter().map(|logprob| (logprob - best).exp()).sum::<f64>())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_that_of_a_hand_calculation() {
        // Two answers at 0.85 and 0.95 fall into bins of their own; three at 0.32 share one.
        let answers = [(0.85, true), (0.95, false), (0.32, true), (0.32, false), (0.32, false), (1.0, true)];
        let bins = bins(&answers);
        let counts: Vec<usize> = bins.iter().map(|bin| bin.count).collect();
        assert_eq!(counts, [3, 1, 2]);
        assert!((bins[0].accuracy - 1.0 / 3.0).abs() < 1e-12 && (bins[0].confidence - 0.32).abs() < 1e-12);
        let by_hand = (3.0 * (1.0 / 3.0 - 0.32) + (1.0 - 0.85) + 2.0 * (0.975 - 0.5)) / 6.0;
        assert!((error(&bins) - by_hand).abs() < 1e-12);
    }
}
