//! Runs tasks: all their documents as one queue, with bounded work in flight; graded samples are written as they come.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::{Map, Value, json};

use super::aggregate;
use super::backend::Backend;
use super::context::{Chat, PromptStyle};
use super::data::{DataFolder, sum_of};
use super::question::{Request, Response};
use super::results::Results;
use super::sample::{Header, Sample, SampleFile};
use super::shots::Shots;
use super::task::{Doc, Docs, Task};
use crate::folder_lock::FolderLock;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::{Error, Result};

/// What to evaluate, and how.
pub struct Options {
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
    /// What a thinking model writes before its answer; only what follows is graded.
    pub think_end: Option<String>,
}

/// A task with its documents and what is known of them so far.
pub(super) struct Run {
    pub(super) task: Box<dyn Task>,
    pub(super) docs: Docs,
    pub(super) shots: usize,
    /// Documents that are asked.
    pub(super) asked: usize,
    pub(super) hashes: Vec<String>,
    pub(super) config: Map<String, Value>,
    pub(super) samples: Vec<Option<Sample>>,
    file: Option<SampleFile>,
}

impl Run {
    /// Loads a task's documents.
    fn new(task: Box<dyn Task>, options: &Options) -> Result<Self> {
        let docs = task.load(&options.data)?;
        let asked = options.limit.map_or(docs.test.len(), |limit| limit.min(docs.test.len()));
        let shots = options.shots.unwrap_or(task.info().shots);
        let hash = |doc: &Doc| sum_of(Value::Object(doc.clone()).to_string().as_bytes());
        let hashes = docs.test[..asked].iter().map(hash).collect();
        let samples = (0..asked).map(|_| None).collect();
        Ok(Self { task, docs, shots, asked, hashes, config: Map::new(), samples, file: None })
    }

    /// The requests of every document, in order: the examples' random numbers go on from one to the next.
    fn requests(&self, options: &Options, style: &PromptStyle<'_>) -> Result<Vec<Vec<Request>>> {
        let info = self.task.info();
        let mut shots = Shots::new(&*self.task, &self.docs, self.shots, options.seed)?;
        let mut all = Vec::with_capacity(self.asked);
        for doc in &self.docs.test[..self.asked] {
            let mut ask = self.task.question(doc);
            if let (super::Question::Generate { max_tokens, .. }, Some(_)) = (&mut ask, options.max_tokens_override) {
                *max_tokens = options.max_tokens_override;
            }
            all.push(style.requests(&info.description, &shots.of(doc), ask)?);
        }
        Ok(all)
    }

    /// Opens its file, which pins everything that decides the answers, and takes what is there.
    fn open(&mut self, options: &Options, identity: &Map<String, Value>) -> Result<()> {
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
            ("documents", json!(sum_of(self.hashes.concat().as_bytes()))),
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
            let place = self.samples.get_mut(sample.doc_id).ok_or_else(|| Error::Data {
                path: path.clone(),
                line: None,
                what: format!("document {} of {} is not asked", sample.doc_id, self.asked),
            })?;
            *place = Some(sample);
        }
        self.file = Some(file);
        Ok(())
    }

    /// Grades a document's answers and keeps the sample.
    fn take(&mut self, doc: usize, shown: ShownPrompt, responses: Vec<Response>, options: &Options) -> Result<()> {
        let graded = graded(&responses, options.think_end.as_deref());
        let outcome = if options.repeats > 1 && matches!(responses[..], [Response::Text { .. }, ..]) {
            aggregate::over_repeats(&*self.task, &self.docs.test[doc], &graded)?
        } else {
            self.task.grade(&self.docs.test[doc], &graded)?
        };
        let correct = self.task.info().metrics.iter().find(|m| m.aggregation == super::Aggregation::Mean);
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
struct ShownPrompt {
    prompt: String,
    choices: Vec<String>,
}

impl ShownPrompt {
    fn of(requests: &[Request]) -> Self {
        let none = Vec::new;
        let (prompt, choices) = match requests.first() {
            Some(Request::GenerateUntil { prompt: super::Prompt::Text(text), .. }) => (text.clone(), none()),
            Some(Request::GenerateUntil { prompt: super::Prompt::Chat(messages), .. }) => {
                (json!(messages).to_string(), none())
            }
            Some(Request::LogLikelihood { context, continuation }) => (context.clone(), vec![continuation.clone()]),
            Some(Request::MultipleChoice { pairs }) => {
                let context = pairs.first().map_or_else(String::new, |(context, _)| context.clone());
                (context, pairs.iter().map(|(_, continuation)| continuation.clone()).collect())
            }
            Some(Request::Rolling { text }) => (text.clone(), none()),
            None => (String::new(), none()),
        };
        Self { prompt, choices }
    }
}

/// The answers as they are graded: without a thinking model's thoughts.
fn graded(responses: &[Response], think_end: Option<&str>) -> Vec<Response> {
    let mut responses = responses.to_vec();
    for response in &mut responses {
        if let (Response::Text { text, .. }, Some(end)) = (response, think_end)
            && let Some(place) = text.rfind(end)
        {
            *text = text[place + end.len()..].trim_start().to_owned();
        }
    }
    responses
}

/// How long the loop sleeps at most, so that Ctrl-C is seen.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Evaluates.
///
/// # Errors
/// Data or settings that cannot be used; what the backend refuses; [`Error::EvaluationInterrupted`] after Ctrl-C.
pub(super) fn run<B: Backend>(
    options: Options,
    mut backend: B,
    interrupt: &Interrupt,
    progress: Progress,
) -> Result<Results> {
    let began = Instant::now();
    let mut options = options;
    let tasks = std::mem::take(&mut options.tasks);
    let mut runs = tasks.into_iter().map(|task| Run::new(task, &options)).collect::<Result<Vec<_>>>()?;
    let identity = backend.identity();
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out).map_err(Error::io(out))?;
    }
    let _held = options.out.as_ref().map(|out| FolderLock::take(out, progress)).transpose()?;
    let mut queue = queue(&mut runs, &options, &backend, &identity)?;
    let total: usize = runs.iter().map(|run| run.asked).sum();
    let found = total - queue.len();
    if found > 0 {
        progress.line(&format!("resume     {found} of {total} samples are there already"));
    }
    interrupt.begin();
    let bar = progress.bar_with_time_left("eval", total as u64, "samples");
    bar.set_position(found as u64);
    bar.reset_eta();
    answer(&mut queue, &mut runs, &options, &mut backend, interrupt, &bar)?;
    bar.finish_and_clear();
    let truncated = backend.truncated();
    Ok(aggregate::results(&runs, &options, &identity, truncated, began.elapsed()))
}

/// A document to ask: its run, its place, what is shown of it.
struct QueuedDocument<W> {
    run: usize,
    doc: usize,
    shown: ShownPrompt,
    work: W,
}

/// Every document that has no sample yet.
fn queue<B: Backend>(
    runs: &mut [Run],
    options: &Options,
    backend: &B,
    identity: &Map<String, Value>,
) -> Result<Vec<QueuedDocument<B::EncodedDocument>>> {
    let render = backend.render();
    let chat = match (options.chat, render) {
        (false, _) => None,
        (true, Some(render)) => Some(Chat::Render(render)),
        (true, None) => Some(Chat::Send),
    };
    let system = options.system.as_deref();
    let style = PromptStyle { system, chat, max_tokens: options.max_tokens, repeats: options.repeats as u64 };
    let (mut places, mut requests) = (Vec::new(), Vec::new());
    for (index, run) in runs.iter_mut().enumerate() {
        let all = run.requests(options, &style)?;
        run.open(options, identity)?;
        for (doc, asked) in all.into_iter().enumerate().filter(|(doc, _)| run.samples[*doc].is_none()) {
            places.push((index, doc, ShownPrompt::of(&asked)));
            requests.push(asked);
        }
    }
    let work = backend.prepare(requests)?;
    let item = |((run, doc, shown), work)| QueuedDocument { run, doc, shown, work };
    Ok(places.into_iter().zip(work).map(item).collect())
}

fn answer<B: Backend>(
    queue: &mut Vec<QueuedDocument<B::EncodedDocument>>,
    runs: &mut [Run],
    options: &Options,
    backend: &mut B,
    interrupt: &Interrupt,
    bar: &ProgressBar,
) -> Result<()> {
    let mut open: Vec<Option<(usize, usize, ShownPrompt)>> = Vec::with_capacity(queue.len());
    let mut waiting = 0;
    let mut items = queue.drain(..).peekable();
    while waiting > 0 || items.peek().is_some() {
        if interrupt.is_requested() {
            bar.finish_and_clear();
            let done = runs.iter().map(|run| run.samples.iter().flatten().count()).sum();
            let (of, kept) = (runs.iter().map(|run| run.asked).sum(), options.out.is_some());
            return Err(Error::EvaluationInterrupted { done, of, kept });
        }
        while !backend.is_full() {
            let Some(QueuedDocument { run, doc, shown, work }) = items.next() else { break };
            backend.submit(open.len(), work)?;
            open.push(Some((run, doc, shown)));
            waiting += 1;
        }
        if let Some((place, responses)) = backend.next(POLL_INTERVAL)? {
            let (run, doc, shown) = open[place].take().expect("a document is answered once");
            runs[run].take(doc, shown, responses, options)?;
            waiting -= 1;
            bar.inc(1);
        }
    }
    Ok(())
}
