//! What the sampler refuses.

/// Why parameters or logits were refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A parameter is outside its range.
    #[error("{field} = {value}: must be {allowed}")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
        /// What was given.
        value: String,
        /// What may be given.
        allowed: String,
    },
    /// A logit is NaN or +infinity: the model's forward is broken, and no token of it can be trusted.
    #[error("logit {value} at token {token}: the forward pass gave a value that is not a number or infinite")]
    NonFiniteLogit {
        /// Token id.
        token: u32,
        /// The logit.
        value: f32,
    },
    /// The same, found on a GPU, which does not say where.
    #[error("a logit is not a number or infinite: the forward pass is broken")]
    NonFiniteLogits,
    /// Every logit is -infinity, as the model gave them or after masking.
    #[error("no token is possible: all {vocab_size} logits are -inf after {masked} ids were masked")]
    NoCandidate {
        /// Number of logits.
        vocab_size: usize,
        /// Ids that `min_tokens` or the request's mask made impossible.
        masked: usize,
    },
}
