//! Prefill and decode speed with equal prompts.

use std::time::Instant;

use runtime::request::{CompletionText, GenerateEvent, GenerateRequest, ModelId};
use runtime::sampler::SamplingParams;
use runtime::{Generation, RuntimeHandle};
use serde_json::{Map, json};

use super::{BenchArgs, BenchReport, prompt};
use crate::{Error, Result};
use command::limits::{MOST_RUNNING, MOST_TOKENS, between};
use command::progress::Progress;

/// New tokens when `--new` does not say.
const NEW: usize = 64;

/// Tokens a second, and seconds until the last token.
struct Speed {
    prefill: f64,
    decode: f64,
    seconds: f64,
}

pub(super) fn run(args: &BenchArgs, progress: Progress) -> Result<BenchReport> {
    let new = args.new.unwrap_or(NEW);
    if args.prompt_len == 0 || new < 2 || args.sequences.contains(&0) || args.sequences.is_empty() {
        let given = format!("--prompt-len {} --new {new} --sequences {:?}", args.prompt_len, args.sequences);
        return Err(Error::value("bench", given, "at least 1 prompt token, 2 new tokens and 1 sequence"));
    }
    let files = args.model.open(progress)?;
    let params = params(args.temperature, new, files.config.vocab_size)?;
    let most = between("--sequences", args.sequences.iter().copied().max().unwrap_or(1), MOST_RUNNING)?;
    between("--prompt-len", args.prompt_len, MOST_TOKENS)?;
    between("--new", new, MOST_TOKENS)?;
    let lengths = vec![args.prompt_len + new; most];
    let (runtime, plan) = args.model.start_for(&files, &lengths, args.token_budget, &[], progress)?;
    let mut next = 0;
    let mut measure = |sequences: usize| {
        let vocab = files.config.vocab_size as u32;
        let numbers = next..next + sequences as u64;
        next = numbers.end;
        let prompts: Vec<_> = numbers.map(|number| prompt(number, args.prompt_len, vocab)).collect();
        measure(&runtime, prompts, &params)
    };
    // Memory is touched and threads are started before anything is timed.
    measure(1)?;
    let mut report = BenchReport { values: Map::new(), text: String::new() };
    for &sequences in &args.sequences {
        let speed = measure(sequences)?;
        if sequences == most {
            report.values.insert("prefill".to_owned(), json!(speed.prefill));
        }
        report.values.insert(format!("decode_{sequences}"), json!(speed.decode));
        report.values.insert(format!("seconds_{sequences}"), json!(speed.seconds));
        report.text += &format!(
            "{sequences:>4} sequences   prefill {:>8.1} tok/s   decode {:>8.1} tok/s   {:>7.3} s\n",
            speed.prefill, speed.decode, speed.seconds
        );
    }
    report.add_plan(&plan);
    report.add_steps(&runtime)?;
    Ok(report)
}

/// Exactly `new` tokens at `temperature`.
pub(super) fn params(temperature: f32, new: usize, vocab: usize) -> Result<SamplingParams> {
    let params = SamplingParams { temperature, max_tokens: new, ignore_eos: true, ..SamplingParams::default() };
    params.validate(vocab).map_err(|e| Error::value("--temperature", temperature, e.to_string()))?;
    Ok(params)
}

/// Runs all prompts at once.
fn measure(runtime: &RuntimeHandle, prompts: Vec<Vec<u32>>, params: &SamplingParams) -> Result<Speed> {
    let prompt_tokens: usize = prompts.iter().map(Vec::len).sum();
    let start = Instant::now();
    let running: Vec<Generation> = (0u64..)
        .zip(prompts)
        .map(|(index, prompt)| {
            let params = params.clone();
            runtime.generate(GenerateRequest {
                model: ModelId::STUDENT,
                prompt,
                params,
                index,
                text: CompletionText::None,
            })
        })
        .collect::<Result<_, _>>()?;
    let arrivals = std::thread::scope(|scope| {
        let watchers: Vec<_> =
            running.into_iter().map(|generation| scope.spawn(move || arrivals(generation, start))).collect();
        let seconds = watchers.into_iter().map(|watcher| watcher.join().expect("a watcher does not panic"));
        seconds.collect::<Result<Vec<Vec<f64>>>>()
    })?;
    // Sequences that were prefilled first decode while others are prefilled; counting starts when all prompts are through.
    let prefilled = arrivals.iter().map(|times| times[0]).fold(0.0, f64::max);
    let decoded: Vec<f64> = arrivals.into_iter().flatten().filter(|&time| time > prefilled).collect();
    let end = decoded.iter().copied().fold(prefilled, f64::max);
    let decode = decoded.len() as f64 / (end - prefilled);
    Ok(Speed { prefill: prompt_tokens as f64 / prefilled, decode, seconds: end })
}

/// Seconds after `start` at which each token arrived.
fn arrivals(mut generation: Generation, start: Instant) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    while let Some(event) = generation.next_event() {
        match event {
            GenerateEvent::Started { .. } => {}
            GenerateEvent::Token(_) => times.push(start.elapsed().as_secs_f64()),
            GenerateEvent::Done { .. } => break,
            GenerateEvent::Failed(error) => return Err(error.into()),
        }
    }
    Ok(times)
}
