//! A divergence between the teacher's and the student's whole next-token distributions.

use autograd::Tape;
use autograd::ops::{Distill, linear_distill};
use runtime::Error;
use runtime::train::{Loss, LossBatch, LossValue, Needs};

/// Generalized JSD (with both KL divergences as its ends), skewed KL, or top-k with a tail bucket.
#[derive(Debug, Clone, Copy)]
pub struct Distillation(pub Distill);

impl Loss for Distillation {
    fn needs(&self) -> Needs {
        Needs::Distribution { temperature: self.0.temperature }
    }

    fn compute(&self, tape: &mut Tape, batch: &LossBatch<'_>) -> runtime::Result<LossValue> {
        let only_tokens = || Error::Request("the teacher gives no distributions, which this loss compares".to_owned());
        let teacher = batch.teacher()?.distribution().ok_or_else(only_tokens)?;
        let student = batch.student();
        let (loss, mut rows) = linear_distill(tape, student, teacher, batch.targets, batch.weights, &self.0)?;
        if let Some(kl) = rows.remove("reverse_kl") {
            rows.insert("teacher_kl", kl);
        }
        Ok(LossValue { loss, rows })
    }
}
