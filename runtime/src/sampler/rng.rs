//! Which random number samples a token.

/// Names one random number. There is no stream and no state: the same key gives the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RngKey {
    /// The user's seed.
    pub seed: u64,
    /// Which of the requests under that seed.
    pub request: u64,
    /// Position of the token that is sampled.
    pub position: u64,
}

impl RngKey {
    /// Uniform in `[0, 1)`, with 53 random bits.
    #[must_use]
    pub fn uniform(self) -> f64 {
        autograd::rng::uniform(self.seed, self.request, self.position)
    }
}
