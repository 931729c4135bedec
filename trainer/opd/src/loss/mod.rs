//! What is minimized. One file a loss; how hidden states become losses without a `[T, vocab]` tensor is in
//! [`autograd::ops`].

mod cross_entropy;
mod distill;
mod encoding;
mod held_out;
mod mismatch;
mod policy_gradient;

use std::sync::Arc;

use autograd::ops::Distill;
use runtime::train::Loss;

pub use cross_entropy::CrossEntropy;
pub use distill::Distillation;
pub use encoding::decode;
pub use held_out::HeldOut;
pub use mismatch::Mismatch;
pub use policy_gradient::PolicyGradient;

use crate::recipe::LossKind;

/// The loss that a recipe names. `sampling_temperature` is the one that completions are drawn with.
#[must_use]
pub fn build(kind: LossKind, sampling_temperature: f64) -> Arc<dyn Loss> {
    match kind {
        LossKind::Divergence { divergence, temperature } => Arc::new(Distillation(Distill { divergence, temperature })),
        LossKind::PolicyGradient { coef } => Arc::new(PolicyGradient { coef, temperature: sampling_temperature }),
        LossKind::CrossEntropy => Arc::new(CrossEntropy),
    }
}

#[cfg(test)]
mod tests;
