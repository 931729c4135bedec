//! The sequences of one request on their way through the runtime.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtime::request::{
    CompletionText, FinishReason, GenerateEvent, GenerateRequest, ScoreRequest, ScoreResponse, TokenEvent,
};
use runtime::sampler::SamplingParams;
use runtime::{Closed, RequestGuard, Sink};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::api_error::ApiError;
use crate::app::App;
use crate::limits::admission::Places;
use crate::limits::event_queue::{EventReceiver, event_queue};
use crate::limits::memory::{self, Budget};
use crate::metrics::Watch;
use crate::models::Model;
use crate::sampling::reported_temperature;
use crate::structured::constraint::Constraint;
use telemetry::Scope;

/// What a request wants to be generated.
pub(crate) struct Job {
    pub(crate) model: Arc<Model>,
    /// Token ids of each prompt, and how to continue it; `None` asks for no token.
    pub(crate) prompts: Vec<(Vec<u32>, Option<SamplingParams>)>,
    /// Completions of each prompt.
    pub(crate) copies: usize,
    /// What holds each of them.
    pub(crate) guide: Option<Constraint>,
}

/// A running request: `copies` sequences for each of its prompts, numbered in this order. Dropping it cancels them all.
pub(crate) struct Running {
    events: EventReceiver,
    budget: Arc<Budget>,
    guards: Vec<Option<RequestGuard>>,
    open: usize,
    deadline: Instant,
    timeout: Duration,
    /// The deadline has passed, and what ran ends as it is.
    over: bool,
    watch: Watch,
    /// Of the distribution that log-probabilities are reported of.
    temperature: f64,
    _places: Places,
}

/// What happens to a sequence.
pub(crate) enum Event {
    Token(TokenEvent),
    /// Its last event, with the text held back so far.
    End {
        reason: FinishReason,
        text: String,
        /// The stop string that ended it, by its place among those of the request.
        stop: Option<usize>,
        cached_tokens: usize,
    },
}

/// A finished sequence.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) tokens: Vec<TokenEvent>,
    /// Text that was held back until the end; what comes before it is the tokens'.
    pub(crate) rest: String,
    pub(crate) reason: FinishReason,
    /// As in [`Event::End`].
    pub(crate) stop: Option<usize>,
    pub(crate) cached_tokens: usize,
}

impl Finished {
    fn nothing() -> Self {
        Self { tokens: vec![], rest: String::new(), reason: FinishReason::Length, stop: None, cached_tokens: 0 }
    }

    pub(crate) fn text(&self) -> String {
        let texts = self.tokens.iter().map(|token| token.text.as_str());
        texts.chain([self.rest.as_str()]).collect()
    }

    /// Mean log-probability of a token, by which `best_of` chooses.
    pub(crate) fn mean_logprob(&self) -> f64 {
        let sum: f64 = self.tokens.iter().map(|token| token.logprob).sum();
        sum / self.tokens.len().max(1) as f64
    }
}

impl Running {
    /// Takes places for all sequences and submits them, or refuses all.
    pub(crate) fn start(app: &App, job: Job) -> Result<Self, ApiError> {
        let count = job.prompts.len().saturating_mul(job.copies);
        let places = app.admission.enter(count)?;
        let bytes = job.guide.as_ref().map_or(0, Constraint::bytes);
        memory::hold_answer(memory::take(bytes.saturating_mul(count as u64), "the grammars")?);
        let mut watch = Watch::new(Arc::clone(&job.model.metrics), job.copies);
        let sampled = job.prompts.iter().find_map(|(_, params)| params.as_ref());
        let temperature = sampled.map_or(1.0, |params| reported_temperature(params, app.config.logprobs_mode));
        let (sender, events) = event_queue(&app.budget);
        let mut guards = Vec::with_capacity(count);
        let text = match job.model.files().tokenizer {
            Some(_) => CompletionText::AfterPrompt,
            None => CompletionText::None,
        };
        for (prompt, params) in job.prompts {
            watch.prompt(prompt.len());
            for copy in 0..job.copies {
                let Some(params) = params.clone() else {
                    watch.nothing(guards.len());
                    guards.push(None);
                    continue;
                };
                let (sender, choice) = (sender.clone(), guards.len());
                let sink = move |event| sender.send(choice, event);
                let mask = job.guide.as_ref().map(Constraint::follow);
                let request =
                    GenerateRequest { model: job.model.id(), prompt: prompt.clone(), params, index: copy as u64, text };
                guards.push(Some(app.runtime.generate_into(request, mask, Sink::new(sink))?));
            }
        }
        let timeout = app.config.request_timeout;
        let (open, deadline) = (guards.iter().flatten().count(), Instant::now() + timeout);
        let budget = Arc::clone(&app.budget);
        Ok(Self { events, budget, guards, open, deadline, timeout, over: false, watch, temperature, _places: places })
    }

    /// Sequences, running or not.
    pub(crate) fn count(&self) -> usize {
        self.guards.len()
    }

    /// The next event of any sequence; `None` when all have ended.
    pub(crate) async fn next(&mut self) -> Option<Result<(usize, Event), ApiError>> {
        while self.open > 0 {
            let Ok(received) = tokio::time::timeout_at(self.deadline, self.events.recv()).await else {
                return Some(self.time_is_over());
            };
            let (choice, at, event) = match received {
                Some(Ok(received)) => received,
                Some(Err(error)) => return Some(Err(self.fail(error))),
                None => {
                    let why = "the device thread has ended; the server's log says why";
                    return Some(Err(self.fail(ApiError::unavailable(why))));
                }
            };
            // It ended with the deadline, and this came still.
            if self.guards[choice].is_none() {
                continue;
            }
            return Some(match event {
                GenerateEvent::Started { queue_seconds } => {
                    self.watch.begin(choice, queue_seconds);
                    continue;
                }
                GenerateEvent::Token(token) => {
                    self.watch.token(choice, at, token.version);
                    Ok((choice, Event::Token(at_temperature(token, self.temperature))))
                }
                GenerateEvent::Done { reason, text, stop, cached_tokens } => {
                    self.watch.end(choice, at, reason, cached_tokens);
                    self.guards[choice] = None;
                    self.open -= 1;
                    Ok((choice, Event::End { reason, text, stop, cached_tokens }))
                }
                GenerateEvent::Failed(error) => Err(self.fail(error.into())),
            });
        }
        None
    }

    /// Ends the next sequence that runs with the text so far, as if its length were reached; a request that has no text is an
    /// error.
    fn time_is_over(&mut self) -> Result<(usize, Event), ApiError> {
        let running = self.guards.iter().position(Option::is_some).filter(|_| self.watch.has_tokens());
        let Some(choice) = running else { return Err(self.fail(ApiError::timeout(self.timeout.as_secs()))) };
        if !std::mem::replace(&mut self.over, true) {
            self.span().in_scope(|| tracing::warn!("{} s are over (--request-timeout)", self.timeout.as_secs()));
        }
        self.guards[choice] = None;
        self.open -= 1;
        self.watch.end(choice, Instant::now(), FinishReason::Length, 0);
        Ok((choice, Event::End { reason: FinishReason::Length, text: String::new(), stop: None, cached_tokens: 0 }))
    }

    /// What lines of the log about this request are under.
    pub(crate) fn span(&self) -> &tracing::Span {
        self.watch.span()
    }

    /// One failed sequence fails the request.
    fn fail(&mut self, error: ApiError) -> ApiError {
        self.watch.failed(&error.message);
        self.open = 0;
        self.guards.iter_mut().for_each(|ticket| *ticket = None);
        error
    }

    /// Waits for all sequences.
    pub(crate) async fn collect(mut self) -> Result<Vec<Finished>, ApiError> {
        self.events.keep(&self.budget);
        let mut finished: Vec<Finished> = (0..self.count()).map(|_| Finished::nothing()).collect();
        while let Some(event) = self.next().await {
            let (choice, event) = event?;
            let one = &mut finished[choice];
            match event {
                Event::Token(token) => one.tokens.push(token),
                Event::End { reason, text, stop, cached_tokens } => {
                    (one.rest, one.reason, one.stop, one.cached_tokens) = (text, reason, stop, cached_tokens);
                }
            }
        }
        self.events.kept()?.into_iter().for_each(memory::hold_answer);
        Ok(finished)
    }
}

/// A token with the log-probabilities of the distribution at this temperature. They are `l / t` minus the same number for
/// every token, which the sampled one tells, whose log-probability at the sampling temperature is known.
fn at_temperature(mut token: TokenEvent, temperature: f64) -> TokenEvent {
    if temperature != 1.0 {
        let shift = token.sampling_logprob - token.logprob / temperature;
        for (id, logprob) in &mut token.top {
            // The sampled token has one value wherever it is listed.
            *logprob = if *id == token.token { token.sampling_logprob } else { *logprob / temperature + shift };
        }
        token.logprob = token.sampling_logprob;
    }
    token
}

/// Submits a score request and waits for the response; `name` is that of its span.
pub(crate) async fn score(app: &App, name: &'static str, request: ScoreRequest) -> Result<ScoreResponse, ApiError> {
    let _places = app.admission.enter(1)?;
    let (sender, answer) = oneshot::channel();
    // A sink may be called again; this one's request is answered once.
    let sender = Mutex::new(Some(sender));
    let reply = move |answer| {
        let sender = sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        sender.map_or(Err(Closed), |sender| sender.send(answer).map_err(|_| Closed))
    };
    // Dropped with a client that leaves: then the work ends.
    let _guard = app.runtime.score_into(request, Sink::new(reply))?;
    let timeout = app.config.request_timeout;
    match Scope::current().time(name, tokio::time::timeout(timeout, answer)).await {
        Err(_) => Err(ApiError::timeout(timeout.as_secs())),
        Ok(Err(_)) => Err(ApiError::unavailable("the device thread has ended; the server's log says why")),
        Ok(Ok(answer)) => Ok(answer?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temperature_scales_all_log_probabilities_alike() {
        let logits = [1.0, -0.5, 2.5, 0.0];
        let log_prob = |id: usize, t: f64| {
            let sum: f64 = logits.iter().map(|z: &f64| (z / t).exp()).sum();
            logits[id] / t - sum.ln()
        };
        let token = TokenEvent {
            token: 3,
            logprob: log_prob(3, 1.0),
            sampling_logprob: log_prob(3, 0.6),
            top: [2, 0, 3].map(|id| (id, log_prob(id as usize, 1.0))).to_vec(),
            given: vec![],
            text: String::new(),
            version: 0,
        };
        let got = at_temperature(token, 0.6);
        assert_eq!(got.logprob, log_prob(3, 0.6));
        for (id, logprob) in got.top {
            assert!((logprob - log_prob(id as usize, 0.6)).abs() < 1e-12, "{id}: {logprob}");
        }
    }
}
