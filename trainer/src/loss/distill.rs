//! A divergence between the teacher's and the student's whole next-token distributions.

use autograd::Tape;
use autograd::ops::{Distill, linear_distill};
use runtime::train::{Loss, LossBatch, LossValue, Needs, TrainError};

/// Generalized JSD (with both KL divergences as its ends), skewed KL, or top-k with a tail bucket.
#[derive(Debug, Clone, Copy)]
pub struct Distillation(pub Distill);

impl Loss for Distillation {
    fn needs(&self) -> Needs {
        Needs::Distribution { temperature: self.0.temperature }
    }

    fn compute(&self, tape: &mut Tape, batch: &LossBatch<'_>) -> runtime::Result<LossValue> {
        let teacher = batch.teacher()?.distribution().ok_or(TrainError::NoDistributions)?;
        let student = batch.student();
        let (loss, mut rows) = linear_distill(tape, student, teacher, batch.targets, batch.weights, &self.0)?;
        if let Some(kl) = rows.remove("reverse_kl") {
            rows.insert("teacher_kl", kl);
        }
        Ok(LossValue { loss, rows })
    }
}
