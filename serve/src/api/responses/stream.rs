//! A response in one piece, and as the events of its life.

use runtime::request::{FinishReason, TokenEvent};
use serde_json::{Value, json};

use super::super::envelope::{Usage, versions};
use super::object::{Head, Status};
use super::output::Output;
use crate::api_error::ApiError;
use crate::generation::{Event, Finished};
use crate::sse::{Chunks, Encoder};

/// The response in one piece.
pub(super) fn whole(mut head: Head, mut output: Output, mut usage: Usage, one: Finished) -> Value {
    let mut events = Vec::new();
    for token in &one.tokens {
        output.token(token, &mut events);
        head.envelope.computed_by(token.version);
    }
    usage.completion = one.tokens.len();
    usage.cached = one.cached_tokens;
    usage.reasoning = output.reader.reasoning_tokens;
    let status = Status::Ended(one.reason, usage);
    output.end(&one.rest, one.reason, status.name(), &mut events);
    head.object(&status, &output.items, &versions(&one.tokens))
}

/// The response in events, numbered from 0.
pub(super) struct Stream {
    head: Head,
    output: Output,
    usage: Usage,
    versions: Vec<u64>,
    sent: usize,
    finished: bool,
}

impl Stream {
    pub(super) fn new(head: Head, output: Output, usage: Usage) -> Self {
        Self { head, output, usage, versions: Vec::new(), sent: 0, finished: false }
    }

    /// Sends an event.
    fn send(&mut self, mut event: Value, chunks: &mut Chunks) {
        event["sequence_number"] = json!(self.sent);
        self.sent += 1;
        chunks.push_back(event);
    }

    fn send_all(&mut self, events: Vec<Value>, chunks: &mut Chunks) {
        events.into_iter().for_each(|event| self.send(event, chunks));
    }

    /// An event of the whole response.
    fn about_all(&self, name: &str, status: &Status<'_>) -> Value {
        let response = self.head.object(status, &self.output.items, &self.versions);
        json!({"type": format!("response.{name}"), "response": response})
    }

    fn token(&mut self, token: &TokenEvent, chunks: &mut Chunks) {
        self.head.envelope.computed_by(token.version);
        if self.versions.last() != Some(&token.version) {
            self.versions.push(token.version);
        }
        self.usage.completion += 1;
        let mut events = Vec::new();
        self.output.token(token, &mut events);
        self.send_all(events, chunks);
    }

    /// Nothing more comes but this text.
    fn finish(&mut self, reason: FinishReason, text: &str, cached_tokens: usize, chunks: &mut Chunks) {
        self.finished = true;
        self.usage.cached = cached_tokens;
        self.usage.reasoning = self.output.reader.reasoning_tokens;
        let status = Status::Ended(reason, self.usage);
        let mut events = Vec::new();
        self.output.end(text, reason, status.name(), &mut events);
        self.send_all(events, chunks);
        self.send(self.about_all(status.name(), &status), chunks);
    }
}

impl Encoder for Stream {
    const TYPED: bool = true;

    fn begin(&mut self, chunks: &mut Chunks) {
        for name in ["created", "in_progress"] {
            self.send(self.about_all(name, &Status::InProgress), chunks);
        }
    }

    fn event(&mut self, _choice: usize, event: Event, chunks: &mut Chunks) -> Result<(), ApiError> {
        match event {
            Event::Token(token) => self.token(&token, chunks),
            Event::End { reason, text, cached_tokens, .. } => self.finish(reason, &text, cached_tokens, chunks),
        }
        Ok(())
    }

    fn end(&mut self, chunks: &mut Chunks) {
        // Where no token was asked for, nothing has happened.
        if !self.finished {
            self.finish(FinishReason::Length, "", 0, chunks);
        }
    }

    fn fail(&mut self, error: &ApiError, chunks: &mut Chunks) {
        let status = Status::Failed(error);
        self.send(self.about_all(status.name(), &status), chunks);
    }
}
