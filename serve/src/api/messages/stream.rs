//! A message in one piece, and as the events of its life.

use runtime::request::{FinishReason, TokenEvent};
use serde_json::{Value, json};

use super::super::envelope::{Usage, versions};
use super::blocks::Blocks;
use super::errors;
use super::object::{Ended, Head, usage};
use crate::api_error::ApiError;
use crate::generation::{Event, Finished};
use crate::sse::{Chunks, Encoder};

/// The message in one piece.
pub(super) fn whole(head: Head, mut blocks: Blocks, mut usage: Usage, one: Finished) -> Value {
    let mut events = Vec::new();
    for token in &one.tokens {
        blocks.token(token, &mut events);
    }
    blocks.end(&one.rest, one.reason, &mut events);
    usage.completion = one.tokens.len();
    usage.reasoning = blocks.reader.reasoning_tokens;
    let ending = head.ending(&Ended { reason: one.reason, stop: one.stop }, &blocks, usage);
    let mut object = head.object(&blocks.done, Some(&ending), usage);
    object["weights_versions"] = json!(versions(&one.tokens));
    object
}

/// The message in events.
pub(super) struct Stream {
    head: Head,
    blocks: Blocks,
    usage: Usage,
    versions: Vec<u64>,
    finished: bool,
}

impl Stream {
    pub(super) fn new(head: Head, blocks: Blocks, usage: Usage) -> Self {
        Self { head, blocks, usage, versions: Vec::new(), finished: false }
    }

    fn token(&mut self, token: &TokenEvent, chunks: &mut Chunks) {
        if self.versions.last() != Some(&token.version) {
            self.versions.push(token.version);
        }
        self.usage.completion += 1;
        let mut events = Vec::new();
        self.blocks.token(token, &mut events);
        chunks.extend(events);
    }

    /// Nothing more comes but this text.
    fn finish(&mut self, ended: &Ended, text: &str, chunks: &mut Chunks) {
        self.finished = true;
        let mut events = Vec::new();
        self.blocks.end(text, ended.reason, &mut events);
        chunks.extend(events);
        self.usage.reasoning = self.blocks.reader.reasoning_tokens;
        let ending = self.head.ending(ended, &self.blocks, self.usage);
        chunks.push_back(json!({
            "type": "message_delta",
            "delta": ending,
            "usage": usage(self.usage),
            "weights_versions": self.versions,
        }));
        chunks.push_back(json!({"type": "message_stop"}));
    }
}

impl Encoder for Stream {
    const TYPED: bool = true;

    fn begin(&mut self, chunks: &mut Chunks) {
        let message = self.head.object(&[], None, self.usage);
        chunks.push_back(json!({"type": "message_start", "message": message}));
        chunks.push_back(json!({"type": "ping"}));
    }

    fn event(&mut self, _choice: usize, event: Event, chunks: &mut Chunks) -> Result<(), ApiError> {
        match event {
            Event::Token(token) => self.token(&token, chunks),
            Event::End { reason, text, stop, .. } => self.finish(&Ended { reason, stop }, &text, chunks),
        }
        Ok(())
    }

    fn end(&mut self, chunks: &mut Chunks) {
        // Where no token was asked for, nothing has happened.
        if !self.finished {
            self.finish(&Ended { reason: FinishReason::Length, stop: None }, "", chunks);
        }
    }

    fn fail(&mut self, error: &ApiError, chunks: &mut Chunks) {
        chunks.push_back(errors::body(error));
    }
}
