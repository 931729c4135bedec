//! Training through the runtime: what a loss sees and returns.

mod batch;
mod request;
mod session;
mod spec;
mod teacher;

use std::collections::BTreeMap;
use std::sync::Arc;

use autograd::ops::Head;
use autograd::{Tape, Tensor};

pub use crate::error::TrainError;
pub use request::{NamedTensor, OptimReport, OptimStep, TrainReport, TrainRequest, TrainSequence, TrainState};
pub(crate) use session::TrainSession;
pub use spec::{Offload, Trainable, Training};
pub use teacher::{Needs, PrecomputedTeacher, Teacher, TeacherSource};

use crate::model::LoadedModel;

/// The rows of one micro-batch that predict completion tokens, N in all.
pub struct LossBatch<'a> {
    /// The student's final hidden states, `[N, H]`, on the tape.
    pub student_hidden: &'a Tensor,
    /// The student's output head `[V, H]`.
    pub student_head: &'a Tensor,
    /// Rows of both heads that belong to tokens.
    pub token_ids: usize,
    /// The teacher, where the loss needs one.
    pub teacher: Option<Teacher<'a>>,
    /// The completion tokens, N.
    pub targets: &'a [u32],
    /// Their log-probabilities at the sampling temperature when they were sampled; empty when the batch was not.
    pub sampled_logprobs: &'a [f32],
    /// The same at temperature 1.
    pub raw_logprobs: &'a [f32],
    /// Weight of each row divided by the step's normalizer, N.
    pub weights: &'a [f32],
}

impl<'a> LossBatch<'a> {
    /// What makes the student's logits.
    #[must_use]
    pub fn student(&self) -> Head<'a> {
        Head { hidden: self.student_hidden, weight: self.student_head, ids: self.token_ids }
    }

    /// The teacher of a loss that needs one.
    ///
    /// # Errors
    /// There is none.
    pub fn teacher(&self) -> crate::Result<Teacher<'a>> {
        self.teacher.ok_or_else(|| TrainError::NoTeacher.into())
    }
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
    /// What it compares the student with.
    fn needs(&self) -> Needs;

    /// The loss as bytes, for ranks of other processes: [`crate::request::RuntimeSpec::decode_loss`] makes it again.
    fn encode(&self) -> Vec<u8>;

    /// The loss of one micro-batch.
    ///
    /// # Errors
    /// What the ops refuse.
    fn compute(&self, tape: &mut Tape, batch: &LossBatch<'_>) -> crate::Result<LossValue>;
}

/// Makes a loss of the bytes that it wrote.
pub type DecodeLoss = fn(&[u8]) -> crate::Result<Arc<dyn Loss>>;

/// For a program that trains nothing.
///
/// # Errors
/// Always.
pub fn no_losses(bytes: &[u8]) -> crate::Result<Arc<dyn Loss>> {
    Err(TrainError::UnknownLoss { bytes: bytes.len() }.into())
}

/// A micro-batch without gradients, with the weights that requests are answered with.
pub(crate) fn evaluate(
    request: &TrainRequest,
    student: &LoadedModel,
    teacher: Option<&LoadedModel>,
) -> crate::Result<TrainReport> {
    if request.backward {
        return Err(crate::error::RequestError::NotTraining.into());
    }
    let (report, _) = batch::run(request, student, teacher, student.serving(), batch::Watch::Nothing)?;
    Ok(report)
}
