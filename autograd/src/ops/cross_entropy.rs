//! Cross-entropy from hidden states.

use super::head::{Head, HeadLoss, LogitChunk, RowLoss, Rows, check_targets, head_loss};
use super::log_prob::{reference_row, row_log_prob};
use crate::cuda::Arg;
use crate::{Result, Tape, Tensor};

struct CrossEntropy {
    targets: Vec<u32>,
}

/// `-sum_t weights[t] ln p(targets[t])` as `[1, 1]`, and per row `loss`, `logprob`, `entropy` (nats).
///
/// # Errors
/// Shapes that do not fit, a target outside the vocabulary.
pub fn linear_cross_entropy<'a>(
    tape: &mut Tape,
    head: impl Into<Head<'a>>,
    targets: &[u32],
    weights: &[f32],
) -> Result<(Tensor, Rows)> {
    let Head { hidden, weight, ids } = head.into();
    let op = HeadLoss::new(CrossEntropy { targets: targets.to_vec() }, weights, ids);
    head_loss(tape, op, &[hidden, weight])
}

impl RowLoss for CrossEntropy {
    const NAME: &'static str = "linear_cross_entropy";
    const VALUES: &'static [&'static str] = &["loss", "logprob", "entropy"];

    fn rows(&self) -> Option<usize> {
        Some(self.targets.len())
    }

    fn check(&self, vocab: usize) -> Result<()> {
        check_targets(Self::NAME, &self.targets, vocab)
    }

    fn row(&self, row: usize, student: &mut [f32], _: &mut [f32], gradient: bool, values: &mut [f32]) {
        let [logprob, entropy] = row_log_prob(student, self.targets[row], 1.0, gradient.then_some(-1.0));
        values.copy_from_slice(&[-logprob, logprob, entropy]);
    }

    fn launch(&self, chunk: &LogitChunk<'_>) -> Result<()> {
        let targets = chunk.upload(&self.targets)?;
        let args: Vec<Arg> = chunk.logits().into_iter().chain([Arg::from(&targets)]).chain(chunk.results()).collect();
        chunk.launch("cross_entropy_rows", &args)
    }

    fn reference(&self, student: burn::Tensor<2>, _: Option<burn::Tensor<2>>) -> burn::Tensor<2> {
        let [logprob, entropy] = reference_row(student, &self.targets, 1.0);
        burn::Tensor::cat(vec![logprob.clone().neg(), logprob, entropy], 1)
    }
}
