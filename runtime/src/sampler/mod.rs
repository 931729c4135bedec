//! From logits to a token, from text to the end of a generation.
//!
//! A token depends on its logits, its request's parameters and history, and `(seed, request, position)`:
//! never on the neighbours in its batch.

mod candidates;
mod history;
mod mask;
mod params;
mod rng;
mod sample;
mod softmax;
mod stop;

pub use crate::error::SamplingError;
pub use history::TokenHistory;
pub use mask::TokenMask;
pub use params::SamplingParams;
pub use rng::RngKey;
pub(crate) use sample::from_device;
pub use sample::{Sampled, Scratch, sample};
pub use stop::{StopMatcher, StopOutcome};
