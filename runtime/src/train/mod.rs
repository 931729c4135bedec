//! Training through the runtime: what a loss sees and returns.

use std::collections::BTreeMap;

use autograd::{Tape, Tensor};

/// The rows of one micro-batch that predict completion tokens, N in all.
pub struct LossBatch<'a> {
    /// The student's final hidden states, `[N, H]`, on the tape.
    pub student_hidden: &'a Tensor,
    /// The student's output head `[V, H]`.
    pub student_head: &'a Tensor,
    /// The teacher's final hidden states `[N, H_t]` and output head `[V, H_t]`, constants.
    pub teacher: Option<(&'a Tensor, &'a Tensor)>,
    /// The completion tokens, N.
    pub targets: &'a [u32],
    /// Their log-probabilities when they were sampled; empty when the batch was not sampled.
    pub sampled_logprobs: &'a [f32],
    /// Weight of each row divided by the step's normalizer, N.
    pub weights: &'a [f32],
}

/// A loss and what was seen while computing it.
pub struct LossValue {
    /// `[1, 1]`: the sum over rows of weight times loss.
    pub loss: Tensor,
    /// Named values per row, N each, which the runtime sums over rows with a weight.
    pub rows: BTreeMap<&'static str, Vec<f32>>,
}

/// A training objective over a micro-batch.
///
/// The runtime calls it with hidden states; how the two heads are multiplied out, a chunk of rows at a time, is in
/// [`autograd::ops`].
pub trait Loss: Send + Sync {
    /// Whether the teacher has to be run.
    fn needs_teacher(&self) -> bool;

    /// The loss of one micro-batch.
    ///
    /// # Errors
    /// What the ops refuse.
    fn compute(&self, tape: &mut Tape, batch: &LossBatch<'_>) -> crate::Result<LossValue>;
}
