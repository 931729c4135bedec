//! One request's way from logits to text.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use autograd::ops::Draw;

use crate::request::{FinishReason, GenerateEvent, GenerateRequest, TokenEvent};
use crate::sampler::{
    Constraint, RngKey, Sampled, SamplingError, SamplingParams, Scratch, StopMatcher, TokenHistory, sample_among,
};
use crate::sink::Sink;
use crate::text::{Detokenizer, Tokenizer};
use crate::{Error, Result};

/// State of a running generation.
pub(super) struct Generation {
    params: SamplingParams,
    index: u64,
    prompt_len: usize,
    history: TokenHistory,
    text: Option<(Detokenizer, StopMatcher)>,
    events: Sink<GenerateEvent>,
    /// Locked by the one draw of a step.
    constraint: Option<Mutex<Box<dyn Constraint>>>,
    /// Prompt tokens that the first step did not compute; `None` before it.
    cached_tokens: Option<usize>,
    arrived: Instant,
    queue_seconds: f64,
}

/// Whether a generation goes on.
pub(super) enum Progress {
    Continues,
    Ended(FinishReason),
}

impl Generation {
    pub(super) fn new(
        request: GenerateRequest,
        constraint: Option<Box<dyn Constraint>>,
        tokenizer: Option<&Arc<Tokenizer>>,
        events: Sink<GenerateEvent>,
    ) -> Result<Self> {
        let missing =
            || Error::Request("text or stop strings were asked for, but the model has no tokenizer".to_owned());
        let wants_text = request.text || !request.params.stop.is_empty();
        let text = wants_text.then(|| -> Result<_> {
            let tokenizer = tokenizer.ok_or_else(missing)?;
            Ok((Detokenizer::new(tokenizer.clone(), true), StopMatcher::new(&request.params.stop)))
        });
        Ok(Self {
            history: TokenHistory::new(&request.prompt),
            prompt_len: request.prompt.len(),
            index: request.index,
            params: request.params,
            text: text.transpose()?,
            events,
            constraint: constraint.map(Mutex::new),
            cached_tokens: None,
            arrived: Instant::now(),
            queue_seconds: 0.0,
        })
    }

    /// The first planned step begins at position `start`.
    pub(super) fn started(&mut self, start: usize) {
        if self.cached_tokens.is_none() {
            self.cached_tokens = Some(start);
            self.queue_seconds = self.arrived.elapsed().as_secs_f64();
        }
    }

    /// Draws the next token.
    pub(super) fn draw(&self, logits: &[f32], eos: &[u32]) -> Result<Sampled, SamplingError> {
        let position = (self.prompt_len + self.history.generated()) as u64;
        let key = RngKey { seed: self.params.seed, request: self.index, position };
        let allowed = self.constraint.as_ref().map(|constraint| {
            let mut constraint = constraint.lock().unwrap_or_else(PoisonError::into_inner);
            constraint.allowed().map_err(SamplingError::Constraint)
        });
        let (allowed, scratch) = (allowed.transpose()?, &mut Scratch::default());
        sample_among(logits, allowed.as_ref(), &self.params, eos, &self.history, key, scratch)
    }

    /// The next draw, where it needs nothing but temperature and truncation of the model's own logits.
    pub(super) fn plain_draw(&self) -> Option<Draw> {
        let p = &self.params;
        let listed = p.logprobs.is_some_and(|n| n > 0) || !p.logprob_token_ids.is_empty();
        if listed || self.constraint.is_some() || p.adjusts_logits(self.history.generated()) {
            return None;
        }
        Some(Draw {
            temperature: p.temperature,
            top_k: p.top_k.unwrap_or(0),
            top_p: p.top_p,
            min_p: p.min_p,
            seed: p.seed,
            request: self.index,
            position: (self.prompt_len + self.history.generated()) as u64,
        })
    }

    /// Takes the drawn token: text, stop conditions, event.
    pub(super) fn push(&mut self, sampled: Sampled, eos: &[u32], version: u64) -> Progress {
        let token = sampled.token;
        self.history.push(token);
        let stop_id = (!self.params.ignore_eos && eos.contains(&token)) || self.params.stop_token_ids.contains(&token);
        if let Some(constraint) = self.constraint.as_mut().filter(|_| !stop_id) {
            let constraint = constraint.get_mut().unwrap_or_else(PoisonError::into_inner);
            if let Err(why) = constraint.accept(token) {
                return self.fail(SamplingError::Constraint(why).into());
            }
        }
        let (text, stop_text) = match self.advance_text((!stop_id).then_some(token)) {
            Ok(advanced) => advanced,
            Err(e) => return self.fail(e),
        };
        let event = TokenEvent {
            token,
            logprob: sampled.logprob.into(),
            sampling_logprob: sampled.sampling_logprob.into(),
            top: sampled.top.iter().map(|&(id, l)| (id, l.into())).collect(),
            given: sampled.given.iter().map(|&l| l.into()).collect(),
            text,
            version,
        };
        if self.events.send(GenerateEvent::Token(event)).is_err() {
            return Progress::Ended(FinishReason::Cancelled);
        }
        if stop_id || stop_text {
            self.end(FinishReason::Stop)
        } else if self.history.generated() >= self.params.max_tokens {
            self.end(FinishReason::Length)
        } else {
            Progress::Continues
        }
    }

    /// Text that is certain now, and whether a stop string is complete. A stop token is not part of the text.
    fn advance_text(&mut self, token: Option<u32>) -> Result<(String, bool)> {
        let (Some((detokenizer, stops)), Some(token)) = (&mut self.text, token) else {
            return Ok((String::new(), false));
        };
        let Some(text) = detokenizer.push(token)? else { return Ok((String::new(), false)) };
        let outcome = stops.push(&text);
        Ok((outcome.emit, outcome.stopped))
    }

    fn end(&mut self, reason: FinishReason) -> Progress {
        let text = match self.rest_of_text() {
            Ok(text) => text,
            Err(e) => return self.fail(e),
        };
        let (cached_tokens, queue_seconds) = (self.cached_tokens.unwrap_or(0), self.queue_seconds);
        let done = GenerateEvent::Done { reason, text, cached_tokens, queue_seconds };
        // Nobody listens any more: the request is over in any case.
        drop(self.events.send(done));
        Progress::Ended(reason)
    }

    fn rest_of_text(&mut self) -> Result<String> {
        let Some((detokenizer, stops)) = &mut self.text else { return Ok(String::new()) };
        let mut text = match detokenizer.flush()? {
            Some(rest) => stops.push(&rest).emit,
            None => String::new(),
        };
        text.push_str(&stops.finish());
        Ok(text)
    }

    pub(super) fn fail(&mut self, error: Error) -> Progress {
        drop(self.events.send(GenerateEvent::Failed(error)));
        Progress::Ended(FinishReason::Cancelled)
    }
}
