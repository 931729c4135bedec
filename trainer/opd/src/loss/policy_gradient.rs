//! Reverse KL by policy gradient on the sampled tokens (<https://thinkingmachines.ai/blog/on-policy-distillation/>).

use autograd::Tape;
use autograd::ops::linear_policy_gradient;
use runtime::train::{Loss, LossBatch, LossValue, Needs};

use super::encoding::{Tag, encode};

/// `-exp(ln q - ln q_sampled) A` with `A = -coef (ln q_sampled - ln p)`, p the teacher.
///
/// Both models' distributions are taken at the sampling temperature, so that the ratio is 1 on policy.
#[derive(Debug, Clone, Copy)]
pub struct PolicyGradient {
    /// Factor on the advantage.
    pub coef: f64,
    /// Temperature that the completions were sampled with.
    pub temperature: f64,
}

impl Loss for PolicyGradient {
    fn needs(&self) -> Needs {
        Needs::Tokens { temperature: self.temperature }
    }

    fn encode(&self) -> Vec<u8> {
        encode(Tag::PolicyGradient, &[self.coef, self.temperature])
    }

    fn compute(&self, tape: &mut Tape, batch: &LossBatch<'_>) -> runtime::Result<LossValue> {
        let teacher = batch.teacher()?.log_probs(batch.targets, self.temperature)?;
        let sampled = batch.sampled_logprobs;
        let kl: Vec<f32> = sampled.iter().zip(&teacher).map(|(sampled, teacher)| sampled - teacher).collect();
        let advantages: Vec<f32> = kl.iter().map(|kl| -(self.coef as f32) * kl).collect();
        let student = batch.student();
        let (loss, mut rows) = linear_policy_gradient(
            tape,
            student,
            batch.targets,
            [sampled, &advantages],
            batch.weights,
            self.temperature,
        )?;
        rows.insert("teacher_kl", kl);
        Ok(LossValue { loss, rows })
    }
}
