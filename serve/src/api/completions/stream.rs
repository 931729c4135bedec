//! A completion in chunks.

use serde_json::{Map, Value, json};

use super::{KIND, Scored, Shape};
use crate::api::envelope::{Envelope, Streaming, Usage};
use crate::api_error::ApiError;
use crate::generation::Event;
use crate::logprobs::Lists;
use crate::sse::{Chunks, Encoder};

/// What comes before a choice's completion.
struct Beginning {
    text: String,
    logprobs: Option<Lists>,
    /// Fields besides.
    more: Map<String, Value>,
}

/// The answer in chunks.
pub(super) struct Stream {
    envelope: Envelope,
    streaming: Streaming,
    shape: Shape,
    usage: Usage,
    /// Choices of each prompt.
    copies: usize,
    /// By choice: what comes before it, until it is sent.
    beginnings: Vec<Option<Beginning>>,
    /// By choice: characters sent.
    offsets: Vec<usize>,
}

impl Stream {
    pub(super) fn new(
        envelope: Envelope,
        streaming: Streaming,
        shape: Shape,
        prompts: Vec<Scored>,
        count: usize,
    ) -> Result<Self, ApiError> {
        let copies = count / prompts.len();
        let usage = Usage { prompt: prompts.iter().map(|scored| scored.prompt.ids.len()).sum(), ..Usage::default() };
        let mut beginnings = Vec::with_capacity(count);
        for scored in prompts.iter().flat_map(|scored| std::iter::repeat_n(scored, copies)) {
            let (text, logprobs) = shape.beginning(scored)?;
            let mut more = Map::new();
            if shape.token_ids {
                more.insert("prompt_token_ids".into(), json!(scored.prompt.ids));
            }
            if let Some(listed) = &scored.listed {
                more.insert("prompt_logprobs".into(), json!(listed));
            }
            beginnings.push((!text.is_empty() || !more.is_empty()).then_some(Beginning { text, logprobs, more }));
        }
        Ok(Self { envelope, streaming, shape, usage, copies, beginnings, offsets: vec![0; count] })
    }

    fn chunk(&self, choice: Value) -> Value {
        self.streaming.count(self.envelope.object(KIND, json!([choice])), self.usage)
    }
}

impl Encoder for Stream {
    fn begin(&mut self, chunks: &mut Chunks) {
        for index in 0..self.beginnings.len() {
            let Some(Beginning { text, logprobs, more }) = self.beginnings[index].take() else { continue };
            self.offsets[index] = text.chars().count();
            let mut choice = json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": null});
            if let Some(choice) = choice.as_object_mut() {
                choice.extend(more);
            }
            chunks.push_back(self.chunk(choice));
        }
    }

    fn event(&mut self, index: usize, event: Event, chunks: &mut Chunks) -> Result<(), ApiError> {
        let mut choice = json!({"index": index, "text": "", "logprobs": null, "finish_reason": null});
        match event {
            Event::Token(token) => {
                self.envelope.computed_by(token.version);
                self.usage.completion += 1;
                let plain = self.shape.logprobs.is_none() && !self.shape.token_ids;
                if plain && token.text.is_empty() {
                    return Ok(());
                }
                if let (Some(_), Some(names)) = (self.shape.logprobs, &self.shape.names) {
                    let mut lists = Lists::default();
                    lists.push_sampled(names, self.offsets[index], &token);
                    choice["logprobs"] = json!(lists);
                }
                if self.shape.token_ids {
                    choice["token_ids"] = json!([token.token]);
                }
                self.offsets[index] += token.text.chars().count();
                choice["text"] = json!(token.text);
            }
            Event::End { reason, text, cached_tokens, .. } => {
                // Copies share their prompt; what the first one found counts.
                if index.is_multiple_of(self.copies) {
                    self.usage.cached += cached_tokens;
                }
                choice["text"] = json!(text);
                choice["finish_reason"] = json!(reason.as_str());
            }
        }
        chunks.push_back(self.chunk(choice));
        Ok(())
    }

    fn end(&mut self, chunks: &mut Chunks) {
        chunks.extend(self.streaming.last(self.envelope.object(KIND, json!([])), self.usage));
    }
}
