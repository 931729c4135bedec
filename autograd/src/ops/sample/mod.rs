//! Sampling tokens on a GPU, where the logits are.
//!
//! What a step samples stays in its [`SampleBuffer`], where the next step finds its tokens, so that it can be launched before
//! the host has seen them.

mod arrays;
mod buffer;
mod processors;

pub(crate) use arrays::SampleArrays;
pub(crate) use buffer::word;
pub use buffer::{PendingSamples, SampleBuffer};
pub use processors::{LISTED, LogitsProcessorSpec, LogitsProcessors};

/// A token that a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// Its id.
    Known(u32),
    /// What the step before samples in this one of its sampled rows.
    Sampled(u32),
}

/// How one row's token is sampled. The fields mean what they mean to the runtime's sampler on the host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleParams {
    /// Divisor of the logits; 0 takes the most likely token, the lowest id of equals.
    pub temperature: f32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest most likely tokens whose probabilities sum to at least this.
    pub top_p: f32,
    /// Drop tokens less likely than this times the most likely one.
    pub min_p: f32,
    /// The user's seed.
    pub seed: u64,
    /// Which of the requests under that seed.
    pub request: u64,
    /// Position of the token that is sampled.
    pub position: u64,
}

/// How a row is sampled, with the logits processors of its request.
#[derive(Debug, Clone, Copy)]
pub struct SampleArgs<'a> {
    /// Temperature, truncation and random number.
    pub params: SampleParams,
    /// Changes of the logits before that, and which log-probabilities are listed.
    pub processors: Option<&'a LogitsProcessors>,
    /// Whether the ids that [`LogitsProcessorSpec::masked`] names are impossible now.
    pub masks: bool,
    /// A bit for each token, from the lowest of the first word on: whether it is possible. `None` allows all.
    pub allowed: Option<&'a [u32]>,
}

impl SampleArgs<'_> {
    /// Whether the row needs more than temperature and truncation.
    #[must_use]
    pub fn has_processors(&self) -> bool {
        self.processors.is_some() || self.allowed.is_some()
    }
}

impl From<SampleParams> for SampleArgs<'_> {
    fn from(params: SampleParams) -> Self {
        Self { params, processors: None, masks: false, allowed: None }
    }
}

/// What a row gave. Log-probabilities are natural logs under the model's own distribution.
#[derive(Debug, Clone, PartialEq)]
pub enum SampleResult {
    /// A token.
    Token {
        /// Its id.
        token: u32,
        /// At temperature 1.
        logprob: f32,
        /// At the row's temperature; for temperature 0, at 1.
        sampling_logprob: f32,
        /// The most likely tokens, ties by rising id: [`LogitsProcessorSpec::top`] of them.
        top: Vec<(u32, f32)>,
        /// Log-probabilities of [`LogitsProcessorSpec::given`].
        given: Vec<f32>,
    },
    /// A logit is NaN or +infinity.
    NotFinite,
    /// Every logit is -infinity, as they were or after masking.
    Impossible,
}
