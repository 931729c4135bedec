//! One running generation: from logits to tokens, text and events.

use std::sync::Arc;
use std::time::Instant;

use autograd::Device;
use autograd::ops::{Draw, DrawRow, Drawn, Extras, Rules};

use crate::config::ModelConfig;
use crate::ids::ModelId;
use crate::request::{
    CompletionText, FinishReason, GenerateEvent, GenerateRequest, RequestError, TokenEvent, TokenMask,
};
use crate::sampler::{
    RngKey, Sampled, SamplingError, SamplingParams, Scratch, StopMatcher, TokenHistory, from_device, sample,
};
use crate::sink::Sink;
use crate::text::{Detokenizer, Tokenizer};
use crate::{Error, Result};

/// Sampling, text and stop state of a running generation.
pub(super) struct GenerationState {
    model: ModelId,
    params: SamplingParams,
    index: u64,
    prompt_len: usize,
    /// Tokens that were delivered.
    generated: usize,
    sampler: Sampler,
    mask: Option<Mask>,
    text: Option<(Detokenizer, StopMatcher)>,
    events: Sink<GenerateEvent>,
    /// Prompt tokens that the first step did not compute; `None` before it.
    cached_tokens: Option<usize>,
    arrived: Instant,
}

/// Tokens that the caller allows, from draw to draw.
struct Mask {
    source: Box<dyn TokenMask>,
    /// A bit for each token of the vocabulary, for the next draw.
    bits: Vec<u32>,
}

/// Where its tokens are sampled. It has the tokens of steps whose results are not processed yet.
enum Sampler {
    Host(TokenHistory),
    Gpu {
        ordinal: usize,
        /// Logits processors besides temperature and truncation, if any; made for the first step, since a request that
        /// waits should take no memory of the GPU.
        extras: Option<Extras>,
    },
}

/// Calls `f` with a request's logits processors for a GPU.
fn with_rules<T>(p: &SamplingParams, prompt: &[u32], config: &ModelConfig, f: impl FnOnce(&Rules<'_>) -> T) -> T {
    let bias: Vec<(u32, f32)> = p.logit_bias.iter().map(|(&id, &bias)| (id, bias)).collect();
    let masked: Vec<u32> = if p.min_tokens > 0 { p.ending_ids(&config.eos_token_ids).collect() } else { vec![] };
    f(&Rules {
        logit_bias: &bias,
        masked: &masked,
        repetition: p.repetition_penalty,
        frequency: p.frequency_penalty,
        presence: p.presence_penalty,
        prompt,
        top: p.logprobs.unwrap_or(0),
        given: &p.logprob_token_ids,
    })
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
        config: &ModelConfig,
        device: Device,
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
        let sampler = match device {
            Device::Cpu | Device::Portable => Sampler::Host(TokenHistory::new(&request.prompt)),
            Device::Cuda(ordinal) => {
                with_rules(&request.params, &[], config, |rules| rules.check())?;
                Sampler::Gpu { ordinal, extras: None }
            }
        };
        Ok(Self {
            sampler,
            mask: mask.map(|source| Mask { source, bits: vec![0; config.vocab_size.div_ceil(32)] }),
            generated: 0,
            prompt_len: request.prompt.len(),
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

    /// Its first step begins at position `start` of `prompt`.
    ///
    /// # Errors
    /// A GPU that is out of memory.
    pub(super) fn start(&mut self, start: usize, prompt: &[u32], config: &ModelConfig) -> Result<()> {
        self.cached_tokens = Some(start);
        // A dropped receiver shows with the first token.
        drop(self.events.send(GenerateEvent::Started { queue_seconds: self.arrived.elapsed().as_secs_f64() }));
        if let Sampler::Gpu { ordinal, extras } = &mut self.sampler {
            let make = |rules: &Rules<'_>| Extras::new(*ordinal, config.vocab_size, rules);
            *extras = with_rules(&self.params, prompt, config, make)?;
        }
        Ok(())
    }

    /// Whether a step may be planned for it before its last token is known.
    pub(super) fn is_ahead(&self) -> bool {
        self.mask.is_none()
    }

    /// Computes which tokens are allowed next. All tokens so far were delivered.
    pub(super) fn compute_mask(&mut self) {
        if let Some(Mask { source, bits }) = &mut self.mask {
            bits.fill(0);
            source.allowed(bits);
        }
    }

    fn allowed(&self) -> Option<&[u32]> {
        self.mask.as_ref().map(|mask| &mask.bits[..])
    }

    /// Samples the next token on the host.
    pub(super) fn draw(&self, logits: &[f32], eos: &[u32]) -> Result<Sampled, SamplingError> {
        let Sampler::Host(history) = &self.sampler else { unreachable!("the logits are where tokens are drawn") };
        let position = (self.prompt_len + history.generated()) as u64;
        let key = RngKey { seed: self.params.seed, request: self.index, position };
        sample(logits, &self.params, eos, history, self.allowed(), key, &mut Scratch::default())
    }

    /// Adds a token that the host sampled to the history.
    pub(super) fn record_sampled(&mut self, token: u32) {
        if let Sampler::Host(history) = &mut self.sampler {
            history.push(token);
        }
    }

    /// How a GPU samples the token at `position`.
    pub(super) fn sample_args(&self, position: usize) -> DrawRow<'_> {
        let p = &self.params;
        let draw = Draw {
            temperature: p.temperature,
            top_k: p.top_k.unwrap_or(0),
            top_p: p.top_p,
            min_p: p.min_p,
            seed: p.seed,
            request: self.index,
            position: position as u64,
        };
        let extras = match &self.sampler {
            Sampler::Gpu { extras, .. } => extras.as_ref(),
            Sampler::Host(_) => None,
        };
        DrawRow { draw, extras, masks: position - self.prompt_len < p.min_tokens, allowed: self.allowed() }
    }

    /// A token sampled on a GPU.
    pub(super) fn sampled(&self, drawn: Drawn, config: &ModelConfig) -> Result<Sampled, SamplingError> {
        let masks = self.generated < self.params.min_tokens;
        let ending = if masks { self.params.ending_ids(&config.eos_token_ids).count() } else { 0 };
        let allowed = |bits: &[u32]| bits.iter().map(|word| word.count_ones() as usize).sum();
        let masked = ending + self.allowed().map_or(0, |bits| config.vocab_size.saturating_sub(allowed(bits)));
        from_device(drawn, config.vocab_size, masked)
    }

    /// Takes the drawn token: text, stop conditions, event.
    pub(super) fn push(&mut self, sampled: Sampled, eos: &[u32], version: u64) -> Progress {
        let token = sampled.token;
        self.generated += 1;
        if let Some(mask) = &mut self.mask {
            mask.source.accept(token);
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
