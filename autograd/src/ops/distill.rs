//! Distillation from hidden states.

use super::divergence::{Divergence, portable_divergence};
use super::head::{HeadLoss, LogitChunk, RowLoss, Rows, check_targets, check_temperature, head_loss};
use super::log_prob::{log_prob, portable_row};
use crate::cuda::Arg;
use crate::{Result, Tape, Tensor};

/// What is minimized between student and teacher.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distill {
    /// The divergence.
    pub divergence: Divergence,
    /// Both sides' logits are divided by it; there is no factor of its square.
    pub temperature: f64,
}

/// `sum_t weights[t] D(teacher_t, student_t)` as `[1, 1]`, and per row `loss`, `forward_kl`, `reverse_kl`, `entropy`,
/// `teacher_entropy` (nats, at the temperature), `agreement` (1 when both prefer the same token) and `plain_logprob`
/// (of `targets[t]` under the student at temperature 1, whatever the loss's temperature is).
///
/// Hidden states are `[N, H]` and may differ in width; the heads share one vocabulary. The teacher is a constant.
///
/// # Errors
/// Shapes that do not fit, constants outside their range.
pub fn linear_distill(
    tape: &mut Tape,
    [hidden, head]: [&Tensor; 2],
    [teacher_hidden, teacher_head]: [&Tensor; 2],
    targets: &[u32],
    weights: &[f32],
    distill: &Distill,
) -> Result<(Tensor, Rows)> {
    let op = HeadLoss { loss: Rowwise { distill: *distill, targets: targets.to_vec() }, weights: weights.to_vec() };
    head_loss(tape, op, &[hidden, head, teacher_hidden, teacher_head])
}

/// [`Distill`] with the token of every row.
struct Rowwise {
    distill: Distill,
    targets: Vec<u32>,
}

impl RowLoss for Rowwise {
    const NAME: &'static str = "linear_distill";
    const VALUES: &'static [&'static str] =
        &["loss", "forward_kl", "reverse_kl", "entropy", "teacher_entropy", "agreement", "plain_logprob"];

    fn rows(&self) -> Option<usize> {
        Some(self.targets.len())
    }

    fn check(&self, vocab: usize) -> Result<()> {
        check_temperature(Self::NAME, self.distill.temperature)?;
        check_targets(Self::NAME, &self.targets, vocab)?;
        self.distill.divergence.check(vocab)
    }

    fn row(&self, row: usize, student: &mut [f32], teacher: &mut [f32], gradient: bool, values: &mut [f32]) {
        let plain = log_prob(student, self.targets[row], 1.0);
        let Distill { divergence, temperature } = self.distill;
        let t = divergence.row(student, teacher, temperature as f32, gradient);
        values.copy_from_slice(&[t.loss, t.forward_kl, t.reverse_kl, t.entropy, t.teacher_entropy, t.agreement, plain]);
    }

    fn launch(&self, chunk: &LogitChunk<'_>) -> Result<()> {
        let targets = chunk.upload(&self.targets)?;
        let (kind, constant, top) = self.distill.divergence.code();
        let top_k = top.map(|k| Arg::I32(k as i32));
        let constants = [Arg::I32(kind), Arg::F32(constant)].into_iter().chain(top_k);
        let rest = [Arg::F32(self.distill.temperature as f32), Arg::from(&targets)];
        let args: Vec<Arg> = chunk.logits().into_iter().chain(constants).chain(rest).chain(chunk.results()).collect();
        chunk.launch(if top.is_some() { "distill_top_k_rows" } else { "distill_rows" }, &args)
    }

    fn portable(&self, student: burn::Tensor<2>, teacher: Option<burn::Tensor<2>>) -> burn::Tensor<2> {
        use burn::tensor::activation::log_softmax;
        let teacher = teacher.expect("distillation has four inputs").detach();
        let Distill { divergence, temperature } = self.distill;
        let [plain, _] = portable_row(student.clone(), &self.targets, 1.0);
        let equal = student.clone().argmax(1).equal(teacher.clone().argmax(1)).float();
        let lq = log_softmax(student.div_scalar(temperature), 1);
        let lp = log_softmax(teacher.div_scalar(temperature), 1);
        let kl = |a: &burn::Tensor<2>, b: &burn::Tensor<2>| (a.clone().exp() * (a.clone() - b.clone())).sum_dim(1);
        let entropy = |l: &burn::Tensor<2>| (l.clone().exp() * l.clone()).sum_dim(1).neg();
        let loss = portable_divergence(divergence, lq.clone(), lp.clone());
        burn::Tensor::cat(vec![loss, kl(&lp, &lq), kl(&lq, &lp), entropy(&lq), entropy(&lp), equal, plain], 1)
    }
}
