//! Distillation from hidden states.

use super::divergence::{Divergence, portable_divergence};
use super::head::{HeadLoss, RowLoss, Rows, check_temperature, head_loss};
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
/// `teacher_entropy` (nats, at the temperature) and `agreement` (1 when both prefer the same token).
///
/// Hidden states are `[N, H]` and may differ in width; the heads share one vocabulary. The teacher is a constant.
///
/// # Errors
/// Shapes that do not fit, constants outside their range.
pub fn linear_distill(
    tape: &mut Tape,
    [hidden, head]: [&Tensor; 2],
    [teacher_hidden, teacher_head]: [&Tensor; 2],
    weights: &[f32],
    distill: &Distill,
) -> Result<(Tensor, Rows)> {
    let op = HeadLoss { loss: *distill, weights: weights.to_vec() };
    head_loss(tape, op, &[hidden, head, teacher_hidden, teacher_head])
}

impl RowLoss for Distill {
    const NAME: &'static str = "linear_distill";
    const VALUES: &'static [&'static str] =
        &["loss", "forward_kl", "reverse_kl", "entropy", "teacher_entropy", "agreement"];

    fn rows(&self) -> Option<usize> {
        None
    }

    fn check(&self, vocab: usize) -> Result<()> {
        check_temperature(Self::NAME, self.temperature)?;
        self.divergence.check(vocab)
    }

    fn row(&self, _: usize, student: &mut [f32], teacher: &mut [f32], gradient: bool, values: &mut [f32]) {
        let t = self.divergence.row(student, teacher, self.temperature as f32, gradient);
        values.copy_from_slice(&[t.loss, t.forward_kl, t.reverse_kl, t.entropy, t.teacher_entropy, t.agreement]);
    }

    fn portable(&self, student: burn::Tensor<2>, teacher: Option<burn::Tensor<2>>) -> burn::Tensor<2> {
        use burn::tensor::activation::log_softmax;
        let teacher = teacher.expect("distillation has four inputs").detach();
        let equal = student.clone().argmax(1).equal(teacher.clone().argmax(1)).float();
        let lq = log_softmax(student.div_scalar(self.temperature), 1);
        let lp = log_softmax(teacher.div_scalar(self.temperature), 1);
        let kl = |a: &burn::Tensor<2>, b: &burn::Tensor<2>| (a.clone().exp() * (a.clone() - b.clone())).sum_dim(1);
        let entropy = |l: &burn::Tensor<2>| (l.clone().exp() * l.clone()).sum_dim(1).neg();
        let loss = portable_divergence(self.divergence, lq.clone(), lp.clone());
        burn::Tensor::cat(vec![loss, kl(&lp, &lq), kl(&lq, &lp), entropy(&lq), entropy(&lp), equal], 1)
    }
}
