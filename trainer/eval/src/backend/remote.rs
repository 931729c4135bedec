//! A server with OpenAI's routes: completions with echoed log-probabilities, or chat.

mod client;

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::Result;
use crate::backend::Backend;
use crate::prompt::context::Render;
use crate::prompt::encode::{self, ScoredTail};
use crate::prompt::length_limit::{LengthOverflow, LongPrompt};
use crate::task::question::{EvalRequest, EvalResponse, Prompt};
use client::EvalClient;

/// How a server is evaluated.
#[derive(Debug, Clone)]
pub struct RemoteSettings {
    /// Its address as it was given.
    pub url: String,
    /// The same without `/v1`.
    pub root: String,
    /// Whom it trusts.
    pub tls: ureq::tls::TlsConfig,
    /// The model's name there.
    pub model: String,
    /// Bearer key.
    pub key: Option<String>,
    /// Requests at a time.
    pub concurrency: usize,
    /// Attempts after a failure that may pass.
    pub retries: u32,
    /// Seconds to wait for an answer.
    pub timeout: u64,
    /// Tokens that the model sees at once.
    pub max_length: usize,
    /// Whether prompts that are longer lose their beginning instead of being refused.
    pub truncate: bool,
    /// Fields of generation requests: temperature, top_p, seed, ...
    pub sampling: Map<String, Value>,
}

/// One request of a document: document, place, request.
type RequestMessage = (usize, usize, EvalRequest);
/// Its answers, and of how many prompts something was left out.
type ResponseMessage = (usize, usize, Result<(Vec<EvalResponse>, usize)>);

/// Answers by a server.
pub(crate) struct RemoteBackend {
    settings: RemoteSettings,
    jobs: Sender<RequestMessage>,
    done: Receiver<ResponseMessage>,
    open: BTreeMap<usize, Vec<Option<Vec<EvalResponse>>>>,
    truncated: usize,
}

impl RemoteBackend {
    /// Threads that send requests to the server; they end with this value.
    #[must_use]
    pub(crate) fn new(settings: RemoteSettings) -> Self {
        let (jobs, queue) = channel::<RequestMessage>();
        let (sender, done) = channel();
        let (queue, asker) = (Arc::new(Mutex::new(queue)), Arc::new(RequestSender::new(&settings)));
        for _ in 0..settings.concurrency {
            let (queue, asker, sender) = (Arc::clone(&queue), Arc::clone(&asker), sender.clone());
            std::thread::spawn(move || {
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((doc, place, request)) = job else { return };
                    if sender.send((doc, place, asker.ask(request))).is_err() {
                        return;
                    }
                }
            });
        }
        Self { settings, jobs, done, open: BTreeMap::new(), truncated: 0 }
    }
}

impl Backend for RemoteBackend {
    type EncodedDocument = Vec<EvalRequest>;

    fn prepare(&self, requests: Vec<Vec<EvalRequest>>) -> Result<Vec<Vec<EvalRequest>>> {
        Ok(requests)
    }

    fn is_full(&self) -> bool {
        self.open.len() >= 2 * self.settings.concurrency
    }

    fn submit(&mut self, doc: usize, work: Vec<EvalRequest>) -> Result<()> {
        self.open.insert(doc, work.iter().map(|_| None).collect());
        for (place, request) in work.into_iter().enumerate() {
            self.jobs.send((doc, place, request)).expect("the threads live as long as this");
        }
        Ok(())
    }

    fn next(&mut self, wait: Duration) -> Result<Option<(usize, Vec<EvalResponse>)>> {
        loop {
            let (doc, place, answers) = match self.done.recv_timeout(wait) {
                Ok(done) => done,
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => unreachable!("the threads live as long as this"),
            };
            let (answers, truncated) = answers?;
            self.truncated += truncated;
            let open = self.open.get_mut(&doc).expect("answers are of open documents");
            open[place] = Some(answers);
            if open.iter().all(Option::is_some) {
                let open = self.open.remove(&doc).expect("it was just found");
                return Ok(Some((doc, open.into_iter().flatten().flatten().collect())));
            }
        }
    }

    fn render(&self) -> Option<&Render> {
        None
    }

    fn truncated(&self) -> usize {
        self.truncated
    }

    fn identity(&self) -> Map<String, Value> {
        let s = &self.settings;
        let fields = [
            ("url", json!(s.url)),
            ("model", json!(s.model)),
            ("max_length", json!(s.max_length)),
            ("left_truncate", json!(s.truncate)),
            ("sampling", json!(s.sampling)),
        ];
        fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// Turns requests into calls.
struct RequestSender {
    client: EvalClient,
    settings: RemoteSettings,
    /// The token before a text without a context; asked for once.
    prefix: Mutex<Option<u32>>,
}

impl RequestSender {
    fn new(settings: &RemoteSettings) -> Self {
        Self { client: EvalClient::new(settings), settings: settings.clone(), prefix: Mutex::new(None) }
    }

    fn ask(&self, request: EvalRequest) -> Result<(Vec<EvalResponse>, usize)> {
        match request {
            EvalRequest::GenerateUntil { prompt, until, max_tokens, repeat } => {
                Ok((vec![self.generate(prompt, &until, max_tokens, repeat)?], 0))
            }
            EvalRequest::LogLikelihood { context, continuation } => self.pairs(&[(context, continuation)]),
            EvalRequest::MultipleChoice { pairs } => self.pairs(&pairs),
            EvalRequest::Rolling { text } => {
                let tokens = self.client.tokenize(&text)?;
                let windows = encode::windows(&tokens, self.prefix()?, self.settings.max_length);
                let scores = windows.iter().map(|tail| self.score(tail)).collect::<Result<Vec<_>>>()?;
                let logprob = scores.iter().map(|(logprobs, _)| logprobs.iter().sum::<f64>()).sum();
                Ok((vec![EvalResponse::Rolling { logprob, tokens: tokens.len() }], 0))
            }
        }
    }

    fn generate(&self, prompt: Prompt, until: &[String], max_tokens: usize, repeat: u64) -> Result<EvalResponse> {
        let mut body = self.settings.sampling.clone();
        if let Some(seed) = body.get("seed").and_then(Value::as_u64) {
            body.insert("seed".to_owned(), json!(seed + repeat));
        }
        body.insert("stop".to_owned(), json!(until));
        body.insert("max_tokens".to_owned(), json!(max_tokens));
        match prompt {
            Prompt::Text(text) => {
                body.insert("prompt".to_owned(), json!(text));
                self.client.complete(body)
            }
            Prompt::Chat(messages) => {
                body.insert("messages".to_owned(), json!(messages));
                self.client.chat(body)
            }
        }
    }

    fn prefix(&self) -> Result<u32> {
        let mut prefix = self.prefix.lock().unwrap_or_else(PoisonError::into_inner);
        match *prefix {
            Some(prefix) => Ok(prefix),
            None => Ok(*prefix.insert(self.client.prefix()?)),
        }
    }

    fn pairs(&self, pairs: &[(String, String)]) -> Result<(Vec<EvalResponse>, usize)> {
        let limit = self.settings.max_length;
        let (mut responses, mut truncated) = (Vec::new(), 0);
        let encode = |text: &str, _: bool| self.client.tokenize(text);
        for (context, continuation) in pairs {
            let prefix = if encode::move_spaces(context, "").0.is_empty() { self.prefix()? } else { 0 };
            let mut tail = encode::pair(context, continuation, prefix, encode)?;
            if !tail.fits(limit) {
                let (prompt, fitted) = (tail.tokens.len() - 1, tail.cut_to(limit).filter(|_| self.settings.truncate));
                tail = match fitted {
                    Some(tail) => tail,
                    None => {
                        let mut overflow = LengthOverflow::default();
                        overflow.next_document().found(LongPrompt { prompt, new: 0, limit });
                        return Err(overflow.refuse().expect_err("it was found"));
                    }
                };
                truncated += 1;
            }
            let (logprobs, greedy) = self.score(&tail)?;
            let token_ids = tail.tokens[tail.from..].to_vec();
            let logprob = logprobs.iter().sum();
            responses.push(EvalResponse::LogLikelihood { logprob, greedy, token_ids, logprobs });
        }
        Ok((responses, truncated))
    }

    /// ln p of the end of a sequence, and whether it is the greedy one.
    fn score(&self, tail: &ScoredTail) -> Result<(Vec<f64>, bool)> {
        self.client.score(&tail.tokens, tail.from)
    }
}
