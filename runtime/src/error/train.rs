//! Why a micro-batch or an optimizer step is refused.

/// Training that cannot be done. Every variant carries the value and the limit.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum TrainError {
    /// The loss needs a teacher.
    #[error("this loss needs a teacher, and there is none")]
    NoTeacher,
    /// The loss compares distributions, and a remote teacher returned only the tokens' log-probabilities.
    #[error("the teacher gives no distributions, which this loss compares")]
    NoDistributions,
    /// The loss is divided by a number that is not positive.
    #[error("the normalizer is {normalizer}, must be positive")]
    Normalizer {
        /// The normalizer.
        normalizer: f64,
    },
    /// A sequence lacks a prompt or a completion.
    #[error("training sequence {sequence}: {prompt} prompt and {completion} completion tokens; both need one at least")]
    EmptyPart {
        /// Its place in the batch.
        sequence: usize,
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of the completion.
        completion: usize,
    },
    /// Lists by token have other lengths than the completion.
    #[error(
        "training sequence {sequence}: weights or log-probabilities do not match its {completion} completion tokens"
    )]
    Lengths {
        /// Its place in the batch.
        sequence: usize,
        /// Tokens of the completion.
        completion: usize,
    },
    /// Only one of the two kinds of the sampler's log-probabilities.
    #[error("training sequence {sequence}: sampled and raw log-probabilities must both be there, or neither")]
    SampledLogprobs {
        /// Its place in the batch.
        sequence: usize,
    },
    /// A sequence is longer than the student's context.
    #[error("training sequence {sequence}: {tokens} tokens exceed the context of {max}")]
    TooLong {
        /// Its place in the batch.
        sequence: usize,
        /// Its tokens.
        tokens: usize,
        /// The context.
        max: usize,
    },
    /// An id that is no token of the student.
    #[error("training sequence {sequence}: token id {id} is outside the vocabulary of {vocab_size}")]
    TokenId {
        /// Its place in the batch.
        sequence: usize,
        /// The id.
        id: u32,
        /// Ids there are.
        vocab_size: usize,
    },
    /// The teacher's prompt and the completion do not fit the teacher.
    #[error("training sequence {sequence}: {prompt} prompt tokens and {total} in all, the teacher takes 1 to {max}")]
    TeacherPrompt {
        /// Its place in the batch.
        sequence: usize,
        /// Tokens of the teacher's prompt.
        prompt: usize,
        /// The same and the completion's.
        total: usize,
        /// The teacher's context.
        max: usize,
    },
    /// A remote teacher's log-probabilities are of other tokens than those with a weight.
    #[error("the remote teacher returned log-probabilities of {got} tokens, the sequences have {want} with a weight")]
    TeacherTokens {
        /// Tokens that it returned log-probabilities for.
        got: usize,
        /// Tokens with a weight.
        want: usize,
    },
    /// A remote teacher's lists contradict each other.
    #[error("the remote teacher's lists have different lengths; the sequences have {want} tokens with a weight")]
    TeacherLists {
        /// Tokens with a weight.
        want: usize,
    },
    /// A remote teacher's log-probabilities hold for another temperature than the loss's.
    #[error(
        "the teacher gave log-probabilities of {got} tokens at temperature {temperature}, the loss needs {want} at \
         {needed}"
    )]
    TeacherTemperature {
        /// Tokens that it returned log-probabilities for.
        got: usize,
        /// The temperature that they hold for.
        temperature: f64,
        /// Tokens with a weight.
        want: usize,
        /// The loss's temperature.
        needed: f64,
    },
    /// A loss whose bytes the program does not decode.
    #[error("{bytes} bytes are no loss that this program has")]
    UnknownLoss {
        /// Bytes of the loss.
        bytes: usize,
    },
    /// A micro-batch failed, so the sums of gradients are incomplete.
    #[error("a micro-batch of this step failed, so its gradients are incomplete; nothing was changed")]
    IncompleteGradients,
}
