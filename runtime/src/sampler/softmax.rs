//! Softmax over a vocabulary: f32 exponentials, summed in f64. Written in lanes that compilers vectorize,
//! because these passes over 150,000 logits are most of what a token costs here.

use super::SamplingError;

const LANES: usize = 8;

/// `softmax(logits / temperature)`, known by its largest logit and its sum.
#[derive(Debug, Clone, Copy)]
pub(super) struct Softmax {
    max: f32,
    temperature: f32,
    /// Sum of the weights; the largest weight is 1.
    pub(super) sum: f64,
}

impl Softmax {
    /// Fills `weights` with the probabilities relative to the most likely token's. `max` is the largest
    /// logit, and finite; subtracting it first keeps every temperature from overflowing.
    pub(super) fn fill(weights: &mut Vec<f32>, logits: &[f32], max: f32, temperature: f32) -> Self {
        weights.clear();
        weights.extend(logits.iter().map(|&logit| exp_of_nonpositive((logit - max) / temperature)));
        Self { max, temperature, sum: sum(weights) }
    }

    /// Natural log of the probability of a token with this logit.
    pub(super) fn log_prob(&self, logit: f32) -> f32 {
        let scaled = (f64::from(logit) - f64::from(self.max)) / f64::from(self.temperature);
        (scaled - self.sum.ln()) as f32
    }
}

fn sum(weights: &[f32]) -> f64 {
    let (chunks, rest) = weights.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for (lane, &weight) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(weight);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&weight| f64::from(weight)).sum::<f64>()
}

/// `e^x` for `x <= 0`, to 2 units in the last place; 0 below the smallest normal number.
fn exp_of_nonpositive(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 as a sum whose first part times a small integer is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const SMALLEST: f32 = -87.0;
    let clamped = if x < SMALLEST { SMALLEST } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let r = clamped - power * LN_2_HIGH - power * LN_2_LOW;
    // Taylor series to r^7; |r| <= ln(2) / 2, so what is left out is below 6e-9.
    let mut series = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + factor;
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let value = series * f32::from_bits(exponent << 23);
    if x < SMALLEST { 0.0 } else { value }
}

/// The largest logit; NaN and +infinity are errors. -infinity if there is no other.
pub(super) fn checked_max(logits: &[f32]) -> Result<f32, SamplingError> {
    // NaN fails the comparison as well.
    if !logits.iter().fold(true, |sound, &logit| sound & (logit < f32::INFINITY)) {
        let bad = logits.iter().position(|&logit| logit.is_nan() || logit == f32::INFINITY);
        let token = bad.expect("one of them failed the comparison");
        return Err(SamplingError::NonFiniteLogit { token: token as u32, value: logits[token] });
    }
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, logit);
        }
    }
    Ok(lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_exact_to_two_units_in_the_last_place() {
        for step in 0..870_000 {
            let x = step as f32 * -1e-4;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp_of_nonpositive(x)) - expected).abs() / expected;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "e^{x}: relative error {error}");
        }
        assert_eq!(exp_of_nonpositive(0.0), 1.0);
        assert_eq!(exp_of_nonpositive(-1e4), 0.0);
        assert_eq!(exp_of_nonpositive(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn every_place_counts_in_sum_and_maximum() {
        for len in 1..40 {
            for place in 0..len {
                let mut values = vec![-1.0; len];
                values[place] = 2.5;
                assert_eq!(checked_max(&values), Ok(2.5));
                assert_eq!(sum(&values), 2.5 - (len as f64 - 1.0));
                values[place] = f32::NAN;
                assert!(checked_max(&values).is_err());
            }
        }
    }
}
