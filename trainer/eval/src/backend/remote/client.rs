//! HTTP calls with retries, and what their answers must have.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::backend::remote::RemoteSettings;
use crate::task::question::EvalResponse;
use crate::{Error, Result};
use command::endpoint::{EVALUATED, HttpFailure};

/// One server.
pub(super) struct EvalClient {
    agent: ureq::Agent,
    /// Without `/v1` and without a slash at the end.
    root: String,
    model: String,
    key: Option<String>,
    retries: u32,
}

/// Longest pause before another attempt.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Bytes of an answer besides its lists, and of a server's description of its tokenizer.
const ENVELOPE_BYTES: usize = 64 << 10;
const INFO_BYTES: usize = 64 << 20;
/// Bytes of a token in JSON: its text a few times, escaped, its log-probability and its place.
const TOKEN_BYTES: usize = 4 << 10;

/// What rounding may add to a log-probability.
const ROUNDING: f64 = 1e-3;

/// Bytes of an answer about so many tokens.
fn about(tokens: usize) -> usize {
    tokens.saturating_add(16).saturating_mul(TOKEN_BYTES).saturating_add(ENVELOPE_BYTES)
}

impl EvalClient {
    pub(super) fn new(settings: &RemoteSettings) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(settings.timeout)))
            // The body of a refusal has the reason.
            .http_status_as_error(false)
            .tls_config(settings.tls.clone());
        Self {
            agent: config.build().into(),
            root: settings.root.clone(),
            model: settings.model.clone(),
            key: settings.key.clone(),
            retries: settings.retries,
        }
    }

    /// Calls until an answer of at most `most` bytes comes: a connection that fails, 429 and 5xx may pass.
    fn call(&self, route: &str, body: Option<&Map<String, Value>>, most: usize) -> Result<Value> {
        let url = format!("{}{route}", self.root);
        let mut attempt = 0;
        loop {
            let HttpFailure { what, again } = match self.once(&url, body, most) {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            let Some(wanted) = again.filter(|_| attempt < self.retries) else {
                let tried = if attempt > 0 { format!(" ({} attempts)", attempt + 1) } else { String::new() };
                return Err(Error::from(command::Error::Server { url, what: format!("{what}{tried}") }));
            };
            std::thread::sleep(wanted.unwrap_or(Duration::from_secs(1 << attempt.min(8))).min(LONGEST_PAUSE));
            attempt += 1;
        }
    }

    /// One call.
    fn once(&self, url: &str, body: Option<&Map<String, Value>>, most: usize) -> Result<Value, HttpFailure> {
        let bearer = self.key.as_ref().map(|key| format!("Bearer {key}"));
        let answer = match body {
            None => {
                let request = self.agent.get(url);
                bearer.iter().fold(request, |request, key| request.header("authorization", key)).call()
            }
            Some(body) => {
                let request = self.agent.post(url).header("content-type", "application/json");
                let request = bearer.iter().fold(request, |request, key| request.header("authorization", key));
                request.send(Value::Object(body.clone()).to_string())
            }
        };
        let answer = EVALUATED.take(answer, most as u64)?;
        let unread = |e| HttpFailure { what: format!("the answer is not JSON: {e}"), again: None };
        serde_json::from_slice(&answer.body).map_err(unread)
    }

    fn bad(&self, route: &str, what: &str) -> Error {
        Error::from(command::Error::Server {
            url: format!("{}{route}", self.root),
            what: format!("the answer has no {what}"),
        })
    }

    fn post(&self, route: &str, mut body: Map<String, Value>, most: usize) -> Result<Value> {
        body.insert("model".to_owned(), json!(self.model));
        self.call(route, Some(&body), most)
    }

    /// A completion.
    pub(super) fn complete(&self, body: Map<String, Value>) -> Result<EvalResponse> {
        const ROUTE: &str = "/v1/completions";
        let most = asked_for(&body);
        let answer = self.post(ROUTE, body, most)?;
        let choice = &answer["choices"][0];
        let text = choice["text"].as_str().ok_or_else(|| self.bad(ROUTE, "choices[0].text"))?;
        Ok(written(text, choice, &answer))
    }

    /// An answer to a conversation.
    pub(super) fn chat(&self, body: Map<String, Value>) -> Result<EvalResponse> {
        const ROUTE: &str = "/v1/chat/completions";
        let most = asked_for(&body);
        let answer = self.post(ROUTE, body, most)?;
        let choice = &answer["choices"][0];
        let message = &choice["message"];
        let text = message["content"].as_str().or_else(|| message["reasoning_content"].as_str().map(|_| ""));
        let text = text.ok_or_else(|| self.bad(ROUTE, "choices[0].message.content"))?;
        Ok(written(text, choice, &answer))
    }

    /// ln p of the tokens from `from` on, and whether each of them is the likeliest at its place.
    pub(super) fn score(&self, tokens: &[u32], from: usize) -> Result<(Vec<f64>, bool)> {
        const ROUTE: &str = "/v1/completions";
        let fields = [
            ("prompt", json!([tokens])),
            ("max_tokens", json!(1)),
            ("temperature", json!(0)),
            ("logprobs", json!(1)),
            ("echo", json!(true)),
        ];
        let body = fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let answer = self.post(ROUTE, body, about(tokens.len()))?;
        let logprobs = &answer["choices"][0]["logprobs"];
        let lists = logprobs["token_logprobs"].as_array().zip(logprobs["top_logprobs"].as_array());
        let (own, top) = lists.ok_or_else(|| self.bad(ROUTE, "choices[0].logprobs of the prompt (echo)"))?;
        // It may have continued the prompt by the token that was asked for.
        if !(tokens.len()..=tokens.len() + 1).contains(&own.len()) || top.len() != own.len() {
            let what = format!("log-probabilities of the {} prompt tokens (echo), but of {}", tokens.len(), own.len());
            return Err(self.bad(ROUTE, &what));
        }
        let mut greedy = true;
        let mut values = Vec::with_capacity(tokens.len() - from);
        for (own, top) in own[from..tokens.len()].iter().zip(&top[from..]) {
            let own = own.as_f64().filter(|own| *own <= ROUNDING);
            let own = own.ok_or_else(|| self.bad(ROUTE, "a log-probability, at most 0, for every token"))?;
            let top = top.as_object().ok_or_else(|| self.bad(ROUTE, "alternatives for every token"))?;
            greedy &= top.values().filter_map(Value::as_f64).all(|other| other <= own);
            values.push(own);
        }
        Ok((values, greedy))
    }

    /// Token ids of a text, without any that the tokenizer adds.
    pub(super) fn tokenize(&self, text: &str) -> Result<Vec<u32>> {
        const ROUTE: &str = "/tokenize";
        let fields = [("prompt", json!(text)), ("add_special_tokens", json!(false))];
        let body = fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        // A byte is a token at most.
        let answer = self.post(ROUTE, body, about(text.len())).map_err(|e| match e {
            Error::Input(command::Error::Server { url, what }) => {
                let need = "log-likelihoods need the server's tokenizer (POST /tokenize, as arle and vLLM serve it)";
                Error::from(command::Error::Server { url, what: format!("{what}; {need}") })
            }
            other => other,
        })?;
        serde_json::from_value(answer["tokens"].clone()).map_err(|_| self.bad(ROUTE, "list of `tokens`"))
    }

    /// The token that texts begin with, else the one that they end with.
    pub(super) fn prefix(&self) -> Result<u32> {
        const ROUTE: &str = "/tokenizer_info";
        let info = self.call(ROUTE, None, INFO_BYTES)?;
        let token = info["bos_token"].as_str().or(info["eos_token"].as_str());
        let token = token.ok_or_else(|| self.bad(ROUTE, "`bos_token` or `eos_token`"))?;
        self.tokenize(token)?.first().copied().ok_or_else(|| self.bad(ROUTE, "token with an id"))
    }
}

/// Bytes of a response of as many tokens as `body` requests.
fn asked_for(body: &Map<String, Value>) -> usize {
    let tokens = body.get("max_tokens").and_then(Value::as_u64).unwrap_or(0);
    about(usize::try_from(tokens).unwrap_or(usize::MAX))
}

fn written(text: &str, choice: &Value, answer: &Value) -> EvalResponse {
    EvalResponse::Text {
        text: text.to_owned(),
        finish_reason: choice["finish_reason"].as_str().unwrap_or_default().to_owned(),
        prompt_tokens: answer["usage"]["prompt_tokens"].as_u64().unwrap_or(0) as usize,
        token_ids: Vec::new(),
        logprobs: Vec::new(),
    }
}
