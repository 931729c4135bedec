//! Many completions at once through the runtime's scheduler.

use std::sync::mpsc::{RecvTimeoutError, channel};

use indicatif::ProgressBar;
use runtime::request::{CompletionText, FinishReason, GenerateEvent, GenerateRequest, Generated, ModelId};
use runtime::sampler::SamplingParams;
use runtime::{Closed, RequestGuard, RuntimeHandle, Sink};

use crate::recipe::Sampling;
use crate::{Error, Result};
use command::interrupt::{Interrupt, POLL_INTERVAL};

/// What the random numbers of a completion are for; part of their key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum RngStream {
    /// Training, by the student.
    Train = 0,
    /// Training, by the teacher.
    TrainTeacher = 1,
    /// Held-out, by the student.
    HeldOut = 2,
    /// Held-out, by the teacher.
    HeldOutTeacher = 3,
}

impl RngStream {
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

/// Submits every request, waits for all, and returns the answers in the order of the requests. Where there is an `interrupt`
/// that is requested, all are cancelled at once.
///
/// # Errors
/// The first request that fails; [`Error::MeasurementInterrupted`].
pub(super) fn generate(
    runtime: &RuntimeHandle,
    requests: impl IntoIterator<Item = GenerateRequest>,
    bar: &ProgressBar,
    interrupt: Option<&Interrupt>,
) -> Result<Vec<Generated>> {
    let (sender, events) = channel();
    let submit = |(index, request): (usize, GenerateRequest)| {
        let (sender, most) = (sender.clone(), request.params.max_tokens);
        let sink = Sink::new(move |event| sender.send((index, event)).map_err(|_| Closed));
        runtime.generate_into(request, None, sink).map(|ticket| (ticket, most))
    };
    // A ticket that is dropped cancels its request.
    let guards: Vec<(RequestGuard, usize)> = requests.into_iter().enumerate().map(submit).collect::<Result<_, _>>()?;
    drop(sender);
    let mut answers: Vec<Generated> = guards.iter().map(|_| nothing_yet()).collect();
    let mut running = answers.len();
    while running > 0 {
        let (index, event) = match events.recv_timeout(POLL_INTERVAL) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => {
                if interrupt.is_some_and(Interrupt::is_requested) {
                    return Err(Error::MeasurementInterrupted);
                }
                continue;
            }
            // The device thread has ended and has the reason.
            Err(RecvTimeoutError::Disconnected) => return Err(runtime.stats().err().map_or_else(lost, Error::from)),
        };
        if interrupt.is_some_and(Interrupt::is_requested) {
            return Err(Error::MeasurementInterrupted);
        }
        let answer = &mut answers[index];
        match event {
            GenerateEvent::Started { .. } => {}
            GenerateEvent::Token(token) => {
                answer.text.push_str(&token.text);
                answer.tokens.push(token);
                bar.inc(1);
            }
            GenerateEvent::Done { reason, text, cached_tokens, .. } => {
                answer.text.push_str(&text);
                (answer.reason, answer.cached_tokens) = (reason, cached_tokens);
                bar.dec_length((guards[index].1 - answer.tokens.len()) as u64);
                running -= 1;
            }
            GenerateEvent::Failed(error) => return Err(error.into()),
        }
    }
    bar.finish_and_clear();
    Ok(answers)
}

fn nothing_yet() -> Generated {
    Generated { tokens: Vec::new(), text: String::new(), reason: FinishReason::Cancelled, cached_tokens: 0 }
}

fn lost() -> Error {
    runtime::Error::Stopped("it dropped its requests".to_owned()).into()
}

/// A request for token ids.
#[must_use]
pub(super) fn request(model: ModelId, prompt: Vec<u32>, params: SamplingParams, index: u64) -> GenerateRequest {
    GenerateRequest { model, prompt, params, index, text: CompletionText::None }
}
