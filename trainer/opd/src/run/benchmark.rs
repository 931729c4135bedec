//! Benchmarks during a run: the tasks of `arle eval`, asked of the student as it is, beside the requests of training.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use runtime::files::{GenerationRules, ModelFiles};
use runtime::request::ModelId;
use runtime::sampler::SamplingParams;
use serde_json::{Map, json};

use super::folder::RunFolder;
use super::setup::Setup;
use crate::metrics::StepMetrics;
use crate::recipe::{Benchmark, Recipe};
use crate::{Error, Result};
use command::interrupt::Interrupt;
use command::progress::Progress;
use eval::data::DataFolder;
use eval::{self, EvalOptions, LocalSettings, Results, compare, tasks};

/// Runs tasks on the run's models.
pub(super) struct Benchmarks<'a> {
    recipe: &'a Recipe,
    benchmark: &'a Benchmark,
    /// Opened once, so that a data set of the hub is at one commit during a run.
    data: Arc<DataFolder>,
    setup: &'a Setup,
    folder: &'a RunFolder,
    interrupt: &'a Interrupt,
    progress: Progress,
}

impl<'a> Benchmarks<'a> {
    /// # Errors
    /// A data set that cannot be had.
    pub(super) fn new(
        recipe: &'a Recipe,
        benchmark: &'a Benchmark,
        setup: &'a Setup,
        folder: &'a RunFolder,
        interrupt: &'a Interrupt,
        progress: Progress,
    ) -> Result<Self> {
        let data = Arc::new(DataFolder::open(&benchmark.data, benchmark.any_data, progress)?);
        Ok(Self { recipe, benchmark, data, setup, folder, interrupt, progress })
    }

    /// Adds the student's scores to `metrics`, as `eval/TASK/METRIC`.
    ///
    /// # Errors
    /// Data that cannot be used; what the runtime refuses; [`Error::EvaluationInterrupted`].
    pub(super) fn measure(&self, step: u64, metrics: &mut StepMetrics) -> Result<()> {
        let results = self.ask(ModelId::STUDENT, &folder_of(step))?;
        for (name, value) in scores(&results) {
            metrics.set(&name, value);
        }
        Ok(())
    }

    /// The teacher's scores under the same names. A teacher in another process has none.
    ///
    /// # Errors
    /// As [`Self::measure`].
    pub(super) fn of_teacher(&self) -> Result<BTreeMap<String, f64>> {
        match &self.setup.teacher {
            None => Ok(BTreeMap::new()),
            Some(_) => self.ask(ModelId::TEACHER, "teacher").map(|results| scores(&results)),
        }
    }

    /// Checksums of the data that was read so far.
    pub(super) fn data_sums(&self) -> BTreeMap<String, String> {
        self.data.sums()
    }

    /// Those of the same data as it is now, as far as it is there.
    ///
    /// # Errors
    /// Data that cannot be read.
    pub(super) fn sums_now(&self, recorded: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
        let now = recorded.keys().map(|name| Ok(self.data.sum_now(name)?.map(|sum| (name.clone(), sum))));
        now.filter_map(Result::transpose).collect()
    }

    fn ask(&self, model: ModelId, name: &str) -> Result<Results> {
        let out = self.folder.file("eval").join(name);
        // An evaluation of this step that a kill cut short was of the same weights, but perhaps of other tasks.
        if out.exists() {
            fs::remove_dir_all(&out).map_err(Error::io(&out))?;
        }
        let files = match (model, &self.setup.teacher) {
            (ModelId::TEACHER, Some(teacher)) => teacher,
            _ => &self.setup.student,
        };
        let settings = LocalSettings {
            model,
            max_length: max_length(self.benchmark, &self.setup.student)?,
            truncate: false,
            sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            rules: GenerationRules::default(),
            template_variables: Map::new(),
        };
        let settings = settings.with_generation_config(files)?;
        let runtime = self.setup.runtime.clone();
        let identity = self.identity(files, name);
        let options = self.options(out.clone())?;
        let results = eval::evaluate_model(options, runtime, files, settings, identity, self.interrupt, self.progress)?;
        eval::write_results(&out, &results)?;
        Ok(results)
    }

    fn identity(&self, files: &Arc<ModelFiles>, name: &str) -> Map<String, serde_json::Value> {
        let fields = [("model", json!(files.path)), ("run", json!(self.recipe.name)), ("weights", json!(name))];
        fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    fn options(&self, out: PathBuf) -> Result<EvalOptions> {
        let b = self.benchmark;
        Ok(EvalOptions {
            tasks: tasks::find(&b.tasks, tasks::Programs::default())?,
            data: Arc::clone(&self.data),
            limit: b.limit,
            shots: b.num_fewshot,
            seed: eval::FEW_SHOT_SEED,
            out: Some(out),
            system: None,
            chat: b.chat,
            max_tokens: eval::NEW_TOKENS,
            max_tokens_override: b.max_gen_toks,
            repeats: 1,
            think_end: None,
        })
    }
}

/// Tokens of prompt and answer together, at most.
///
/// # Errors
/// More than the model's context.
pub(super) fn max_length(benchmark: &Benchmark, student: &ModelFiles) -> Result<usize> {
    let context = student.config.max_position_embeddings;
    match benchmark.max_length {
        None => Ok(eval::MAX_LENGTH.min(context)),
        Some(length) if length <= context => Ok(length),
        Some(length) => {
            Err(Error::value("eval.max_length", length, format!("at most the model's context of {context}")))
        }
    }
}

/// The tasks before the first step and after the last, question by question, where both were asked.
///
/// # Errors
/// As [`compare::compare`].
pub(super) fn compared(folder: &RunFolder, last: u64) -> Result<Vec<compare::ComparisonRow>> {
    let [before, after] = [0, last].map(|step| folder.file("eval").join(folder_of(step)));
    let both = last > 0 && before.is_dir() && after.is_dir();
    if both { Ok(compare::compare(&before, &after)?) } else { Ok(Vec::new()) }
}

/// Where a run keeps the answers of the student at a step, below `eval`.
fn folder_of(step: u64) -> String {
    format!("step_{step:06}")
}

/// `eval/gsm8k/exact_match,strict-match`; the filter of metrics with one filter is not named.
pub(super) fn score_name(task: &str, key: &str) -> String {
    format!("eval/{task}/{}", key.strip_suffix(",none").unwrap_or(key))
}

/// Every number of every task and group, standard errors left out.
fn scores(results: &Results) -> BTreeMap<String, f64> {
    let mut scores = BTreeMap::new();
    for (task, result) in &results.results {
        let numbers = result.values.iter().filter(|(key, _)| !key.contains("_stderr,"));
        for (key, value) in numbers.filter_map(|(key, value)| Some((key, value.as_f64()?))) {
            scores.insert(score_name(task, key), value);
        }
    }
    scores
}
