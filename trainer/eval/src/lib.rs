//! Evaluation on held-out sets: tasks with lm-evaluation-harness' definitions, run through the batched scheduler.
//!
//! A [`Task`] turns a document into a [`TaskQuestion`]; the runner puts few-shot examples before it, which makes [`EvalRequest`]s;
//! a backend answers them with [`EvalResponse`]s; the task grades these, which makes a [`Sample`], one line of a file; the
//! samples' metrics are aggregated into [`Results`].
//!
//! Numbers are those of lm-evaluation-harness 0.4.13 on the same data, model and options; `scripts/check/eval_lm_eval`
//! compares them.
//!
//! ```
//! use eval::grade::{answer, boxed};
//!
//! let response = r"<think>Half of one.</think> So the answer is $\boxed{\frac{1}{2}}$.";
//! let found = boxed::last_boxed(boxed::after_thinking(response, false)).expect("an answer");
//! assert!(answer::math_equal(found, "0.5"));
//! ```

mod backend;
pub mod compare;
pub mod data;
mod error;
pub mod grade;
mod prompt;
mod random;
pub mod report;
mod run;
pub mod sandbox;
pub mod stats;
mod task;
pub mod tasks;

use std::path::Path;
use std::sync::Arc;

use runtime::files::ModelFiles;
use runtime::{RuntimeHandle, write};
use serde_json::{Map, Value};

pub use backend::{LocalSettings, RemoteSettings};
use command::interrupt::Interrupt;
use command::progress::Progress;
pub use data::doc::Doc;
pub use error::{Error, Result};
pub use random::PythonRandom;
pub use run::EvalOptions;
pub use run::results::{Group, Results, SampleCounts, TaskResult};
pub use run::sample::{Header, Sample, SampleFile, read_samples};
pub use run::table::table;
pub use stats::metric::{Aggregation, Metric, MetricValue};
pub use task::outcome::Grade;
pub use task::question::{EvalRequest, EvalResponse, Message, Prompt, TaskQuestion};
pub use task::{Docs, FewShot, Task, TaskInfo};

/// Seed of the few-shot examples unless one is given, lm-evaluation-harness' number.
pub const FEW_SHOT_SEED: u64 = 1234;
/// New tokens of tasks that do not say how many, unless a number is given.
pub const NEW_TOKENS: usize = 256;
/// Tokens of prompt and answer together where no limit is given, lm-evaluation-harness' number.
pub const MAX_LENGTH: usize = 2048;

/// Evaluates a model of this process.
///
/// # Errors
/// Whatever stops it; [`Error::Interrupted`] after Ctrl-C, with what is graded kept.
pub fn evaluate_model(
    options: EvalOptions,
    runtime: RuntimeHandle,
    files: &Arc<ModelFiles>,
    settings: LocalSettings,
    identity: Map<String, Value>,
    interrupt: &Interrupt,
    progress: Progress,
) -> Result<Results> {
    let backend = backend::LocalBackend::new(runtime, files, settings, identity)?;
    run::runner::run(options, backend, interrupt, progress)
}

/// Evaluates a model behind a server.
///
/// # Errors
/// As [`evaluate_model`].
pub fn evaluate_server(
    options: EvalOptions,
    settings: RemoteSettings,
    interrupt: &Interrupt,
    progress: Progress,
) -> Result<Results> {
    run::runner::run(options, backend::RemoteBackend::new(settings), interrupt, progress)
}

/// Writes `results.json`.
///
/// # Errors
/// A folder that cannot be written.
pub fn write_results(folder: &Path, results: &Results) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let path = folder.join("results.json");
    let text = serde_json::to_string_pretty(results).map_err(|e| Error::io(&path)(e.into()))?;
    Ok(write::replace(&path, text + "\n")?)
}

/// All tasks and groups, a line each.
#[must_use]
pub fn list() -> String {
    let tasks = tasks::all(tasks::Programs::default());
    let (subjects, others): (Vec<_>, Vec<_>) = tasks.iter().partition(|task| task.info().group.is_some());
    let mut text = String::new();
    for task in others {
        let info = task.info();
        text += &format!("{:<24} {:>2}-shot  {}\n", info.name, info.shots, info.about);
    }
    for (group, members) in tasks::groups() {
        let count = subjects.iter().filter(|task| tasks::holds(&group, &task.info().name)).count();
        text += &format!("{group:<24}  0-shot  group of {count} tasks: {}, ...\n", members[0]);
    }
    text
}
