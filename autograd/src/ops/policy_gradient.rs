//! Policy gradient with importance ratios, from hidden states.

use super::head::{Head, HeadLoss, LogitChunk, RowLoss, Rows, check_targets, check_temperature, head_loss};
use super::log_prob::{reference_row, row_log_prob};
use crate::cuda::Arg;
use crate::{Result, Tape, Tensor, reference};

struct PolicyGradient {
    targets: Vec<u32>,
    sampled: Vec<f32>,
    advantages: Vec<f32>,
    temperature: f64,
}

/// `-sum_t weights[t] exp(ln q(targets[t]) - sampled_logprobs[t]) advantages[t]` as `[1, 1]`, and per row `loss`,
/// `logprob` and `entropy` at the temperature (nats).
///
/// With advantages `ln p_teacher - ln q_sampled` this is on-policy distillation by reverse KL on the sampled tokens.
///
/// # Errors
/// Shapes that do not fit, a target outside the vocabulary, a temperature that is not positive.
pub fn linear_policy_gradient<'a>(
    tape: &mut Tape,
    head: impl Into<Head<'a>>,
    targets: &[u32],
    [sampled_logprobs, advantages]: [&[f32]; 2],
    weights: &[f32],
    temperature: f64,
) -> Result<(Tensor, Rows)> {
    let loss = PolicyGradient {
        targets: targets.to_vec(),
        sampled: sampled_logprobs.to_vec(),
        advantages: advantages.to_vec(),
        temperature,
    };
    let Head { hidden, weight, ids } = head.into();
    head_loss(tape, HeadLoss::new(loss, weights, ids), &[hidden, weight])
}

impl RowLoss for PolicyGradient {
    const NAME: &'static str = "linear_policy_gradient";
    const VALUES: &'static [&'static str] = &["loss", "logprob", "entropy"];

    fn rows(&self) -> Option<usize> {
        let n = self.targets.len();
        // Lengths that differ fit no number of rows.
        Some(if self.sampled.len() == n && self.advantages.len() == n { n } else { usize::MAX })
    }

    fn check(&self, vocab: usize) -> Result<()> {
        check_temperature(Self::NAME, self.temperature)?;
        check_targets(Self::NAME, &self.targets, vocab)
    }

    fn row(&self, row: usize, student: &mut [f32], _: &mut [f32], gradient: bool, values: &mut [f32]) {
        let temperature = self.temperature as f32;
        let target = self.targets[row];
        let logprob = super::log_prob::log_prob(student, target, temperature);
        let loss = -(logprob - self.sampled[row]).exp() * self.advantages[row];
        let [logprob, entropy] = row_log_prob(student, target, temperature, gradient.then_some(loss));
        values.copy_from_slice(&[loss, logprob, entropy]);
    }

    fn launch(&self, chunk: &LogitChunk<'_>) -> Result<()> {
        let targets = chunk.upload(&self.targets)?;
        let [sampled, advantages] = [chunk.upload(&self.sampled)?, chunk.upload(&self.advantages)?];
        let rows = [Arg::from(&targets), Arg::from(&sampled), Arg::from(&advantages)];
        let temperature = [Arg::F32(self.temperature as f32)];
        let args: Vec<Arg> = chunk.logits().into_iter().chain(rows).chain(temperature).chain(chunk.results()).collect();
        chunk.launch("policy_gradient_rows", &args)
    }

    fn reference(&self, student: burn::Tensor<2>, _: Option<burn::Tensor<2>>) -> burn::Tensor<2> {
        let [logprob, entropy] = reference_row(student, &self.targets, self.temperature);
        let column = |values: &[f32]| reference::upload(values.to_vec(), [values.len(), 1]);
        let ratio = (logprob.clone() - column(&self.sampled)).exp();
        burn::Tensor::cat(vec![(ratio * column(&self.advantages)).neg(), logprob, entropy], 1)
    }
}
