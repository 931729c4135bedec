//! Drawing tokens on a GPU, where the logits are.
//!
//! What a step draws stays in its [`DrawBoard`], where the next step finds its tokens, so that it can be launched before
//! the host has seen them.

mod board;
mod extras;
mod words;

pub(crate) use board::word;
pub use board::{DrawBoard, PendingDraws};
pub use extras::{Extras, LISTED, Rules};
pub(crate) use words::DrawArrays;

/// A token that a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// Its id.
    Known(u32),
    /// What the step before draws in this one of its drawn rows.
    Drawn(u32),
}

/// How one row's token is drawn. The meaning of the fields is the sampler's of the runtime, which draws on the host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
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
    /// Position of the token that is drawn.
    pub position: u64,
}

/// A row's draw and what its request wants besides.
#[derive(Debug, Clone, Copy)]
pub struct DrawRow<'a> {
    /// The draw.
    pub draw: Draw,
    /// Changes of the logits before it, and what is listed.
    pub extras: Option<&'a Extras>,
    /// Whether the ids that [`Rules::masked`] names are impossible in this draw.
    pub masks: bool,
    /// A bit for each token, from the lowest of the first word on: whether it is possible. `None` allows all.
    pub allowed: Option<&'a [u32]>,
}

impl DrawRow<'_> {
    /// Whether the row needs more than temperature and truncation.
    #[must_use]
    pub fn has_extras(&self) -> bool {
        self.extras.is_some() || self.allowed.is_some()
    }
}

impl From<Draw> for DrawRow<'_> {
    fn from(draw: Draw) -> Self {
        Self { draw, extras: None, masks: false, allowed: None }
    }
}

/// What a row gave. Log-probabilities are natural logs under the model's own distribution.
#[derive(Debug, Clone, PartialEq)]
pub enum Drawn {
    /// A token.
    Token {
        /// Its id.
        token: u32,
        /// At temperature 1.
        logprob: f32,
        /// At the draw's temperature; for temperature 0, at 1.
        sampling_logprob: f32,
        /// The most likely tokens, ties by rising id: [`Rules::top`] of them.
        top: Vec<(u32, f32)>,
        /// Log-probabilities of [`Rules::given`].
        given: Vec<f32>,
    },
    /// A logit is NaN or +infinity.
    NotFinite,
    /// Every logit is -infinity, as they were or after masking.
    Impossible,
}
