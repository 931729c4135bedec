//! What is measured on held-out completions. It is computed like a loss, without a gradient.

use autograd::Tape;
use autograd::ops::{Distill, Divergence, linear_cross_entropy, linear_distill};
use runtime::train::{Loss, LossBatch, LossValue, Needs};

use super::encoding::{Tag, encode};

/// Both KL divergences, agreement of the most likely token, and both models' log-probabilities, all at temperature 1; the last
/// alone where the teacher returns no more.
#[derive(Debug, Clone, Copy)]
pub struct HeldOut;

impl Loss for HeldOut {
    fn needs(&self) -> Needs {
        Needs::Distribution { temperature: 1.0 }
    }

    fn encode(&self) -> Vec<u8> {
        encode(Tag::HeldOut, &[])
    }

    fn compute(&self, tape: &mut Tape, batch: &LossBatch<'_>) -> runtime::Result<LossValue> {
        let (teacher, student) = (batch.teacher()?, batch.student());
        let reverse = Distill { divergence: Divergence::Jsd { beta: 1.0 }, temperature: 1.0 };
        let (loss, mut rows) = match teacher.distribution() {
            Some(teacher) => linear_distill(tape, student, teacher, batch.targets, batch.weights, &reverse)?,
            // Of a teacher's opinion of the tokens alone, divergences are not known.
            None => {
                let (loss, mut rows) = linear_cross_entropy(tape, student, batch.targets, batch.weights)?;
                rows.remove("loss");
                (loss, rows)
            }
        };
        if let Some(logprobs) = rows.remove("plain_logprob").or(rows.remove("logprob")) {
            rows.insert("student_logprob", logprobs);
        }
        rows.insert("teacher_logprob", teacher.log_probs(batch.targets, 1.0)?);
        Ok(LossValue { loss, rows })
    }
}
