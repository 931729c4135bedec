//! Learning rate over time.

/// What happens to the rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ScheduleShape {
    /// It stays.
    Constant,
    /// It falls in a straight line.
    Linear {
        /// Rate at the end over the rate at the top.
        min_ratio: f64,
    },
    /// It falls along half a cosine.
    Cosine {
        /// Rate at the end over the rate at the top.
        min_ratio: f64,
    },
}

/// A linear warm-up, then a shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The rate at the top.
    pub lr: f64,
    /// After the warm-up.
    pub shape: ScheduleShape,
    /// Steps of the warm-up.
    pub warmup_steps: u64,
}

impl Schedule {
    /// The rate of step `step` (from 0) of `total`.
    ///
    /// Step `w` of the warm-up has `(w + 1) / warmup_steps` of the rate, so no step is lost to a rate of 0. The shape
    /// then runs from 1 at its first step towards `min_ratio`, which step `total` would have.
    #[must_use]
    pub fn at(&self, step: u64, total: u64) -> f64 {
        if step < self.warmup_steps {
            return self.lr * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let span = total.saturating_sub(self.warmup_steps).max(1);
        let done = ((step - self.warmup_steps) as f64 / span as f64).min(1.0);
        let (left, min_ratio) = match self.shape {
            ScheduleShape::Constant => return self.lr,
            ScheduleShape::Linear { min_ratio } => (1.0 - done, min_ratio),
            ScheduleShape::Cosine { min_ratio } => (0.5 * (1.0 + (std::f64::consts::PI * done).cos()), min_ratio),
        };
        self.lr * (min_ratio + (1.0 - min_ratio) * left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(shape: ScheduleShape, steps: &[u64]) -> Vec<f64> {
        let schedule = Schedule { lr: 2.0, shape, warmup_steps: 4 };
        steps.iter().map(|&step| schedule.at(step, 14)).collect()
    }

    #[test]
    fn warm_up_rises_to_the_rate() {
        assert_eq!(rates(ScheduleShape::Constant, &[0, 1, 3, 4, 13]), [0.5, 1.0, 2.0, 2.0, 2.0]);
    }

    #[test]
    fn linear_falls_in_equal_steps() {
        let got = rates(ScheduleShape::Linear { min_ratio: 0.5 }, &[4, 9, 14]);
        assert!(got.iter().zip([2.0, 1.5, 1.0]).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?}");
    }

    #[test]
    fn cosine_is_half_way_at_half_time() {
        let got = rates(ScheduleShape::Cosine { min_ratio: 0.0 }, &[4, 9, 14]);
        assert!(got.iter().zip([2.0, 1.0, 0.0]).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?}");
    }
}
