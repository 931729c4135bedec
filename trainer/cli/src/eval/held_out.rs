//! `arle eval --teacher`: a training run's held-out measurements, of any model.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};

use super::EvalArgs;
use crate::{Error, Result};
use ::eval::{Results, SampleCounts, TaskResult};
use command::interrupt::Interrupt;
use command::progress::Progress;
use opd::recipe::{Override, Recipe};
use opd::run;

/// Name of the measurements among results.
const NAME: &str = "held_out";
/// Sections of a recipe that such a measurement depends on.
const SECTIONS: [&str; 4] = ["data.", "rollout.", "runtime.", "teacher."];

/// Distance to a teacher.
#[derive(Debug, Args)]
pub(super) struct HeldOutArgs {
    /// Measure instead of tasks how far the model is from this one, a model or the URL of a server, on --prompts.
    #[arg(long, value_name = "MODEL", requires = "prompts", requires = "model", conflicts_with_all = IDLE)]
    pub(super) teacher: Option<String>,
    /// File of prompts, .jsonl or .parquet, with the columns that `data.path` of a recipe has.
    #[arg(long, value_name = "FILE", requires = "teacher")]
    prompts: Option<PathBuf>,
    /// --teacher: a key of the recipe that the measurement is made with, as in teacher.system_prompt="Think." or
    /// runtime.tokens_per_microbatch=16384.
    #[arg(long, value_name = "KEY=VALUE", requires = "teacher")]
    set: Vec<String>,
}

/// Options that say how tasks are asked.
const IDLE: [&str; 14] = [
    "tasks",
    "data",
    "any_data",
    "num_fewshot",
    "seed",
    "max_length",
    "left_truncate",
    "chat_template_kwargs",
    "think_end",
    "repeats",
    "allow_unsandboxed_code",
    "batch_tokens",
    "url",
    "compare",
];

pub(super) fn run(args: &EvalArgs) -> Result<()> {
    let progress = Progress::new(args.json);
    let recipe = recipe(args)?;
    let measured = run::measure_held_out(&recipe, args.local.verbose, &Interrupt::default(), progress);
    let (rows, measured) = measured.map_err(|error| match error {
        Error::Input(command::Error::Value { key, value, rule }) if key == "eval.prompts" => {
            Error::value("--limit", value, rule)
        }
        other => other,
    })?;
    let values = measured.iter().flat_map(|&(name, value)| {
        [(format!("{name},none"), json!(value)), (format!("{name}_stderr,none"), json!("N/A"))]
    });
    let result = TaskResult { alias: NAME.to_owned(), sample_len: rows, values: values.collect() };
    let better = run::BETTER.map(|(name, higher)| (name.to_owned(), higher));
    let mut results = Results::default();
    results.results.insert(NAME.to_owned(), result);
    results.versions.insert(NAME.to_owned(), json!(1));
    results.higher_is_better.insert(NAME.to_owned(), better.into());
    results.n_samples.insert(NAME.to_owned(), SampleCounts { original: rows, effective: rows });
    results.config = config(args, &recipe);
    args.finish(&results, progress)
}

fn config(args: &EvalArgs, recipe: &Recipe) -> Map<String, Value> {
    let recipe: Value = toml::from_str(&recipe.to_toml()).expect("a recipe writes TOML");
    let fields = [
        ("model", json!(args.model)),
        ("adapter", json!(args.local.adapter)),
        ("teacher", json!(args.held_out.teacher)),
        ("prompts", json!(args.held_out.prompts)),
        ("sampling_seed", recipe["runtime"]["seed"].clone()),
        ("recipe", recipe),
    ];
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The recipe of a run that would measure this and train nothing.
fn recipe(args: &EvalArgs) -> Result<Recipe> {
    let (held_out, local) = (&args.held_out, &args.local);
    let teacher = held_out.teacher.as_deref().unwrap_or_default();
    let teacher_key = if teacher.starts_with("http://") || teacher.starts_with("https://") { "url" } else { "model" };
    let mut raw = json!({
        "student": {"model": args.model},
        "teacher": {teacher_key: teacher},
        "data": {"path": held_out.prompts, "held_out": held_out.prompts},
        // The model's context is the limit.
        "rollout": {"max_prompt_tokens": 1 << 30, "sampling": {"temperature": args.temperature.unwrap_or(1.0)}},
        "eval": {},
        "schedule": {"max_steps": 1},
        "runtime": {"device": local.device.device.to_string(), "deterministic": local.deterministic,
            "seed": args.sampling_seed},
    });
    let given = [
        ("/student", "layers", local.layers.as_ref().map(|layers| json!(layers))),
        ("/data", "system_prompt", args.system.as_ref().map(|text| json!(text))),
        ("/data", "chat", args.apply_chat_template.then(|| json!(true))),
        ("/rollout/sampling", "top_p", args.top_p.map(|p| json!(p))),
        ("/eval", "prompts", args.limit.map(|rows| json!(rows))),
        ("/eval", "max_new_tokens", args.max_gen_toks.map(|tokens| json!(tokens))),
        ("/runtime", "kv_bytes", local.kv_bytes.map(|size| json!(size))),
    ];
    for (section, key, value) in given {
        if let (Some(section), Some(value)) = (raw.pointer_mut(section), value) {
            section[key] = value;
        }
    }
    let overrides: Vec<Override> = held_out.set.iter().map(|text| Override::parse(text)).collect::<Result<_>>()?;
    Recipe::check_keys(&overrides)?;
    if let Some(other) = overrides.iter().find(|set| !SECTIONS.iter().any(|section| set.key().starts_with(section))) {
        let because = format!("on a measurement; what counts begins with {}", SECTIONS.join(", "));
        return Err(Error::from(command::Error::NoEffect { key: format!("--set {}", other.key()), because }));
    }
    let text = toml::to_string(&raw).map_err(|e| Error::value("--teacher", "the arguments", e.to_string()))?;
    let mut recipe = Recipe::parse(&text, "eval --teacher", NAME, Path::new("."), &overrides)?;
    // A trained adapter is part of the model here, not the beginning of another.
    recipe.student.adapter.clone_from(&local.adapter);
    Ok(recipe)
}
