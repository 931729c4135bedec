//! What people read: a line a step, a line a measurement, a table at the end.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use runtime::request::GpuStats;
use serde_json::{Map, Value, json};

use super::timers::StepTimers;
use crate::checkpoint::Best;
use crate::memory::Bytes;
use crate::metrics::StepMetrics;
use crate::recipe::Recipe;
use crate::{Error, Result};
use command::progress::eprint_line;
use command::terminal::visible_json;
use eval::compare;

/// `step 3/40 ...`
pub(super) fn step_line(metrics: &StepMetrics, total: u64) -> String {
    let get = |name: &str| metrics.get(name).unwrap_or(f64::NAN);
    let width = total.to_string().len();
    let kl = metrics.get("teacher_kl").map_or_else(String::new, |kl| format!("kl {kl:.4}  "));
    let skipped = if get("optim/skipped") > 0.0 { "  NOT FINITE, skipped" } else { "" };
    format!(
        "step {:>width$}/{total}  loss {:.4}  {kl}len {:.0}  grad {:.3}  lr {:.1e}  {:.0} tok/s  {:.1} s = rollout {:.1} + teacher {:.1} + train {:.1} + optim {:.1}{skipped}",
        get("step"),
        get("loss"),
        get("completions/mean_length"),
        get("optim/grad_norm"),
        get("optim/lr"),
        get("perf/throughput"),
        get("time/step"),
        get("time/rollout"),
        get("time/teacher"),
        get("time/train"),
        get("time/optim"),
    )
}

/// `held-out   KL 0.51 (-43 %) ...`
pub(super) fn held_out_line(metrics: &StepMetrics, before: &BTreeMap<String, f64>) -> String {
    let shown = [
        ("kl", "eval/kl"),
        ("kl on teacher samples", "eval/kl_teacher_samples"),
        ("agreement", "eval/agreement"),
        ("perplexity", "eval/perplexity"),
    ];
    let show = |(label, name): (&str, &str)| {
        let now = metrics.get(name)?;
        let change = before.get(name).map_or_else(String::new, |then| format!(" ({})", percent(*then, now)));
        Some(format!("{label} {now:.4}{change}"))
    };
    format!("held-out   {}", shown.into_iter().filter_map(show).collect::<Vec<_>>().join("  "))
}

/// `scores     gsm8k/exact_match,strict-match 0.41 (+12 %, teacher 0.62) ...`, the first metric of each task.
pub(super) fn scores_line(
    metrics: &StepMetrics,
    before: &BTreeMap<String, f64>,
    teacher: &BTreeMap<String, f64>,
) -> String {
    let mut text = "scores    ".to_owned();
    for (name, now) in metrics.as_json().iter().filter_map(|(name, value)| Some((name, value.as_f64()?))) {
        let Some(short) = name.strip_prefix("eval/").filter(|short| short.contains('/')) else { continue };
        let change = before.get(name).map(|then| percent(*then, now));
        let teacher = teacher.get(name).map(|score| format!("teacher {score:.4}"));
        let notes: Vec<String> = change.into_iter().chain(teacher).collect();
        text += &format!("  {short} {now:.4}");
        if !notes.is_empty() {
            text += &format!(" ({})", notes.join(", "));
        }
    }
    text
}

/// The change in per cent, where there is something to compare with.
fn percent(before: f64, after: f64) -> String {
    if before == 0.0 { "-".to_owned() } else { format!("{:+.0} %", (after / before - 1.0) * 100.0) }
}

/// One JSON line on stdout.
pub(super) fn print_line(object: &Map<String, Value>) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", visible_json(&Value::Object(object.clone()).to_string()))
        .and_then(|()| stdout.flush())
        .map_err(Error::io(Path::new("stdout")))
}

/// The end of a run.
pub(super) struct Summary<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) checkpoint: &'a Path,
    pub(super) folder: &'a Path,
    pub(super) before: &'a BTreeMap<String, f64>,
    pub(super) after: Option<&'a StepMetrics>,
    /// The teacher's scores on tasks.
    pub(super) teacher: &'a BTreeMap<String, f64>,
    /// The tasks before and after, question by question; or the reason why they cannot be compared.
    pub(super) compared: std::result::Result<Vec<compare::ComparisonRow>, String>,
    /// The best step by `checkpoint.best`.
    pub(super) best: Option<&'a Best>,
    pub(super) timers: &'a StepTimers,
    pub(super) steps: u64,
    pub(super) gpu: Option<GpuStats>,
}

impl Summary<'_> {
    pub(super) fn print(&self) -> Result<()> {
        let mut text = format!("\n{} steps of `{}`\n", self.steps, self.recipe.name);
        if let Some(after) = self.after {
            let teacher = if self.teacher.is_empty() { "" } else { "teacher" };
            text += &format!("\n  {:<28} {:>10} {:>10} {:>8} {teacher:>10}", "held out", "before", "after", "change");
            text = format!("{}\n", text.trim_end());
            for (name, value) in after.as_json().iter().filter(|(name, _)| name.starts_with("eval/")) {
                text += &self.row(name, value.as_f64().unwrap_or(f64::NAN));
            }
        }
        match &self.compared {
            Ok(rows) if rows.is_empty() => {}
            Ok(rows) => text += &format!("\ntasks, A before and B after:\n{}", compare::text(rows)),
            Err(why) => text += &format!("\ntasks before and after are not compared: {why}\n"),
        }
        text += &format!("\n  {:<28} {:>10} {:>10}\n", "phase", "seconds", "share");
        for (phase, seconds) in self.timers.seconds() {
            text += &format!("  {phase:<28} {seconds:>10.1} {:>8.0} %\n", 100.0 * seconds / self.timers.total());
        }
        if let Some(gpu) = &self.gpu {
            text +=
                &format!("\n  {:<28} {:>10}\n", "peak GPU memory", Bytes(gpu.memory.peak_in_use as u64).to_string());
        }
        let what = if self.recipe.lora.is_some() { "adapter" } else { "model" };
        text += &format!(
            "\n  {what:<10} {}\n  metrics    {}\n",
            self.checkpoint.display(),
            self.folder.join("metrics.jsonl").display()
        );
        if let Some(best) = self.best {
            let path = self.folder.join("checkpoints/best");
            text +=
                &format!("  best       {} (step {}, {} {:.4})\n", path.display(), best.step, best.metric, best.value);
        }
        text += &format!("  try it     {}", self.next_command());
        eprint_line(&text);
        Ok(())
    }

    fn row(&self, name: &str, after: f64) -> String {
        let teacher = self.teacher.get(name).map_or_else(String::new, |score| format!(" {score:>10.4}"));
        match self.before.get(name) {
            Some(before) => {
                format!("  {name:<28} {before:>10.4} {after:>10.4} {:>8}{teacher}\n", percent(*before, after))
            }
            None if teacher.is_empty() => format!("  {name:<28} {:>10} {after:>10.4}\n", ""),
            None => format!("  {name:<28} {:>10} {after:>10.4} {:>8}{teacher}\n", "", ""),
        }
    }

    fn next_command(&self) -> String {
        let latest = self.folder.join("checkpoints/latest");
        let model = &self.recipe.student.model;
        if self.recipe.lora.is_none() {
            return format!("arle generate --model {} --chat \"Hello!\"", latest.display());
        }
        let layers = self.recipe.student.layers.as_ref().map_or_else(String::new, |layers| {
            let list: Vec<String> = layers.iter().map(ToString::to_string).collect();
            format!(" --layers {}", list.join(","))
        });
        format!("arle generate --model {model}{layers} --adapter {} --chat \"Hello!\"", latest.display())
    }

    pub(super) fn print_json(&self) -> Result<()> {
        let after = self.after.map_or_else(Map::new, |metrics| metrics.as_json().clone());
        let after: Map<String, Value> = after.into_iter().filter(|(name, _)| name.starts_with("eval/")).collect();
        let mut fields = vec![
            ("summary", json!(self.recipe.name)),
            ("steps", json!(self.steps)),
            ("before", json!(self.before)),
            ("after", Value::Object(after)),
            ("teacher", json!(self.teacher)),
            ("seconds", json!(self.timers.seconds())),
            ("checkpoint", json!(self.checkpoint)),
            ("best", json!(self.best)),
            ("compared", self.compared.as_ref().map_or_else(|why| json!(why), |rows| compare::json(rows))),
        ];
        fields.extend(self.gpu.as_ref().map(|gpu| ("gpu_peak_bytes", json!(gpu.memory.peak_in_use))));
        print_line(&fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}
