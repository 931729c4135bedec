//! The runtime of this process: everything goes through its scheduler.

mod encoder;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use runtime::files::{GenerationRules, ModelFiles};
use runtime::request::{
    CompletionText, GenerateEvent, GenerateRequest, LogProbs, ModelId, ScoreOutput, ScoreRequest, ScoreResponse,
    ScoreSequence,
};
use runtime::sampler::SamplingParams;
use runtime::{Closed, RequestGuard, RuntimeHandle, Sink};
use serde_json::{Map, Value, json};

use crate::backend::Backend;
use crate::prompt::context::Render;
use crate::prompt::length_limit::LengthOverflow;
use crate::task::question::{EvalRequest, EvalResponse, Message};
use crate::{Error, Result};
use encoder::{EncodedDocument, EncodedRequest, RequestEncoder, ResponseKind};

/// How a resident model is evaluated.
#[derive(Debug, Clone)]
pub struct LocalSettings {
    /// Which model of the runtime.
    pub model: ModelId,
    /// Tokens that it sees at once.
    pub max_length: usize,
    /// Whether prompts that are longer lose their beginning instead of being refused.
    pub truncate: bool,
    /// Sampling of generated answers.
    pub sampling: SamplingParams,
    /// What else decides their tokens.
    pub rules: GenerationRules,
    /// Further variables of the chat template.
    pub template_variables: Map<String, Value>,
}

impl LocalSettings {
    /// Takes what `generation_config.json` of the model has, as transformers does in lm-evaluation-harness.
    ///
    /// # Errors
    /// A key that changes answers and is not implemented.
    pub fn with_generation_config(mut self, files: &ModelFiles) -> Result<Self> {
        let defaults = &files.generation;
        let sampled = self.sampling.temperature > 0.0;
        defaults.check(sampled)?;
        let sampling = &mut self.sampling;
        let set = |to: &mut f32, value: Option<f64>| *to = value.map_or(*to, |value| value as f32);
        set(&mut sampling.repetition_penalty, defaults.repetition_penalty);
        if sampled {
            sampling.top_k = sampling.top_k.or(defaults.top_k.filter(|&k| k > 0));
            set(&mut sampling.min_p, defaults.min_p);
            if sampling.top_p == 1.0 {
                set(&mut sampling.top_p, defaults.top_p);
            }
        }
        sampling.validate(files.config.vocab_size).map_err(runtime::Error::from)?;
        self.rules = defaults.rules.clone();
        Ok(self)
    }
}

/// Answers by a model of this process.
pub(crate) struct LocalBackend {
    runtime: RuntimeHandle,
    encoder: RequestEncoder,
    render: Box<Render>,
    events: (Sender<Event>, Receiver<Event>),
    open: BTreeMap<usize, OpenDocument>,
    /// Documents whose answers are complete.
    ready: Vec<usize>,
    /// Pieces that are not answered.
    waiting: usize,
    truncated: usize,
    identity: Map<String, Value>,
}

/// Pieces in flight at most: enough to keep any batch full, and little to lose.
const MOST_PIECES: usize = 1024;

impl LocalBackend {
    /// Requests go to `runtime`, whose model has these files and this `identity`.
    ///
    /// # Errors
    /// A model without a tokenizer, or one that names no token to begin a text with.
    pub(crate) fn new(
        runtime: RuntimeHandle,
        files: &Arc<ModelFiles>,
        settings: LocalSettings,
        identity: Map<String, Value>,
    ) -> Result<Self> {
        let tokenizer = Arc::clone(files.tokenizer()?);
        let prefix = tokenizer.bos().or(tokenizer.eos()).or(files.config.eos_token_ids.first().copied());
        let prefix = prefix.ok_or(Error::NoFirstToken)?;
        let variables = settings.template_variables.clone();
        let templates = Arc::clone(files);
        let render = move |messages: &[Message]| {
            let messages: Vec<_> = messages.iter().map(|m| runtime::text::Message::new(&m.role, &m.content)).collect();
            Ok(templates.chat_template()?.render(&messages, runtime::text::Ending::Answer, None, &variables)?)
        };
        Ok(Self {
            runtime,
            encoder: RequestEncoder::new(tokenizer, prefix, files.config.eos_token_ids.clone(), settings)?,
            render: Box::new(render),
            events: channel(),
            open: BTreeMap::new(),
            ready: Vec::new(),
            waiting: 0,
            truncated: 0,
            identity,
        })
    }
}

/// An event of a piece: document, piece, what happened.
type Event = (usize, usize, BackendEvent);

enum BackendEvent {
    Generated(GenerateEvent),
    Scored(runtime::Result<ScoreResponse>),
}

/// A document whose answers are not complete.
struct OpenDocument {
    work: EncodedDocument,
    answers: Vec<PartialResponse>,
    left: usize,
    /// Dropping one cancels its request.
    _guards: Vec<RequestGuard>,
}

#[derive(Default)]
struct PartialResponse {
    text: String,
    reason: &'static str,
    token_ids: Vec<u32>,
    logprobs: Vec<f64>,
    greedy: bool,
}

impl OpenDocument {
    /// Takes an event; whether its piece is answered.
    fn take(&mut self, piece: usize, happened: BackendEvent) -> Result<bool> {
        let answer = &mut self.answers[piece];
        match happened {
            BackendEvent::Generated(GenerateEvent::Started { .. }) => return Ok(false),
            BackendEvent::Generated(GenerateEvent::Token(token)) => {
                answer.text.push_str(&token.text);
                answer.token_ids.push(token.token);
                answer.logprobs.push(token.logprob);
                return Ok(false);
            }
            BackendEvent::Generated(GenerateEvent::Done { reason, text, .. }) => {
                answer.text.push_str(&text);
                answer.reason = reason.as_str();
            }
            BackendEvent::Generated(GenerateEvent::Failed(e)) => return Err(e.into()),
            BackendEvent::Scored(score) => {
                // A continuation without tokens of its own is certain.
                let scores = score?.sequences.pop().unwrap_or_default();
                answer.logprobs = scores.logprobs;
                answer.greedy = scores.greedy.iter().all(|&greedy| greedy);
            }
        }
        self.left -= 1;
        Ok(true)
    }

    fn responses(mut self) -> Vec<EvalResponse> {
        let EncodedDocument { pieces, responses } = self.work;
        let response = |(shape, range): (ResponseKind, Range<usize>)| match (shape, &pieces[range.clone()]) {
            (ResponseKind::Text, [EncodedRequest::Generate { prompt, .. }]) => {
                let answer = std::mem::take(&mut self.answers[range.start]);
                EvalResponse::Text {
                    text: answer.text,
                    finish_reason: answer.reason.to_owned(),
                    prompt_tokens: prompt.len(),
                    token_ids: answer.token_ids,
                    logprobs: answer.logprobs,
                }
            }
            (ResponseKind::Pair, [EncodedRequest::Score(tail)]) => {
                let answer = std::mem::take(&mut self.answers[range.start]);
                EvalResponse::LogLikelihood {
                    logprob: answer.logprobs.iter().sum(),
                    greedy: answer.greedy,
                    token_ids: tail.tokens[tail.from..].to_vec(),
                    logprobs: answer.logprobs,
                }
            }
            (ResponseKind::Windows, _) => {
                let windows = &self.answers[range];
                EvalResponse::Rolling {
                    logprob: windows.iter().map(|window| window.logprobs.iter().sum::<f64>()).sum(),
                    tokens: windows.iter().map(|window| window.logprobs.len()).sum(),
                }
            }
            (ResponseKind::Text | ResponseKind::Pair, pieces) => unreachable!("{} pieces for one answer", pieces.len()),
        };
        responses.into_iter().map(response).collect()
    }
}

impl Backend for LocalBackend {
    type EncodedDocument = EncodedDocument;

    fn prepare(&self, requests: Vec<Vec<EvalRequest>>) -> Result<Vec<EncodedDocument>> {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let share = requests.len().div_ceil(threads).max(1);
        let mut shares: Vec<Vec<Vec<EvalRequest>>> = Vec::new();
        let mut requests = requests.into_iter();
        while requests.len() > 0 {
            shares.push(requests.by_ref().take(share).collect());
        }
        let encoder = &self.encoder;
        let encoded = |docs: Vec<Vec<EvalRequest>>| {
            let mut overflow = LengthOverflow::default();
            let work = docs
                .into_iter()
                .map(|doc| encoder.encode_document(doc, overflow.next_document()))
                .collect::<Result<Vec<_>>>();
            work.map(|work| (work, overflow))
        };
        let done: Vec<Result<(Vec<EncodedDocument>, LengthOverflow)>> = std::thread::scope(|scope| {
            let running: Vec<_> = shares.into_iter().map(|docs| scope.spawn(|| encoded(docs))).collect();
            running.into_iter().map(|thread| thread.join().expect("encoding does not panic")).collect()
        });
        let (mut all, mut overflow) = (Vec::new(), LengthOverflow::default());
        for part in done {
            let (work, more) = part?;
            all.extend(work);
            overflow.add(more);
        }
        overflow.refuse()?;
        Ok(all)
    }

    fn is_full(&self) -> bool {
        self.waiting >= MOST_PIECES
    }

    fn submit(&mut self, doc: usize, work: EncodedDocument) -> Result<()> {
        let mut guards = Vec::new();
        for (place, piece) in work.pieces.iter().enumerate() {
            let sender = self.events.0.clone();
            match piece {
                EncodedRequest::Generate { prompt, params, index, cut } => {
                    let take =
                        move |event| sender.send((doc, place, BackendEvent::Generated(event))).map_err(|_| Closed);
                    let request = GenerateRequest {
                        model: self.encoder.settings.model,
                        prompt: prompt.clone(),
                        params: (**params).clone(),
                        // Documents and repeats have random numbers of their own.
                        index: (doc as u64) << 16 | index,
                        // The harness decodes answers by themselves.
                        text: CompletionText::Alone,
                    };
                    let mask = self.encoder.settings.rules.mask(prompt, &self.encoder.eos, params.max_tokens);
                    guards.push(self.runtime.generate_into(request, mask, Sink::new(take))?);
                    self.truncated += usize::from(*cut > 0);
                }
                EncodedRequest::Score(tail) if tail.from >= tail.tokens.len() => {
                    let empty = Ok(ScoreResponse { version: 0, sequences: vec![], columns: 0 });
                    sender.send((doc, place, BackendEvent::Scored(empty))).expect("the receiver is here");
                }
                EncodedRequest::Score(tail) => {
                    let take = move |score| sender.send((doc, place, BackendEvent::Scored(score))).map_err(|_| Closed);
                    let (tokens, positions) = (tail.tokens.clone(), tail.from..tail.tokens.len());
                    let request = ScoreRequest {
                        model: self.encoder.settings.model,
                        sequences: vec![ScoreSequence { tokens, positions }],
                        output: ScoreOutput::LogProbs(LogProbs { greedy: true, ..LogProbs::default() }),
                        token_ids: None,
                    };
                    guards.push(self.runtime.score_into(request, Sink::new(take))?);
                    self.truncated += usize::from(tail.cut > 0);
                }
            }
        }
        let left = work.pieces.len();
        self.waiting += left;
        self.ready.extend((left == 0).then_some(doc));
        let answers = (0..left).map(|_| PartialResponse::default()).collect();
        self.open.insert(doc, OpenDocument { work, answers, left, _guards: guards });
        Ok(())
    }

    fn next(&mut self, wait: Duration) -> Result<Option<(usize, Vec<EvalResponse>)>> {
        loop {
            if let Some(doc) = self.ready.pop() {
                let open = self.open.remove(&doc).expect("a document is ready once");
                return Ok(Some((doc, open.responses())));
            }
            let (doc, piece, happened) = match self.events.1.recv_timeout(wait) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => unreachable!("this end holds a sender"),
            };
            let open = self.open.get_mut(&doc).expect("events are of open documents");
            if open.take(piece, happened)? {
                self.waiting -= 1;
                self.ready.extend((open.left == 0).then_some(doc));
            }
        }
    }

    fn render(&self) -> Option<&Render> {
        Some(&*self.render)
    }

    fn truncated(&self) -> usize {
        self.truncated
    }

    fn identity(&self) -> Map<String, Value> {
        let settings = &self.encoder.settings;
        let sampling = &settings.sampling;
        let mut identity = self.identity.clone();
        for (key, value) in [
            ("tokenizer", json!(self.encoder.tokenizer.fingerprint())),
            ("max_length", json!(settings.max_length)),
            ("left_truncate", json!(settings.truncate)),
            ("prefix_token_id", json!(self.encoder.prefix)),
            ("temperature", json!(sampling.temperature)),
            ("top_p", json!(sampling.top_p)),
            ("sampling_seed", json!(sampling.seed)),
            ("chat_template_kwargs", json!(settings.template_variables)),
        ] {
            identity.insert(key.to_owned(), value);
        }
        if settings.rules != GenerationRules::default() || sampling.repetition_penalty != 1.0 {
            let rules = json!([sampling.repetition_penalty, settings.rules.named().collect::<Vec<_>>()]);
            identity.insert("generation_config".to_owned(), rules);
        }
        identity
    }
}
