//! Log-probabilities of given tokens, from hidden states.

use super::head::{Head, HeadLoss, LogitChunk, RowLoss, check_targets, check_temperature, head_loss};
use crate::cpu::rows::{entropy_and_exp, normalizer, scale_in_place};
use crate::cuda::Arg;
use crate::{Result, Tape, reference};

/// The sum of `ln p(targets[t])`, whose rows are the log-probabilities themselves.
struct TokenLogProbs {
    targets: Vec<u32>,
    temperature: f64,
}

/// `ln softmax(z / temperature)[targets[t]]` for every row, nats; no gradient.
///
/// # Errors
/// Shapes that do not fit, a target outside the vocabulary, a temperature that is not positive.
pub fn linear_log_prob<'a>(head: impl Into<Head<'a>>, targets: &[u32], temperature: f64) -> Result<Vec<f32>> {
    let Head { hidden, weight, ids } = head.into();
    let loss = TokenLogProbs { targets: targets.to_vec(), temperature };
    let op = HeadLoss::new(loss, &vec![1.0; targets.len()], ids);
    let (_, mut rows) = head_loss(&mut Tape::off(), op, &[hidden, weight])?;
    Ok(rows.remove("logprob").unwrap_or_default())
}

impl RowLoss for TokenLogProbs {
    const NAME: &'static str = "linear_log_prob";
    const VALUES: &'static [&'static str] = &["logprob"];

    fn rows(&self) -> Option<usize> {
        Some(self.targets.len())
    }

    fn check(&self, vocab: usize) -> Result<()> {
        check_temperature(Self::NAME, self.temperature)?;
        check_targets(Self::NAME, &self.targets, vocab)
    }

    fn row(&self, row: usize, student: &mut [f32], _: &mut [f32], gradient: bool, values: &mut [f32]) {
        assert!(!gradient, "log-probabilities are only evaluated");
        values[0] = log_prob(student, self.targets[row], self.temperature as f32);
    }

    fn launch(&self, chunk: &LogitChunk<'_>) -> Result<()> {
        let targets = chunk.upload(&self.targets)?;
        let rest = [Arg::from(&targets), Arg::F32(self.temperature as f32), chunk.values()];
        let args: Vec<Arg> = chunk.logits().into_iter().chain(rest).collect();
        chunk.launch("log_prob_rows", &args)
    }

    fn reference(&self, student: burn::Tensor<2>, _: Option<burn::Tensor<2>>) -> burn::Tensor<2> {
        let [logprob, _] = reference_row(student, &self.targets, self.temperature);
        logprob
    }
}

/// `ln softmax(z / temperature)[target]`.
pub(super) fn log_prob(z: &mut [f32], target: u32, temperature: f32) -> f32 {
    if temperature == 1.0 {
        return z[target as usize] - normalizer(z).log_sum;
    }
    let mut scaled = z.to_vec();
    scale_in_place(&mut scaled, 1.0 / temperature);
    scaled[target as usize] - normalizer(&scaled).log_sum
}

/// `[ln p(target), entropy]` of a row of logits. With `factor`, the row becomes the gradient of `factor * ln p(target)`.
pub(super) fn row_log_prob(z: &mut [f32], target: u32, temperature: f32, factor: Option<f32>) -> [f32; 2] {
    if temperature != 1.0 {
        scale_in_place(z, 1.0 / temperature);
    }
    let log_sum = normalizer(z).log_sum;
    let logprob = z[target as usize] - log_sum;
    let entropy = entropy_and_exp(z, log_sum);
    if let Some(factor) = factor {
        z[target as usize] -= 1.0;
        scale_in_place(z, -factor / temperature);
    }
    [logprob, entropy]
}

/// `[ln p(target), entropy]`, `[T, 1]` each, as burn expressions of logits `[T, V]`.
pub(super) fn reference_row(z: burn::Tensor<2>, targets: &[u32], temperature: f64) -> [burn::Tensor<2>; 2] {
    let logs = burn::tensor::activation::log_softmax(z.div_scalar(temperature), 1);
    let index = reference::indices(targets.iter().map(|&t| t as usize)).reshape([targets.len(), 1]);
    let entropy = (logs.clone().exp() * logs.clone()).sum_dim(1).neg();
    [logs.gather(1, index), entropy]
}
