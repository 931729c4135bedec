//! A divergence between the teacher's and the student's whole next-token distributions.

use autograd::Tape;
use autograd::ops::{Distill, Divergence, linear_distill};
use runtime::train::{Loss, LossBatch, LossValue, Needs, TrainError};

use super::encoding::{Tag, encode};

/// Generalized JSD (with both KL divergences as its ends), skewed KL, or top-k with a tail bucket.
#[derive(Debug, Clone, Copy)]
pub struct Distillation(pub Distill);

impl Loss for Distillation {
    fn needs(&self) -> Needs {
        Needs::Distribution { temperature: self.0.temperature }
    }

    fn encode(&self) -> Vec<u8> {
        let Distill { divergence, temperature } = self.0;
        match divergence {
            Divergence::Jsd { beta } => encode(Tag::Jsd, &[temperature, beta]),
            Divergence::SkewedForward { alpha } => encode(Tag::SkewedForward, &[temperature, alpha]),
            Divergence::SkewedReverse { alpha } => encode(Tag::SkewedReverse, &[temperature, alpha]),
            Divergence::TopK { k, beta } => encode(Tag::TopK, &[temperature, beta, k as f64]),
        }
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
