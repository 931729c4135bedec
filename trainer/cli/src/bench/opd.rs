//! Steps of on-policy distillation on random prompts, taken by the trainer's own code.

use std::path::Path;

use clap::Args;
use runtime::memory::{KvWish, Workload};
use runtime::request::{ModelSpec, RuntimeSpec};
use serde_json::{Map, Value, json};
use telemetry::Scope;

use super::{BenchArgs, BenchReport, prompt};
use crate::{Error, Result};
use command::limits::{MOST_TOKENS, between};
use command::progress::Progress;
use opd::memory::{self, Purpose};
use opd::metrics::StepMetrics;
use opd::prompt::Example;
use opd::recipe::{Override, Recipe};
use opd::run::{self, StepContext, StepReport};

/// New tokens when `--new` does not say.
const NEW: usize = 256;
/// Phases as they are reported, and the metrics that hold their seconds.
const PHASES: [(&str, &str); 5] = [
    ("rollout", "time/rollout"),
    ("teacher", "time/teacher"),
    ("forward", "time/forward"),
    ("backward", "time/backward"),
    ("optimizer", "time/optim"),
];

/// Which step to measure.
#[derive(Debug, Args)]
pub(super) struct OpdArgs {
    /// Measure steps of on-policy distillation instead: rollout, teacher, forward, backward, AdamW, publish.
    #[arg(long, requires = "teacher")]
    pub(super) opd: bool,
    /// --opd: the model that scores.
    #[arg(long, value_name = "MODEL", requires = "opd")]
    teacher: Option<String>,
    /// --opd: train every weight instead of a LoRA of rank 32 on all linear layers.
    #[arg(long, requires = "opd")]
    full: bool,
    /// --opd: prompts of a step.
    #[arg(long, default_value_t = 64, value_name = "N", requires = "opd")]
    prompts: usize,
    /// --opd: steps that are measured.
    #[arg(long, default_value_t = 5, value_name = "N", requires = "opd")]
    steps: usize,
    /// --opd: steps before those.
    #[arg(long, default_value_t = 2, value_name = "N", requires = "opd")]
    warmup: usize,
    /// --opd: change one key of the recipe, as in loss.kind=forward_kl or runtime.tokens_per_microbatch=8192.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "opd")]
    set: Vec<String>,
}

pub(super) fn run(args: &BenchArgs, progress: Progress) -> Result<BenchReport> {
    if args.opd.steps == 0 {
        return Err(Error::value("--steps", 0, "at least 1"));
    }
    between("--prompt-len", args.prompt_len, MOST_TOKENS)?;
    let recipe = recipe(args)?;
    let mut spec = spec(args, &recipe, progress)?;
    let vocab = spec.student().files.config.vocab_size as u32;
    let workload = workload(args, &recipe);
    let (runtime, plan) = run::start(&mut spec, &workload, Purpose::Training, progress)?;
    let (per_step, total) = (recipe.rollout.prompts_per_step, args.opd.warmup + args.opd.steps);
    let rows: Vec<Example> = (0..(per_step * total) as u64)
        .map(|number| Example {
            prompt: prompt(number, args.prompt_len, vocab),
            teacher_prompt: None,
            completion: None,
            given_prompt: None,
            shown: String::new(),
        })
        .collect();
    let steps = StepContext::new(&recipe, &runtime, None, &rows, progress);
    let mut reports = Vec::with_capacity(args.opd.steps);
    for number in 0..total {
        if number == args.opd.warmup {
            memory::count_peak_from_now(recipe.runtime.device.device);
        }
        let prompts: Vec<usize> = (number * per_step..(number + 1) * per_step).collect();
        let mut step = steps.begin(number as u64, &Scope::default());
        let rollouts = step.rollouts(&prompts)?;
        step.forward_backward(rollouts)?;
        let update = step.optim_step(recipe.schedule.at(number as u64, total as u64))?;
        let report = step.publish(&update)?;
        progress.line(&step_line(number, &report.metrics));
        if number >= args.opd.warmup {
            reports.push(report);
        }
    }
    let mut report = report(args, &recipe, &reports);
    report.add_plan(&plan);
    Ok(report)
}

/// What the steps ask of the runtime.
fn workload(args: &BenchArgs, recipe: &Recipe) -> Workload {
    let longest = args.prompt_len + recipe.rollout.max_new_tokens;
    let kv = match recipe.runtime.kv_bytes {
        Some(size) => KvWish::Size(size),
        None => KvWish::Sequences(vec![longest; recipe.runtime.max_running]),
    };
    Workload {
        kv,
        longest,
        micro_batch: recipe.runtime.tokens_per_microbatch.min(recipe.sequences_per_step() * longest),
        checkpointing: recipe.runtime.gradient_checkpointing,
        given_bytes: 0,
        adapters: vec![],
    }
}

/// The recipe of such a step. Nothing reads its `data.path`.
fn recipe(args: &BenchArgs) -> Result<Recipe> {
    let (model, opd) = (&args.model, &args.opd);
    let mut raw = json!({
        "student": {"model": model.name.source()},
        "teacher": {"model": opd.teacher},
        "data": {"path": "random prompts"},
        "rollout": {
            "prompts_per_step": opd.prompts,
            "max_prompt_tokens": args.prompt_len,
            "max_new_tokens": args.new.unwrap_or(NEW),
            "ignore_eos": true,
        },
        "loss": {"kind": "jsd"},
        "schedule": {"max_steps": opd.warmup + opd.steps},
        "runtime": {"device": model.device.device.to_string(), "max_running": opd.prompts,
            "deterministic": model.deterministic},
    });
    if !opd.full {
        raw["lora"] = json!({"r": 32});
    }
    if let Some(layers) = &model.layers {
        raw["student"]["layers"] = json!(layers);
    }
    if let Some(adapter) = &model.adapter {
        raw["student"]["adapter"] = json!(adapter);
    }
    if let Some(size) = &model.kv_bytes {
        raw["runtime"]["kv_bytes"] = json!(size);
    }
    let text = toml::to_string(&raw).map_err(|e| Error::value("bench", "the arguments", e.to_string()))?;
    let overrides: Vec<Override> = opd.set.iter().map(|text| Override::parse(text)).collect::<Result<_>>()?;
    Recipe::check_keys(&overrides)?;
    for change in &overrides {
        check_has_effect(&change.key(), opd.full)?;
    }
    Recipe::parse(&text, "bench --opd", "bench", Path::new("."), &overrides)
}

/// Refuses keys that are options of this program, or that no single step depends on.
fn check_has_effect(key: &str, full: bool) -> Result<()> {
    let section = key.split('.').next().unwrap_or_default();
    let because = match (section, key) {
        ("lora", _) if full => "with --full",
        (_, "runtime.device") => "beside --device",
        (_, "runtime.deterministic") => "beside --deterministic",
        (_, "runtime.kv_bytes") => "beside --kv-bytes",
        (_, "teacher.offload") => return Ok(()),
        (_, "rollout.max_prompt_tokens") => "beside --prompt-len",
        ("rollout" | "loss" | "optim" | "lora" | "log" | "runtime", _) => return Ok(()),
        _ => "on one step; --set takes teacher.offload and keys of rollout, loss, optim, lora, log and runtime here",
    };
    Err(Error::from(command::Error::NoEffect { key: format!("--set {key}"), because: because.to_owned() }))
}

/// Both models, with room for a step's sequences.
fn spec(args: &BenchArgs, recipe: &Recipe, progress: Progress) -> Result<RuntimeSpec> {
    let files = run::open(&recipe.student.model, progress)?;
    let teacher = run::open(args.opd.teacher.as_deref().unwrap_or_default(), progress)?;
    let tokens = args.prompt_len + recipe.rollout.max_new_tokens;
    if args.prompt_len == 0 || tokens > files.config.max_position_embeddings {
        let context = files.config.max_position_embeddings;
        return Err(Error::BenchSequence { tokens, prompt: args.prompt_len, context });
    }
    let student = ModelSpec { files, layers: recipe.student.layers.clone(), adapter: recipe.student.adapter.clone() };
    let mut spec = run::runtime_spec(recipe, student, Some(ModelSpec::new(teacher)), Some(recipe.training()));
    spec.engine.max_waiting = recipe.sequences_per_step();
    Ok(spec)
}

fn step_line(step: usize, metrics: &StepMetrics) -> String {
    let phases = PHASES.map(|(name, key)| format!("{name} {:.3}", metrics.get(key).unwrap_or(0.0)));
    format!("step {}   {:.3} s   {}", step + 1, metrics.get("time/step").unwrap_or(0.0), phases.join("   "))
}

/// Medians over the steps.
fn report(args: &BenchArgs, recipe: &Recipe, steps: &[StepReport]) -> BenchReport {
    let of = |key: &str| median(steps.iter().filter_map(|step| step.metrics.get(key)).collect());
    let step = of("time/step");
    let phases = PHASES.map(|(name, key)| (name, of(key)));
    let known: f64 = phases.iter().map(|(_, seconds)| seconds).sum();
    let tokens = (recipe.sequences_per_step() * recipe.rollout.max_new_tokens) as f64;
    let processed = tokens + (recipe.sequences_per_step() * args.prompt_len) as f64;
    let training = known - phases[0].1;
    let mut values = Map::from_iter([("step".to_owned(), json!(step))]);
    let mut text = format!("step      {step:>8.3} s   {:>9.0} sequence tok/s\n", processed / step);
    for (name, seconds) in phases.into_iter().chain([("other", step - known)]) {
        values.insert(name.to_owned(), json!(seconds));
        text += &format!("{name:<10}{seconds:>7.3} s\n");
    }
    let skipped = steps.iter().filter(|step| !step.applied).count();
    let more = [
        ("generated_tokens", tokens),
        ("sequence_tokens", processed),
        ("rollout_tokens_per_s", tokens / phases[0].1),
        ("training_tokens_per_s", processed / training),
        ("sequence_tokens_per_s", processed / step),
        ("loss", of("loss")),
        ("mismatch_kl", of("mismatch_kl")),
        ("mismatch_max", of("mismatch_max")),
        ("skipped_steps", skipped as f64),
    ];
    values.extend(more.map(|(name, value)| (name.to_owned(), json!(value))));
    values.insert("steps".to_owned(), steps.iter().map(|step| Value::from(step.metrics.as_json().clone())).collect());
    text += &format!(
        "rollout {:.0} tok/s   training {:.0} tok/s   loss {:.4}   mismatch KL {:.2e}, largest {:.2e}   skipped {skipped}\n",
        tokens / phases[0].1,
        processed / training,
        of("loss"),
        of("mismatch_kl"),
        of("mismatch_max")
    );
    BenchReport { values, text }
}

/// The middle value, the mean of the two middle ones of an even number; NaN of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n.is_multiple_of(2) => f64::midpoint(values[half - 1], values[half]),
        _ => values[half],
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(vec![]).is_nan());
    }
}
