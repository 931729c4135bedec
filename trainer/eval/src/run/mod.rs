//! What is evaluated, and a task of it with its documents, requests and samples.

mod aggregate;
pub(crate) mod repeats;
pub(crate) mod results;
pub(crate) mod runner;
pub(crate) mod sample;
pub(crate) mod table;

use std::path::PathBuf;
use std::sync::Arc;

use runtime::sums;
use serde_json::{Map, Value, json};

use crate::data::DataFolder;
use crate::data::doc::Doc;
use crate::prompt::context::PromptStyle;
use crate::prompt::shots::Shots;
use crate::run::sample::{Header, Sample, SampleFile};
use crate::task::question::{EvalRequest, EvalResponse};
use crate::task::{Docs, Task};
use crate::{Error, Result};

/// What to evaluate, and how.
pub struct EvalOptions {
    /// The tasks.
    pub tasks: Vec<Box<dyn Task>>,
    /// Their data.
    pub data: Arc<DataFolder>,
    /// Only the first documents of each.
    pub limit: Option<usize>,
    /// Few-shot examples instead of each task's number.
    pub shots: Option<usize>,
    /// Seed of the few-shot examples.
    pub seed: u64,
    /// Where samples and results are written, and found when it goes on.
    pub out: Option<PathBuf>,
    /// A system prompt.
    pub system: Option<String>,
    /// Whether prompts are conversations for the model's chat template.
    pub chat: bool,
    /// New tokens of tasks that do not say how many.
    pub max_tokens: usize,
    /// New tokens of all tasks, whatever they say.
    pub max_tokens_override: Option<usize>,
    /// Answers to each question.
    pub repeats: usize,
    /// The end of a thinking model's reasoning; only what follows is graded.
    pub think_end: Option<String>,
}

/// A task with its documents and what is known of them so far.
pub(crate) struct TaskRun {
    pub(crate) task: Box<dyn Task>,
    pub(crate) docs: Docs,
    pub(crate) shots: usize,
    /// Documents that are evaluated.
    pub(crate) asked: usize,
    pub(crate) hashes: Vec<String>,
    pub(crate) config: Map<String, Value>,
    pub(crate) samples: Vec<Option<Sample>>,
    file: Option<SampleFile>,
}

impl TaskRun {
    /// Loads a task's documents.
    pub(crate) fn new(task: Box<dyn Task>, options: &EvalOptions) -> Result<Self> {
        let docs = task.load(&options.data)?;
        let asked = options.limit.map_or(docs.test.len(), |limit| limit.min(docs.test.len()));
        let shots = options.shots.unwrap_or(task.info().shots);
        let hash = |doc: &Doc| sums::of_bytes(Value::Object(doc.clone()).to_string().as_bytes());
        let hashes = docs.test[..asked].iter().map(hash).collect();
        let samples = (0..asked).map(|_| None).collect();
        Ok(Self { task, docs, shots, asked, hashes, config: Map::new(), samples, file: None })
    }

    /// The requests of every document, in order: the examples' random numbers go on from one to the next.
    pub(crate) fn requests(&self, options: &EvalOptions, style: &PromptStyle<'_>) -> Result<Vec<Vec<EvalRequest>>> {
        let info = self.task.info();
        let mut shots = Shots::new(&*self.task, &self.docs, self.shots, options.seed)?;
        let mut all = Vec::with_capacity(self.asked);
        for doc in &self.docs.test[..self.asked] {
            let mut ask = self.task.question(doc);
            if let (crate::TaskQuestion::Generate { max_tokens, .. }, Some(_)) = (&mut ask, options.max_tokens_override)
            {
                *max_tokens = options.max_tokens_override;
            }
            all.push(style.requests(&info.description, &shots.of(doc), ask)?);
        }
        Ok(all)
    }

    /// Opens its file, which pins everything that decides the answers, and takes what is there.
    pub(crate) fn open(&mut self, options: &EvalOptions, identity: &Map<String, Value>) -> Result<()> {
        let info = self.task.info();
        let mut config = identity.clone();
        for (key, value) in [
            ("num_fewshot", json!(self.shots)),
            ("fewshot_seed", json!(options.seed)),
            ("system_instruction", json!(options.system)),
            ("apply_chat_template", json!(options.chat)),
            ("max_gen_toks", json!(options.max_tokens_override.unwrap_or(options.max_tokens))),
            ("repeats", json!(options.repeats)),
            ("think_end", json!(options.think_end)),
            ("documents", json!(sums::of_bytes(self.hashes.concat().as_bytes()))),
        ] {
            config.insert(key.to_owned(), value);
        }
        self.config = config.clone();
        let Some(out) = &options.out else { return Ok(()) };
        let (task, version, samples) = (info.name.clone(), info.version.clone(), self.asked);
        let header = Header { task, version, samples, config };
        let path = out.join(format!("samples_{}.jsonl", info.name));
        let (file, found) = SampleFile::open(&path, &header)?;
        for sample in found {
            let place = self.samples.get_mut(sample.doc_id).ok_or_else(|| {
                Error::from(command::Error::Data {
                    path: path.clone(),
                    line: None,
                    what: format!("document {} of {} is not asked", sample.doc_id, self.asked),
                })
            })?;
            *place = Some(sample);
        }
        self.file = Some(file);
        Ok(())
    }

    /// Grades a document's answers and keeps the sample.
    pub(crate) fn take(
        &mut self,
        doc: usize,
        shown: ShownPrompt,
        responses: Vec<EvalResponse>,
        options: &EvalOptions,
    ) -> Result<()> {
        let graded = graded(&responses, options.think_end.as_deref());
        let outcome = if options.repeats > 1 && matches!(responses[..], [EvalResponse::Text { .. }, ..]) {
            repeats::grade(&*self.task, &self.docs.test[doc], &graded)?
        } else {
            self.task.grade(&self.docs.test[doc], &graded)?
        };
        let correct = self.task.info().metrics.iter().find(|m| m.aggregation == crate::Aggregation::Mean);
        let correct = correct.and_then(|metric| outcome.metrics.get(&metric.key()));
        let sample = Sample {
            doc_id: doc,
            doc_hash: self.hashes[doc].clone(),
            prompt: shown.prompt,
            choices: shown.choices,
            responses,
            extracted: outcome.extracted,
            gold: outcome.gold,
            correct: correct.map(|value| value.number() == 1.0),
            metrics: outcome.metrics,
        };
        if let Some(file) = &mut self.file {
            file.append(&sample)?;
        }
        self.samples[doc] = Some(sample);
        Ok(())
    }
}

/// What a sample shows of its requests.
pub(crate) struct ShownPrompt {
    prompt: String,
    choices: Vec<String>,
}

impl ShownPrompt {
    pub(crate) fn of(requests: &[EvalRequest]) -> Self {
        let none = Vec::new;
        let (prompt, choices) = match requests.first() {
            Some(EvalRequest::GenerateUntil { prompt: crate::Prompt::Text(text), .. }) => (text.clone(), none()),
            Some(EvalRequest::GenerateUntil { prompt: crate::Prompt::Chat(messages), .. }) => {
                (json!(messages).to_string(), none())
            }
            Some(EvalRequest::LogLikelihood { context, continuation }) => (context.clone(), vec![continuation.clone()]),
            Some(EvalRequest::MultipleChoice { pairs }) => {
                let context = pairs.first().map_or_else(String::new, |(context, _)| context.clone());
                (context, pairs.iter().map(|(_, continuation)| continuation.clone()).collect())
            }
            Some(EvalRequest::Rolling { text }) => (text.clone(), none()),
            None => (String::new(), none()),
        };
        Self { prompt, choices }
    }
}

/// The answers as they are graded: without a thinking model's thoughts.
fn graded(responses: &[EvalResponse], think_end: Option<&str>) -> Vec<EvalResponse> {
    let mut responses = responses.to_vec();
    for response in &mut responses {
        if let (EvalResponse::Text { text, .. }, Some(end)) = (response, think_end)
            && let Some(place) = text.rfind(end)
        {
            *text = text[place + end.len()..].trim_start().to_owned();
        }
    }
    responses
}
