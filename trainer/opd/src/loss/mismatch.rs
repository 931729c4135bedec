//! How far the sampler's log-probabilities are from the trainer's on the same tokens.

use std::sync::Arc;

use autograd::Tape;
use autograd::ops::linear_log_prob;
use runtime::train::{Loss, LossBatch, LossValue, Needs};

use super::encoding::{Tag, encode};

/// Adds two rows to another loss on sampled tokens: `mismatch`, `ln q_sampler - ln q_trainer` at the sampling
/// temperature, whose mean estimates KL(sampler || trainer), and `mismatch_size`, its magnitude. Both are 0 when
/// sampler and trainer compute the same numbers.
pub struct Mismatch {
    inner: Arc<dyn Loss>,
    temperature: f64,
}

impl Mismatch {
    /// Watches `inner` on tokens that were sampled at `temperature`.
    #[must_use]
    pub fn new(inner: Arc<dyn Loss>, temperature: f64) -> Self {
        Self { inner, temperature }
    }
}

impl Loss for Mismatch {
    fn needs(&self) -> Needs {
        self.inner.needs()
    }

    fn encode(&self) -> Vec<u8> {
        [encode(Tag::Mismatch, &[self.temperature]), self.inner.encode()].concat()
    }

    fn compute(&self, tape: &mut Tape, batch: &LossBatch<'_>) -> runtime::Result<LossValue> {
        let mut value = self.inner.compute(tape, batch)?;
        // The policy gradient has them at the sampling temperature, a divergence at temperature 1.
        let plain = value.rows.remove("plain_logprob").filter(|_| self.temperature == 1.0);
        let trainer = match value.rows.remove("logprob").or(plain) {
            Some(logprobs) => logprobs,
            None => linear_log_prob(batch.student(), batch.targets, self.temperature)?,
        };
        let differences: Vec<f32> = batch.sampled_logprobs.iter().zip(trainer).map(|(s, t)| s - t).collect();
        value.rows.insert("mismatch_size", differences.iter().map(|difference| difference.abs()).collect());
        value.rows.insert("mismatch", differences);
        Ok(value)
    }
}
