//! Cross-entropy on given completions.

use autograd::Tape;
use autograd::ops::linear_cross_entropy;
use runtime::train::{Loss, LossBatch, LossValue, Needs};

use super::encoding::{Tag, encode};

/// `-ln q(token)`.
#[derive(Debug, Clone, Copy)]
pub struct CrossEntropy;

impl Loss for CrossEntropy {
    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn encode(&self) -> Vec<u8> {
        encode(Tag::CrossEntropy, &[])
    }

    fn compute(&self, tape: &mut Tape, batch: &LossBatch<'_>) -> runtime::Result<LossValue> {
        let student = batch.student();
        let (loss, rows) = linear_cross_entropy(tape, student, batch.targets, batch.weights)?;
        Ok(LossValue { loss, rows })
    }
}
