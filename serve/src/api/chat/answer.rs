//! What chat answers, in one piece and in chunks.

use runtime::request::TokenEvent;
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::envelope::{Envelope, Streaming, Usage, token_ids, versions};
use crate::api_error::ApiError;
use crate::generation::{Event, Finished};
use crate::ids;
use crate::logprobs::{Names, chat_entry};
use crate::output::Part;
use crate::output_reader::{Reader, Reading};
use crate::prompt_logprobs::PromptLogprobs;
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

fn call(name: &str) -> Value {
    json!({"id": ids::fresh("call_"), "type": "function", "function": {"name": name, "arguments": ""}})
}

/// Appends to the arguments of a call.
fn argue(call: &mut Value, more: &str) {
    if let Value::String(arguments) = &mut call["function"]["arguments"] {
        arguments.push_str(more);
    }
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
    reading: &Reading,
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

fn message(reading: &Reading, one: &Finished, usage: &mut Usage) -> (Value, &'static str) {
    let mut reader = Reader::new(reading.clone());
    let mut parts: Vec<Part> = one.tokens.iter().flat_map(|token| reader.token(&token.text)).collect();
    parts.extend(reader.end(&one.rest, one.reason));
    usage.reasoning += reader.reasoning_tokens;
    let (mut content, mut reasoning, mut calls) = (String::new(), String::new(), Vec::<Value>::new());
    for part in parts {
        match part {
            Part::Content(text) => content.push_str(&text),
            Part::Reasoning(text) => reasoning.push_str(&text),
            Part::Call(name) => calls.push(call(&name)),
            Part::Arguments(more) => calls.iter_mut().last().into_iter().for_each(|call| argue(call, &more)),
            Part::CallEnd => {}
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
        reading: &Reading,
        usage: Usage,
        about_prompt: AboutPrompt,
        choices: usize,
    ) -> Self {
        let readers = (0..choices).map(|_| Reader::new(reading.clone())).collect();
        Self { envelope, streaming, shape, usage, about_prompt, readers }
    }

    fn chunk(&self, index: usize, delta: &Value, logprobs: &Value, reason: Option<&str>) -> Value {
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason});
        self.streaming.count(self.envelope.object("chat.completion.chunk", json!([choice])), self.usage)
    }

    /// The deltas for parts of a choice, of whose calls `calls` were begun.
    fn deltas(parts: Vec<Part>, mut calls: usize) -> Vec<Value> {
        let mut deltas = Vec::with_capacity(parts.len());
        for part in parts {
            match part {
                Part::Content(text) => deltas.push(json!({"content": text})),
                Part::Reasoning(text) => deltas.push(json!({"reasoning_content": text})),
                Part::Call(name) => {
                    let mut call = call(&name);
                    call["index"] = json!(calls);
                    calls += 1;
                    deltas.push(json!({"tool_calls": [call]}));
                }
                Part::Arguments(more) => match deltas.last_mut() {
                    // With what is certain at once a call begins.
                    Some(delta) if delta["tool_calls"][0]["id"].is_string() => {
                        argue(&mut delta["tool_calls"][0], &more)
                    }
                    _ => {
                        let call = json!({"index": calls.saturating_sub(1), "function": {"arguments": more}});
                        deltas.push(json!({"tool_calls": [call]}));
                    }
                },
                Part::CallEnd => {}
            }
        }
        deltas
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
            Event::End { reason, text, cached_tokens, .. } => {
                // The choices share their prompt; what the first one found counts.
                if index == 0 {
                    self.usage.cached = cached_tokens;
                }
                let reader = &mut self.readers[index];
                let calls = reader.calls;
                let parts = reader.end(&text, reason);
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
