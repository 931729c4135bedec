//! Raw recipe in, checked recipe out.

mod measurements;
mod objective;
mod optim;
mod remote;
mod teacher;

use super::raw::{OneOrMany, RawRecipe};
use runtime::request::{EngineConfig, Offload};

use super::{Data, HeldOut, Objective, Recipe, Runtime, Student};
use crate::{Error, Result};
use autograd::BatchInvariance;
use command::device::DeviceChoice;
use command::limits::{MOST_GIVEN, MOST_RANK, MOST_RUNNING, MOST_SEQUENCES, MOST_TOKENS, between};
use data::FileFormat;

/// Checks every range, refuses keys without effect, and fills the defaults in.
pub(super) fn resolve(mut raw: RawRecipe, name: &str) -> Result<Recipe> {
    let student = student(&raw)?;
    check_lora(&raw)?;
    check_rollout(&raw)?;
    let objective = objective::objective(&mut raw.loss, raw.rollout.sampling.temperature)?;
    check_objective(&raw, &objective)?;
    let teacher = teacher::teacher(&mut raw, &objective)?;
    let optim = optim::optim(&mut raw)?;
    let (schedule, length) = optim::schedule(&mut raw, optim.lr)?;
    let data = data(&mut raw)?;
    let eval = measurements::resolve(&mut raw, data.held_out.is_some())?;
    if raw.checkpoint.keep_last == 0 {
        return Err(Error::value("checkpoint.keep_last", 0, "at least 1"));
    }
    if eval.is_none() {
        idle("checkpoint.best", raw.checkpoint.best.as_ref(), "where nothing is measured ([eval])")?;
    }
    if raw.lora.is_some() {
        idle("checkpoint.dtype", raw.checkpoint.dtype, "with [lora], whose adapters are float32")?;
    }
    let runtime = runtime(&mut raw)?;
    let name = raw.log.name.get_or_insert_with(|| name.to_owned()).clone();
    if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c)) || name.starts_with('.') {
        return Err(Error::value(
            "log.name",
            format!("{name:?}"),
            "letters, digits, `-`, `_` and `.` (it names the run's folder)",
        ));
    }
    Ok(Recipe {
        name,
        student,
        teacher,
        lora: raw.lora.clone(),
        data,
        rollout: raw.rollout.clone(),
        objective,
        optim,
        schedule,
        length,
        max_seconds: raw.schedule.max_seconds,
        eval,
        checkpoint: raw.checkpoint.clone(),
        mismatch: raw.log.mismatch,
        runtime,
        notes: Vec::new(),
        filled: raw,
    })
}

/// `value` if it lies in the closed range.
fn within(key: &str, value: f64, low: f64, high: f64) -> Result<f64> {
    if (low..=high).contains(&value) {
        return Ok(value);
    }
    Err(Error::value(
        key,
        value,
        if high.is_infinite() { format!("at least {low}") } else { format!("between {low} and {high}") },
    ))
}

/// A learning rate.
pub(crate) fn learning_rate(key: &str, value: f64) -> Result<f64> {
    positive(key, value)
}

/// `value` if it is finite and above zero.
fn positive(key: &str, value: f64) -> Result<f64> {
    if value > 0.0 && value.is_finite() { Ok(value) } else { Err(Error::value(key, value, "greater than 0")) }
}

fn at_least_one(key: &str, value: usize) -> Result<usize> {
    if value > 0 { Ok(value) } else { Err(Error::value(key, value, "at least 1")) }
}

/// Refuses a key that is set although `because`.
fn idle<T>(key: &str, value: Option<T>, because: &str) -> Result<()> {
    match value {
        None => Ok(()),
        Some(_) => Err(Error::from(command::Error::NoEffect { key: key.to_owned(), because: because.to_owned() })),
    }
}

fn missing(key: &str, why: &str) -> Error {
    Error::from(command::Error::Missing { key: key.to_owned(), why: why.to_owned() })
}

fn student(raw: &RawRecipe) -> Result<Student> {
    if raw.student.model.is_empty() {
        return Err(missing(
            "student.model",
            "a run needs a model to train (a folder, a .gguf file, hf:org/name or pypi:package==version)",
        ));
    }
    if let Some(layers) = &raw.student.layers {
        if layers.is_empty() {
            return Err(Error::value("student.layers", "[]", "a list of at least one layer"));
        }
        if let Some(pair) = layers.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(Error::value(
                "student.layers",
                format!("{layers:?}"),
                format!("ascending without repeats; {} stands before {}", pair[0], pair[1]),
            ));
        }
    }
    let eos_tokens = raw.student.eos_token.as_ref().map_or(Vec::new(), |tokens| tokens.as_slice().to_vec());
    if raw.student.eos_token.is_some() && (eos_tokens.is_empty() || eos_tokens.iter().any(String::is_empty)) {
        let given = format!("{eos_tokens:?}");
        return Err(Error::value("student.eos_token", given, "a token, such as \"<|im_end|>\", or a list of them"));
    }
    Ok(Student {
        model: raw.student.model.clone(),
        layers: raw.student.layers.clone(),
        adapter: raw.student.adapter.clone(),
        eos_tokens,
    })
}

fn check_lora(raw: &RawRecipe) -> Result<()> {
    let Some(lora) = &raw.lora else { return Ok(()) };
    between("lora.r", lora.r, MOST_RANK)?;
    positive("lora.alpha", lora.alpha)?;
    if !(0.0..1.0).contains(&lora.dropout) {
        return Err(Error::value("lora.dropout", lora.dropout, "at least 0 and below 1"));
    }
    for (module, &rank) in &lora.rank_pattern {
        between(&format!("lora.rank_pattern.{module}"), rank, MOST_RANK)?;
    }
    for (module, &alpha) in &lora.alpha_pattern {
        positive(&format!("lora.alpha_pattern.{module}"), alpha)?;
    }
    let targets = lora.target_modules.as_slice();
    if targets.is_empty() {
        return Err(Error::value("lora.target_modules", "[]", "`all-linear` or a list of module names"));
    }
    if targets.len() > 1 && targets.iter().any(|name| name == "all-linear") {
        return Err(Error::value(
            "lora.target_modules",
            format!("{targets:?}"),
            "either `all-linear` or names, not both",
        ));
    }
    Ok(())
}

fn check_rollout(raw: &RawRecipe) -> Result<()> {
    let rollout = &raw.rollout;
    let prompts = between("rollout.prompts_per_step", rollout.prompts_per_step, MOST_SEQUENCES)?;
    let group = between("rollout.group_size", rollout.group_size, MOST_SEQUENCES)?;
    between("rollout.prompts_per_step * rollout.group_size", prompts * group, MOST_SEQUENCES)?;
    between("rollout.max_new_tokens", rollout.max_new_tokens, MOST_TOKENS)?;
    between("rollout.max_prompt_tokens", rollout.max_prompt_tokens, MOST_GIVEN)?;
    let sampling = &rollout.sampling;
    if !sampling.temperature.is_finite() {
        return Err(Error::value("rollout.sampling.temperature", sampling.temperature, "finite"));
    }
    within("rollout.sampling.temperature", sampling.temperature, 0.0, f64::INFINITY)?;
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        return Err(Error::value("rollout.sampling.top_p", sampling.top_p, "above 0 and at most 1"));
    }
    within("rollout.sampling.min_p", sampling.min_p, 0.0, 1.0)?;
    if sampling.temperature == 0.0 {
        let because = "with `rollout.sampling.temperature = 0` (greedy)";
        idle("rollout.sampling.top_p", (sampling.top_p < 1.0).then_some(()), because)?;
        idle("rollout.sampling.top_k", (sampling.top_k > 0).then_some(()), because)?;
        idle("rollout.sampling.min_p", (sampling.min_p > 0.0).then_some(()), because)?;
        idle("rollout.group_size", (rollout.group_size > 1).then_some(()), because)?;
    }
    Ok(())
}

/// Refuses `[rollout]` settings that nothing generates with.
fn check_objective(raw: &RawRecipe, objective: &Objective) -> Result<()> {
    if objective.lmbda > 0.0 || objective.off_policy.from_teacher {
        return Ok(());
    }
    idle(
        "rollout.group_size",
        (raw.rollout.group_size > 1).then_some(()),
        "with `loss.lmbda = 0` (one given completion a prompt)",
    )
}

fn data(raw: &mut RawRecipe) -> Result<Data> {
    let data = &mut raw.data;
    if data.path.as_slice().is_empty() || data.path.as_slice().iter().any(|path| path.as_os_str().is_empty()) {
        return Err(missing("data.path", "a run needs prompts (a JSONL or Parquet file)"));
    }
    let format = match data.format.as_str() {
        "auto" => None,
        name => Some(
            FileFormat::from_name(name)
                .ok_or_else(|| Error::value("data.format", format!("{name:?}"), "one of auto, jsonl, parquet"))?,
        ),
    };
    if let Some(limit) = data.limit {
        at_least_one("data.limit", limit)?;
    }
    if !data.shuffle {
        idle("data.seed", data.seed, "with `data.shuffle = false`")?;
    }
    let seed = if data.shuffle { *data.seed.get_or_insert(raw.runtime.seed) } else { 0 };
    if data.held_out.is_some() {
        idle("data.eval_rows", data.eval_rows, "with `data.held_out`")?;
    }
    let held_out = match (&data.held_out, data.eval_rows) {
        (Some(path), _) => Some(HeldOut::File(path.clone())),
        (None, Some(rows)) => Some(HeldOut::LastRows(at_least_one("data.eval_rows", rows)?)),
        (None, None) => None,
    };
    let paths = match &data.path {
        OneOrMany::One(path) => vec![path.clone()],
        OneOrMany::Many(paths) => paths.clone(),
    };
    Ok(Data {
        paths,
        format,
        context_column: raw.teacher.as_ref().and_then(|teacher| teacher.context_column.clone()),
        system_prompt: data.system_prompt.clone(),
        chat: data.chat,
        shuffle: data.shuffle,
        seed,
        limit: data.limit,
        held_out,
    })
}

/// A key that moves something from a GPU to the host; without a GPU there is nothing to move.
fn on_gpu_only(key: &str, value: Option<bool>, gpu: bool) -> Result<bool> {
    match value {
        Some(true) if !gpu => Err(Error::value(key, true, "false unless the run is on a GPU (`runtime.device`)")),
        value => Ok(value.unwrap_or(false)),
    }
}

fn runtime(raw: &mut RawRecipe) -> Result<Runtime> {
    let runtime = &mut raw.runtime;
    let device: DeviceChoice = runtime
        .device
        .parse()
        .map_err(|e: autograd::Error| Error::value("runtime.device", format!("{:?}", runtime.device), e.to_string()))?;
    let can = device.device.capabilities();
    let offload = Offload {
        teacher: on_gpu_only(
            "teacher.offload",
            raw.teacher.as_ref().and_then(|teacher| teacher.offload),
            can.own_memory,
        )?,
        optimizer: on_gpu_only("optim.offload", raw.optim.offload, can.own_memory)?,
    };
    if offload.teacher && raw.lora.is_some() && raw.teacher.as_ref().is_some_and(|t| t.kind.as_deref() == Some("self"))
    {
        let because = "with `teacher.kind = \"self\"` and [lora] (student and teacher share one set of weights)";
        return Err(Error::from(command::Error::NoEffect {
            key: "teacher.offload".to_owned(),
            because: because.to_owned(),
        }));
    }
    if runtime.merge_adapter && (!can.copies_trained_weights || raw.lora.is_none()) {
        return Err(Error::value("runtime.merge_adapter", true, "false without a GPU and without a [lora]"));
    }
    if runtime.deterministic && can.batch_invariance == BatchInvariance::Unsupported {
        return Err(Error::value("runtime.deterministic", true, "false on reference (cpu and cuda can)"));
    }
    if runtime.deterministic && runtime.merge_adapter {
        let rule = "false with `runtime.merge_adapter`, whose rollouts differ from training by rounding";
        return Err(Error::value("runtime.deterministic", true, rule));
    }
    let budget = *runtime.token_budget.get_or_insert(EngineConfig::default_token_budget(device.device));
    let token_budget = between("runtime.token_budget", budget, MOST_TOKENS)?;
    let per_step = raw.rollout.prompts_per_step * raw.rollout.group_size;
    let max_running = between(
        "runtime.max_running",
        *runtime.max_running.get_or_insert(per_step.min(can.defaults.batch_sequences)),
        MOST_RUNNING,
    )?;
    let longest = raw.rollout.max_prompt_tokens + raw.rollout.max_new_tokens;
    let default = if raw.lora.is_some() { can.defaults.lora_micro_batch } else { can.defaults.full_micro_batch };
    let tokens_per_microbatch = *runtime.tokens_per_microbatch.get_or_insert(longest.max(default));
    if tokens_per_microbatch < longest {
        let rule = format!(
            "at least `rollout.max_prompt_tokens` + `rollout.max_new_tokens` ({longest}), one sequence of full length"
        );
        return Err(Error::value("runtime.tokens_per_microbatch", tokens_per_microbatch, rule));
    }
    between("runtime.tokens_per_microbatch", tokens_per_microbatch, 2 * MOST_GIVEN)?;
    Ok(Runtime {
        device,
        seed: runtime.seed,
        token_budget,
        max_running,
        kv_bytes: runtime.kv_bytes,
        tokens_per_microbatch,
        gradient_checkpointing: runtime.gradient_checkpointing.0,
        offload,
        merge_adapter: runtime.merge_adapter,
        deterministic: runtime.deterministic,
    })
}
