//! What chat answers, in one piece and in chunks.

use runtime::request::TokenEvent;
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::envelope::{Envelope, Streaming, Usage, token_ids, versions};
use crate::api_error::ApiError;
use crate::generation::{Event, Finished};
use crate::ids;
use crate::logprobs::{Names, chat_entry};
use crate::output::{Call, Part};
use crate::prompt_logprobs::PromptLogprobs;
use crate::reader::{Reader, Reading};
use crate::sse::{Chunks, Encoder};

/// What is to be shown of an answer.
pub(super) struct Shape {
    pub(super) logprobs: bool,
    pub(super) token_ids: bool,
    pub(super) names: Names,
}

impl Shape {
    fn logprobs(&self, tokens: &[TokenEvent]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let content: Vec<Value> = tokens.iter().map(|token| chat_entry(&self.names, token)).collect();
        json!({"content": content, "refusal": null})
    }
}

fn call(Call { name, arguments }: Call) -> Value {
    json!({"id": ids::fresh("call_"), "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// What an answer says about its prompt.
pub(super) struct AboutPrompt {
    pub(super) ids: Option<Vec<u32>>,
    pub(super) logprobs: Option<PromptLogprobs>,
}

impl AboutPrompt {
    /// Adds it, once.
    fn put(&mut self, answer: &mut Value) {
        if let Some(ids) = self.ids.take() {
            answer["prompt_token_ids"] = json!(ids);
        }
        if let Some(logprobs) = self.logprobs.take() {
            answer["prompt_logprobs"] = json!(logprobs);
        }
    }
}

/// The answer in one piece, of which one member is not held as JSON.
#[derive(Serialize)]
pub(super) struct Whole {
    #[serde(flatten)]
    rest: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
}

pub(super) fn whole(
    mut envelope: Envelope,
    shape: &Shape,
    reading: Reading,
    mut usage: Usage,
    mut about_prompt: AboutPrompt,
    finished: &[Finished],
) -> Whole {
    usage.cached = finished.first().map_or(0, |one| one.cached_tokens);
    let mut choices = Vec::with_capacity(finished.len());
    for (index, one) in finished.iter().enumerate() {
        usage.completion += one.tokens.len();
        if let Some(token) = one.tokens.last() {
            envelope.computed_by(token.version);
        }
        let (message, reason) = message(reading, one, &mut usage);
        let mut choice = json!({
            "index": index,
            "message": message,
            "logprobs": shape.logprobs(&one.tokens),
            "finish_reason": reason,
            "weights_versions": versions(&one.tokens),
        });
        if shape.token_ids {
            choice["token_ids"] = json!(token_ids(&one.tokens));
        }
        choices.push(choice);
    }
    let mut answer = envelope.object("chat.completion", Value::Array(choices));
    answer["usage"] = usage.body();
    let prompt_logprobs = about_prompt.logprobs.take();
    about_prompt.put(&mut answer);
    Whole { rest: answer, prompt_logprobs }
}

fn message(reading: Reading, one: &Finished, usage: &mut Usage) -> (Value, &'static str) {
    let mut reader = Reader::new(reading);
    let mut parts: Vec<Part> = one.tokens.iter().flat_map(|token| reader.token(&token.text)).collect();
    parts.extend(reader.end(&one.rest));
    usage.reasoning += reader.reasoning_tokens;
    let (mut content, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    for part in parts {
        match part {
            Part::Content(text) => content.push_str(&text),
            Part::Reasoning(text) => reasoning.push_str(&text),
            Part::Call(one) => calls.push(call(one)),
        }
    }
    let content = if content.is_empty() && !calls.is_empty() { Value::Null } else { json!(content) };
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if !reasoning.is_empty() {
        message["reasoning_content"] = json!(reasoning);
    }
    if !calls.is_empty() {
        message["tool_calls"] = json!(calls);
    }
    (message, reader.reason(one.reason))
}

/// The answer in chunks.
pub(super) struct Stream {
    envelope: Envelope,
    streaming: Streaming,
    shape: Shape,
    usage: Usage,
    about_prompt: AboutPrompt,
    /// One for each choice.
    readers: Vec<Reader>,
}

impl Stream {
    pub(super) fn new(
        envelope: Envelope,
        streaming: Streaming,
        shape: Shape,
        reading: Reading,
        usage: Usage,
        about_prompt: AboutPrompt,
        choices: usize,
    ) -> Self {
        let readers = (0..choices).map(|_| Reader::new(reading)).collect();
        Self { envelope, streaming, shape, usage, about_prompt, readers }
    }

    fn chunk(&self, index: usize, delta: &Value, logprobs: &Value, reason: Option<&str>) -> Value {
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason});
        self.streaming.count(self.envelope.object("chat.completion.chunk", json!([choice])), self.usage)
    }

    /// The deltas for parts of a choice, of whose calls `calls` were sent.
    fn deltas(parts: Vec<Part>, mut calls: usize) -> Vec<Value> {
        let delta = |part| match part {
            Part::Content(text) => json!({"content": text}),
            Part::Reasoning(text) => json!({"reasoning_content": text}),
            Part::Call(one) => {
                let mut call = call(one);
                call["index"] = json!(calls);
                calls += 1;
                json!({"tool_calls": [call]})
            }
        };
        parts.into_iter().map(delta).collect()
    }

    fn token(&mut self, index: usize, token: &TokenEvent, chunks: &mut Chunks) {
        self.envelope.computed_by(token.version);
        self.usage.completion += 1;
        let reader = &mut self.readers[index];
        let (calls, reasoning) = (reader.calls, reader.reasoning_tokens);
        let parts = reader.token(&token.text);
        self.usage.reasoning += reader.reasoning_tokens - reasoning;
        let mut deltas = Self::deltas(parts, calls);
        // What is said about a token is said in its own chunk, text or not.
        if deltas.is_empty() && (self.shape.logprobs || self.shape.token_ids) {
            deltas.push(json!({"content": ""}));
        }
        for (place, delta) in deltas.iter().enumerate() {
            let logprobs = if place == 0 { self.shape.logprobs(std::slice::from_ref(token)) } else { Value::Null };
            let mut chunk = self.chunk(index, delta, &logprobs, None);
            if self.shape.token_ids && place == 0 {
                chunk["choices"][0]["token_ids"] = json!([token.token]);
            }
            chunks.push_back(chunk);
        }
    }
}

impl Encoder for Stream {
    fn begin(&mut self, chunks: &mut Chunks) {
        for index in 0..self.readers.len() {
            let mut chunk = self.chunk(index, &json!({"role": "assistant", "content": ""}), &Value::Null, None);
            self.about_prompt.put(&mut chunk);
            chunks.push_back(chunk);
        }
    }

    fn event(&mut self, index: usize, event: Event, chunks: &mut Chunks) -> Result<(), ApiError> {
        match event {
            Event::Token(token) => self.token(index, &token, chunks),
            Event::End { reason, text, cached_tokens } => {
                // The choices share their prompt; what the first one found counts.
                if index == 0 {
                    self.usage.cached = cached_tokens;
                }
                let reader = &mut self.readers[index];
                let calls = reader.calls;
                let parts = reader.end(&text);
                let reason = reader.reason(reason);
                for delta in Self::deltas(parts, calls) {
                    chunks.push_back(self.chunk(index, &delta, &Value::Null, None));
                }
                chunks.push_back(self.chunk(index, &json!({}), &Value::Null, Some(reason)));
            }
        }
        Ok(())
    }

    fn end(&mut self, chunks: &mut Chunks) {
        chunks.extend(self.streaming.last(self.envelope.object("chat.completion.chunk", json!([])), self.usage));
    }
}
