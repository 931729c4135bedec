//! What a report is made from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use runtime::read;

use crate::compare::{self, Samples, samples_of};
use crate::report::chart::Point;
use crate::report::training::TrainingHistory;
use crate::run::results::Results;
use crate::stats;
use crate::{Error, Result};

/// A curve's name: task and metric key, or `held out` or `training` and the measurement.
pub(super) type Key = (String, String);

/// One folder.
#[derive(Default)]
pub(super) struct LoadedRun {
    pub(super) name: String,
    folder: PathBuf,
    /// Where the newest answers are; a training run without tasks has none.
    pub(super) answers: Option<PathBuf>,
    pub(super) results: Option<Results>,
    /// By task.
    pub(super) samples: Samples,
    /// Values by step; of a training run only.
    pub(super) curves: BTreeMap<Key, Vec<Point>>,
    /// The teacher's scores under the same names.
    pub(super) teacher: BTreeMap<Key, f64>,
    /// What else a training run's folder holds.
    pub(super) training: Option<TrainingHistory>,
}

impl LoadedRun {
    pub(super) fn load(folder: &Path) -> Result<Self> {
        let name = folder.canonicalize().map_err(Error::io(folder))?;
        let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut run = Self { name, folder: folder.to_owned(), ..Self::default() };
        if folder.join("results.json").is_file() {
            run.take_answers(folder)?;
        } else if folder.join("metrics.jsonl").is_file() {
            run.take_steps()?;
            run.training = Some(TrainingHistory::load(folder, &mut run.curves)?);
        } else {
            let what =
                "holds neither results.json (of `arle eval --out`) nor metrics.jsonl (of a training run)".to_owned();
            return Err(Error::from(command::Error::RunFolder { path: folder.to_owned(), what }));
        }
        Ok(run)
    }

    fn take_answers(&mut self, folder: &Path) -> Result<()> {
        self.results = Some(read(folder)?);
        self.samples = samples_of(folder)?;
        self.answers = Some(folder.to_owned());
        Ok(())
    }

    /// The scores of every step, and the answers of the last.
    fn take_steps(&mut self) -> Result<()> {
        let evaluations = self.folder.join("eval");
        let mut steps = Vec::new();
        if evaluations.is_dir() {
            for entry in fs::read_dir(&evaluations).map_err(Error::io(&evaluations))? {
                let path = entry.map_err(Error::io(&evaluations))?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let step = name.strip_prefix("step_").and_then(|step| step.parse::<u64>().ok());
                // One that was cut short has no results yet.
                if let Some(step) = step.filter(|_| path.join("results.json").is_file()) {
                    steps.push((step, path));
                }
            }
        }
        steps.sort();
        for (step, path) in &steps {
            for (key, y, interval) in scores(&read(path)?) {
                self.curves.entry(key).or_default().push(Point { x: *step as f64, y, interval });
            }
        }
        let teacher = evaluations.join("teacher");
        if teacher.join("results.json").is_file() {
            self.teacher = scores(&read(&teacher)?).into_iter().map(|(key, value, _)| (key, value)).collect();
        }
        steps.last().map_or(Ok(()), |(_, path)| self.take_answers(path))
    }
}

fn read(folder: &Path) -> Result<Results> {
    let path = folder.join("results.json");
    let text = read::text(&path, read::TEXT)?;
    serde_json::from_str(&text)
        .map_err(|e| Error::from(command::Error::RunFolder { path, what: format!("is no results.json: {e}") }))
}

/// Every number of every task, with its 95 % interval: Wilson's where answers are right or wrong, else one that keeps to
/// the metric's bounds; none of a number without a standard error.
pub(super) fn scores(results: &Results) -> Vec<(Key, f64, Option<[f64; 2]>)> {
    let mut scores = Vec::new();
    for (task, result) in &results.results {
        for (key, value) in result.values.iter().filter(|(key, _)| !key.contains("_stderr,")) {
            let Some(value) = value.as_f64() else { continue };
            let wilson = results.wilson_95.get(task).and_then(|intervals| intervals.get(key)).copied();
            let about = || {
                let stderr = stderr_of(result, key)?;
                let interval = match value {
                    0.0..=1.0 => stats::score_interval(value, stderr, result.sample_len, compare::LEVEL),
                    _ => stats::perplexity_interval(value, stderr, compare::LEVEL),
                };
                Some([interval.low, interval.high])
            };
            scores.push(((task.clone(), key.clone()), value, wilson.or_else(about)));
        }
    }
    scores
}

/// The standard error beside a value.
pub(super) fn stderr_of(result: &crate::TaskResult, key: &str) -> Option<f64> {
    let (metric, filter) = key.split_once(',')?;
    result.values.get(&format!("{metric}_stderr,{filter}"))?.as_f64()
}
