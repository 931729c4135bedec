//! What is measured on held-out completions. It is computed like a loss, without a gradient.

use autograd::Tape;
use autograd::ops::{Distill, Divergence, linear_distill, linear_log_prob};
use runtime::train::{Loss, LossBatch, LossValue};

/// Both KL divergences, agreement of the most likely token, and both models' log-probabilities, all at temperature 1.
#[derive(Debug, Clone, Copy)]
pub struct HeldOut;

impl Loss for HeldOut {
    fn needs_teacher(&self) -> bool {
        true
    }

    fn compute(&self, tape: &mut Tape, batch: &LossBatch<'_>) -> runtime::Result<LossValue> {
        let (hidden, head) = batch.teacher.expect("the runtime runs the teacher that a loss needs");
        let student = [batch.student_hidden, batch.student_head];
        let reverse = Distill { divergence: Divergence::Jsd { beta: 1.0 }, temperature: 1.0 };
        let (loss, mut rows) = linear_distill(tape, student, [hidden, head], batch.targets, batch.weights, &reverse)?;
        if let Some(logprobs) = rows.remove("plain_logprob") {
            rows.insert("student_logprob", logprobs);
        }
        rows.insert("teacher_logprob", linear_log_prob([hidden, head], batch.targets, 1.0)?);
        Ok(LossValue { loss, rows })
    }
}
