//! Requests of a document as token ids.

use std::ops::Range;
use std::sync::Arc;

use runtime::sampler::SamplingParams;
use runtime::text::Tokenizer;

use crate::Result;
use crate::backend::local::LocalSettings;
use crate::prompt::encode::{self, ScoredTail};
use crate::prompt::length_limit::{LengthOverflow, LongPrompt};
use crate::task::question::{EvalRequest, Prompt};

/// One piece of a document's work.
#[derive(Debug, Clone)]
pub(super) enum EncodedRequest {
    Generate { prompt: Vec<u32>, params: Box<SamplingParams>, index: u64, cut: usize },
    Score(ScoredTail),
}

/// What becomes one response.
#[derive(Debug, Clone)]
pub(super) enum ResponseKind {
    Text,
    Pair,
    /// Several windows of one text.
    Windows,
}

/// A document's pieces, and which of them make which response.
#[derive(Debug, Clone, Default)]
pub(crate) struct EncodedDocument {
    pub(super) pieces: Vec<EncodedRequest>,
    pub(super) responses: Vec<(ResponseKind, Range<usize>)>,
}

impl EncodedDocument {
    fn push(&mut self, shape: ResponseKind, pieces: impl IntoIterator<Item = EncodedRequest>) {
        let first = self.pieces.len();
        self.pieces.extend(pieces);
        self.responses.push((shape, first..self.pieces.len()));
    }
}

/// From texts to token ids.
pub(super) struct RequestEncoder {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) prefix: u32,
    /// Spellings of the first token, of texts that are scored and of those that are continued. Where a text has it already,
    /// the tokenizer adds no special tokens: lm-evaluation-harness' rule.
    first: [Option<String>; 2],
    pub(super) eos: Vec<u32>,
    pub(super) settings: LocalSettings,
}

impl RequestEncoder {
    pub(super) fn new(tokenizer: Arc<Tokenizer>, prefix: u32, eos: Vec<u32>, settings: LocalSettings) -> Result<Self> {
        let spelled = |id: Option<u32>| id.map(|id| tokenizer.decode(&[id], false)).transpose();
        let first = [spelled(Some(prefix))?, spelled(tokenizer.bos())?];
        Ok(Self { tokenizer, prefix, first, eos, settings })
    }

    fn encode(&self, text: &str, first: &Option<String>) -> Result<Vec<u32>> {
        let has_it = first.as_ref().is_some_and(|first| text.starts_with(first));
        Ok(self.tokenizer.encode(text, !has_it)?)
    }

    pub(super) fn encode_document(
        &self,
        requests: Vec<EvalRequest>,
        overflow: &mut LengthOverflow,
    ) -> Result<EncodedDocument> {
        let mut work = EncodedDocument::default();
        for request in requests {
            match request {
                EvalRequest::GenerateUntil { prompt, until, max_tokens, repeat } => {
                    let piece = self.generate(prompt, until, max_tokens, repeat, overflow)?;
                    work.push(ResponseKind::Text, [piece]);
                }
                EvalRequest::LogLikelihood { context, continuation } => {
                    let tail = self.pair(&context, &continuation, overflow)?;
                    work.push(ResponseKind::Pair, [EncodedRequest::Score(tail)]);
                }
                EvalRequest::MultipleChoice { pairs } => {
                    for (context, continuation) in pairs {
                        let tail = self.pair(&context, &continuation, overflow)?;
                        work.push(ResponseKind::Pair, [EncodedRequest::Score(tail)]);
                    }
                }
                EvalRequest::Rolling { text } => {
                    let tokens = self.encode(&text, &self.first[0])?;
                    let windows = encode::windows(&tokens, self.prefix, self.settings.max_length);
                    work.push(ResponseKind::Windows, windows.into_iter().map(EncodedRequest::Score));
                }
            }
        }
        Ok(work)
    }

    fn pair(&self, context: &str, continuation: &str, overflow: &mut LengthOverflow) -> Result<ScoredTail> {
        let encode = |text: &str, special: bool| {
            if special { self.encode(text, &self.first[0]) } else { Ok(self.tokenizer.encode(text, false)?) }
        };
        let tail = encode::pair(context, continuation, self.prefix, encode)?;
        let limit = self.settings.max_length;
        if tail.fits(limit) {
            return Ok(tail);
        }
        let length = tail.tokens.len() - 1;
        let cut = if self.settings.truncate { tail.clone().cut_to(limit) } else { None };
        Ok(cut.unwrap_or_else(|| {
            overflow.found(LongPrompt { prompt: length, new: 0, limit });
            tail
        }))
    }

    fn generate(
        &self,
        prompt: Prompt,
        until: Vec<String>,
        max_tokens: usize,
        repeat: u64,
        overflow: &mut LengthOverflow,
    ) -> Result<EncodedRequest> {
        let Prompt::Text(text) = prompt else { unreachable!("conversations are rendered before") };
        let mut prompt = self.encode(&text, &self.first[1])?;
        let max_tokens = self.settings.rules.max_new_tokens.unwrap_or(max_tokens);
        let limit = self.settings.max_length;
        let over = (prompt.len() + max_tokens).saturating_sub(limit);
        let cut = if self.settings.truncate && over < prompt.len() { over } else { 0 };
        if over > cut {
            overflow.found(LongPrompt { prompt: prompt.len(), new: max_tokens, limit });
        }
        prompt.drain(..cut);
        // Special tokens are no part of the text, so one that ends an answer is looked for by its id too.
        let ids = until.iter().filter_map(|stop| self.tokenizer.id(stop).filter(|&id| self.tokenizer.is_special(id)));
        let params =
            SamplingParams { max_tokens, stop_token_ids: ids.collect(), stop: until, ..self.settings.sampling.clone() };
        Ok(EncodedRequest::Generate { prompt, params: Box::new(params), index: repeat, cut })
    }
}
