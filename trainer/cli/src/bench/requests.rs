//! Speed on requests of given lengths, all submitted at once.

use std::path::Path;
use std::time::Instant;

use runtime::RuntimeHandle;
use runtime::read;
use runtime::request::{CompletionText, GenerateRequest, ModelId};
use serde::Deserialize;
use serde_json::{Map, json};

use super::{BenchArgs, BenchReport, speed};
use crate::{Error, Result};
use command::progress::Progress;

/// New tokens of a request before anything is timed.
const WARM_UP: usize = 8;

/// One request of the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct BenchRequest {
    prompt: Vec<u32>,
    max_tokens: usize,
    /// Place of its adapter in `--adapters`; the model itself without one.
    #[serde(default)]
    adapter: Option<usize>,
}

pub(super) fn run(args: &BenchArgs, path: &Path, progress: Progress) -> Result<BenchReport> {
    let requests = read(path)?;
    let files = args.model.open(progress)?;
    let vocab = files.config.vocab_size;
    check(path, &requests, vocab, args.adapters.len())?;
    speed::params(args.temperature, 1, vocab)?;
    let lengths: Vec<usize> =
        requests.iter().map(|request| request.prompt.len().saturating_add(request.max_tokens)).collect();
    let (runtime, plan) = args.model.start_for(&files, &lengths, args.token_budget, &args.adapters, progress)?;
    let add = |folder| Ok(runtime.add_adapter(ModelId::STUDENT, folder)?);
    let adapters: Vec<ModelId> = args.adapters.iter().map(|folder| add(folder)).collect::<Result<_>>()?;
    let complete = |requests| complete(&runtime, requests, &adapters, args.temperature, vocab);
    // All of them with other prompts and few tokens: memory is touched and nothing is left in the prefix cache.
    let first = requests.iter().map(|request| warm_up(request, vocab)).collect();
    complete(first)?;
    let prompt_tokens: usize = requests.iter().map(|request| request.prompt.len()).sum();
    let count = requests.len();
    let start = Instant::now();
    let tokens = complete(requests)?;
    let seconds = start.elapsed().as_secs_f64();
    let rate = tokens as f64 / seconds;
    let values = json!({
        "requests": count,
        "prompt_tokens": prompt_tokens,
        "output_tokens": tokens,
        "seconds": seconds,
        "output_tokens_per_s": rate,
    });
    let text = format!(
        "{count:>4} requests    {prompt_tokens} prompt and {tokens} output tokens in {seconds:.2} s   {rate:.1} output tok/s\n"
    );
    let mut report = BenchReport { values: Map::from_iter(values.as_object().cloned().unwrap_or_default()), text };
    report.add_plan(&plan);
    report.add_steps(&runtime)?;
    Ok(report)
}

fn read(path: &Path) -> Result<Vec<BenchRequest>> {
    let text = read::bytes(path, read::TEXT)?;
    let refuse = |what: String| Error::from(command::Error::Data { path: path.to_owned(), line: None, what });
    let requests: Vec<BenchRequest> = serde_json::from_slice(&text).map_err(|e| refuse(e.to_string()))?;
    if requests.is_empty() { Err(refuse("there is no request in it".to_owned())) } else { Ok(requests) }
}

fn check(path: &Path, requests: &[BenchRequest], vocab: usize, adapters: usize) -> Result<()> {
    for (number, request) in requests.iter().enumerate() {
        let refuse = |what: String| {
            Err(Error::from(command::Error::Data {
                path: path.to_owned(),
                line: None,
                what: format!("request {number}: {what}"),
            }))
        };
        if request.prompt.is_empty() || request.max_tokens == 0 {
            let lengths = format!("{} prompt tokens and max_tokens {}", request.prompt.len(), request.max_tokens);
            return refuse(format!("{lengths}; both need one at least"));
        }
        if let Some(adapter) = request.adapter.filter(|&adapter| adapter >= adapters) {
            return refuse(format!("adapter {adapter} is not one of the {adapters} of --adapters, counted from 0"));
        }
        if let Some(id) = request.prompt.iter().find(|&&id| id as usize >= vocab) {
            return refuse(format!("token id {id} is outside the vocabulary of {vocab}"));
        }
    }
    Ok(())
}

/// The same length with every id changed.
fn warm_up(request: &BenchRequest, vocab: usize) -> BenchRequest {
    let prompt = request.prompt.iter().map(|&id| (id + 1) % vocab as u32).collect();
    BenchRequest { prompt, max_tokens: request.max_tokens.min(WARM_UP), adapter: request.adapter }
}

/// Submits all and waits for the last; how many tokens came.
fn complete(
    runtime: &RuntimeHandle,
    requests: Vec<BenchRequest>,
    adapters: &[ModelId],
    temperature: f32,
    vocab: usize,
) -> Result<usize> {
    let running: Vec<_> = (0u64..)
        .zip(requests)
        .map(|(index, BenchRequest { prompt, max_tokens, adapter })| {
            let params = speed::params(temperature, max_tokens, vocab)?;
            Ok(runtime.generate(GenerateRequest {
                model: adapter.map_or(ModelId::STUDENT, |adapter| adapters[adapter]),
                prompt,
                params,
                index,
                text: CompletionText::None,
            })?)
        })
        .collect::<Result<_>>()?;
    running.into_iter().map(|generation| Ok(generation.collect()?.tokens.len())).sum()
}
