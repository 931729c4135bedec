//! What the server counts.

pub(crate) mod histogram;
mod watch;

use std::sync::atomic::{AtomicU64, Ordering};

use runtime::request::FinishReason;

use histogram::Histogram;
pub(crate) use watch::Watch;

/// Seconds to a first token, as vLLM cuts them.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// Seconds between two tokens.
const BETWEEN: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Seconds of a whole request.
const WHOLE: &[f64] = &[
    0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0,
];
/// Tokens of a request.
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 50000.0, 100_000.0,
];

/// How a sequence or a request ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Stop,
    Length,
    /// The client left, or the server stopped.
    Abort,
    Error,
}

impl Outcome {
    pub(crate) const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

impl From<FinishReason> for Outcome {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => Self::Stop,
            FinishReason::Length => Self::Length,
            FinishReason::Cancelled => Self::Abort,
        }
    }
}

/// Counters of one model.
pub(crate) struct ModelMetrics {
    pub(crate) name: String,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) cached_tokens: AtomicU64,
    pub(crate) generated_tokens: AtomicU64,
    /// Sequences by [`Outcome`].
    pub(crate) ended: [AtomicU64; Outcome::ALL.len()],
    pub(crate) first_token: Histogram,
    pub(crate) between: Histogram,
    pub(crate) whole: Histogram,
    pub(crate) queued: Histogram,
    pub(crate) prompt_length: Histogram,
    pub(crate) generated_length: Histogram,
}

impl ModelMetrics {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            prompt_tokens: AtomicU64::default(),
            cached_tokens: AtomicU64::default(),
            generated_tokens: AtomicU64::default(),
            ended: Default::default(),
            first_token: Histogram::new(FIRST_TOKEN),
            between: Histogram::new(BETWEEN),
            whole: Histogram::new(WHOLE),
            queued: Histogram::new(WHOLE),
            prompt_length: Histogram::new(TOKENS),
            generated_length: Histogram::new(TOKENS),
        }
    }

    fn end(&self, outcome: Outcome) {
        self.ended[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Counters of HTTP; those of a model are with the model.
#[derive(Default)]
pub(crate) struct Metrics {
    /// Responses whose status is 100 to 199, 200 to 299, ...
    pub(crate) responses: [AtomicU64; 5],
    /// Requests that were refused because all places are taken.
    pub(crate) refused: AtomicU64,
}

impl Metrics {
    pub(crate) fn response(&self, status: http::StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.responses[class].fetch_add(1, Ordering::Relaxed);
        if status == http::StatusCode::TOO_MANY_REQUESTS {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}
