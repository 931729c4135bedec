//! Many completions at once through the runtime's scheduler.

use indicatif::ProgressBar;
use runtime::RuntimeHandle;
use runtime::request::{CompletionText, GenerateRequest, Generated, Slot};
use runtime::sampler::SamplingParams;

use crate::Result;
use crate::recipe::Sampling;

/// What the random numbers of a completion are for; part of their key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Purpose {
    /// Training, by the student.
    Train = 0,
    /// Training, by the teacher.
    TrainTeacher = 1,
    /// Held-out, by the student.
    HeldOut = 2,
    /// Held-out, by the teacher.
    HeldOutTeacher = 3,
}

impl Purpose {
    /// The request index that keys the random numbers of completion `n`.
    #[must_use]
    pub(super) fn index(self, n: u64) -> u64 {
        (self as u64) << 60 | n
    }
}

/// A recipe's sampling for at most `max_tokens` tokens.
#[must_use]
pub(super) fn params(sampling: &Sampling, max_tokens: usize, seed: u64) -> SamplingParams {
    SamplingParams {
        temperature: sampling.temperature as f32,
        top_p: sampling.top_p as f32,
        top_k: (sampling.top_k > 0).then_some(sampling.top_k),
        min_p: sampling.min_p as f32,
        seed,
        max_tokens,
        ..SamplingParams::default()
    }
}

/// Submits every request, waits for all, and returns the answers in the order of the requests.
///
/// # Errors
/// The first request that fails.
pub(super) fn generate(
    runtime: &RuntimeHandle,
    requests: impl IntoIterator<Item = GenerateRequest>,
    bar: &ProgressBar,
) -> Result<Vec<Generated>> {
    let running: Vec<_> = requests.into_iter().map(|request| runtime.generate(request)).collect::<Result<_, _>>()?;
    let mut finished = Vec::with_capacity(running.len());
    for generation in running {
        let generated = generation.collect()?;
        bar.inc(generated.tokens.len() as u64);
        finished.push(generated);
    }
    bar.finish_and_clear();
    Ok(finished)
}

/// A request for token ids.
#[must_use]
pub(super) fn request(slot: Slot, prompt: Vec<u32>, params: SamplingParams, index: u64) -> GenerateRequest {
    GenerateRequest { slot, prompt, params, index, text: CompletionText::None }
}
