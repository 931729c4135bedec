//! One running generation: from sampled tokens to text and events.

use std::sync::Arc;
use std::time::Instant;

use crate::engine::order::BeginSequence;
use crate::ids::{ModelId, RequestId};
use crate::request::{
    CompletionText, FinishReason, GenerateEvent, GenerateRequest, RequestError, TokenEvent, TokenMask,
};
use crate::sampler::{Sampled, SamplingParams, StopMatcher};
use crate::sink::Sink;
use crate::text::{Detokenizer, Tokenizer};
use crate::{Error, Result};

/// Text, stop conditions and events of a running generation.
pub(super) struct GenerationState {
    model: ModelId,
    params: SamplingParams,
    index: u64,
    /// Tokens that were delivered.
    generated: usize,
    mask: Option<Box<dyn TokenMask>>,
    text: Option<(Detokenizer, StopMatcher)>,
    events: Sink<GenerateEvent>,
    /// Prompt tokens that the first step did not compute; `None` before it.
    cached_tokens: Option<usize>,
    arrived: Instant,
}

/// Whether a generation goes on.
pub(super) enum Progress {
    Continues,
    Ended(FinishReason),
}

impl GenerationState {
    pub(super) fn new(
        request: GenerateRequest,
        mask: Option<Box<dyn TokenMask>>,
        tokenizer: Option<&Arc<Tokenizer>>,
        events: Sink<GenerateEvent>,
    ) -> Result<Self> {
        let wants_text = request.text != CompletionText::None || !request.params.stop.is_empty();
        let text = wants_text.then(|| -> Result<_> {
            let tokenizer = tokenizer.ok_or(RequestError::NoTokenizer)?.clone();
            let params = &request.params;
            let text = match request.text {
                CompletionText::Alone => Detokenizer::new(tokenizer, params.skip_special_tokens),
                CompletionText::None | CompletionText::AfterPrompt => {
                    Detokenizer::after(tokenizer, params.skip_special_tokens, &request.prompt)?
                }
            };
            Ok((text, StopMatcher::new(&params.stop).including(params.include_stop)))
        });
        Ok(Self {
            mask,
            generated: 0,
            index: request.index,
            model: request.model,
            params: request.params,
            text: text.transpose()?,
            events,
            cached_tokens: None,
            arrived: Instant::now(),
        })
    }

    pub(super) fn model(&self) -> ModelId {
        self.model
    }

    pub(super) fn has_started(&self) -> bool {
        self.cached_tokens.is_some()
    }

    /// Its first step begins at position `start` of `prompt`; what the executor needs of it.
    pub(super) fn start(&mut self, id: RequestId, start: usize, prompt: &[u32]) -> BeginSequence {
        self.cached_tokens = Some(start);
        // A dropped receiver shows with the first token.
        drop(self.events.send(GenerateEvent::Started { queue_seconds: self.arrived.elapsed().as_secs_f64() }));
        BeginSequence { id, params: self.params.clone(), index: self.index, prompt: prompt.to_vec() }
    }

    /// Whether a step may be planned for it before its last token is known.
    pub(super) fn is_ahead(&self) -> bool {
        self.mask.is_none()
    }

    /// Bits of the tokens that are possible next, where not all are. All tokens so far were delivered.
    pub(super) fn mask(&mut self, vocab_size: usize) -> Option<Vec<u32>> {
        let mask = self.mask.as_mut()?;
        let mut bits = vec![0; vocab_size.div_ceil(32)];
        mask.allowed(&mut bits);
        Some(bits)
    }

    /// Takes the sampled token: text, stop conditions, event.
    pub(super) fn push(&mut self, sampled: Sampled, eos: &[u32], version: u64) -> Progress {
        let token = sampled.token;
        self.generated += 1;
        if let Some(mask) = &mut self.mask {
            mask.accept(token);
        }
        let stop_id = (!self.params.ignore_eos && eos.contains(&token)) || self.params.stop_token_ids.contains(&token);
        let has_text = !stop_id || self.params.include_stop;
        let (text, stop_text) = match self.advance_text(has_text.then_some(token)) {
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
        } else if self.generated >= self.params.max_tokens {
            self.end(FinishReason::Length)
        } else {
            Progress::Continues
        }
    }

    /// Text that is certain now, and whether a stop string is complete; `None` is a token that is no part of the text.
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
        let stop = self.text.as_ref().and_then(|(_, stops)| stops.found());
        let done = GenerateEvent::Done { reason, text, stop, cached_tokens: self.cached_tokens.unwrap_or(0) };
        // The receiver may have been dropped: the request is over in any case.
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

    /// Ends it early, with the text so far.
    pub(super) fn abort(&mut self) {
        self.end(FinishReason::Cancelled);
    }

    pub(super) fn fail(&mut self, error: Error) -> Progress {
        drop(self.events.send(GenerateEvent::Failed(error)));
        Progress::Ended(FinishReason::Cancelled)
    }
}
