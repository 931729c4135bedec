//! Two evaluations of the same documents: what differs, and whether it is more than noise.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::run::sample::{Header, Sample, read_samples};
use crate::stats::metric::MetricValue;
use crate::stats::paired::{self, Comparison};
use crate::{Error, Result};

/// Confidence of the intervals, which also say what is noise.
pub(super) const LEVEL: f64 = 0.95;

/// One metric of one task in both runs.
#[derive(Debug)]
pub struct ComparisonRow {
    pub(super) task: String,
    pub(super) metric: String,
    pub(super) compared: Comparison,
    /// Documents that are right in B only, and in A only, where the metric is about right and wrong.
    pub(super) gained: Vec<usize>,
    pub(super) lost: Vec<usize>,
}

/// Compares the tasks that both folders have, metric by metric.
///
/// # Errors
/// Folders without a common task, runs that are not complete, or that asked other documents.
pub fn compare(a: &Path, b: &Path) -> Result<Vec<ComparisonRow>> {
    compare_samples([a, b], &samples_of(a)?, &samples_of(b)?)
}

/// [`compare`] on samples that were read from these folders.
///
/// # Errors
/// As [`compare`].
pub(super) fn compare_samples(folders: [&Path; 2], first: &Samples, second: &Samples) -> Result<Vec<ComparisonRow>> {
    let mut rows = Vec::new();
    for (task, first) in first {
        if let Some(second) = second.get(task) {
            check(task, first, second, folders)?;
            rows.extend(rows_of(task, &first.1, &second.1));
        }
    }
    if rows.is_empty() {
        let [a, b] = folders;
        let what = format!("has no task in common with {} (samples_TASK.jsonl)", b.display());
        return Err(Error::from(command::Error::RunFolder { path: a.to_owned(), what }));
    }
    Ok(rows)
}

type Run = (Header, Vec<Sample>);
/// What a folder holds, by task.
pub(super) type Samples = BTreeMap<String, Run>;

/// The samples of every task in a folder.
pub(super) fn samples_of(folder: &Path) -> Result<Samples> {
    let mut runs = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("samples_") && name.ends_with(".jsonl") {
            let run = read_samples(&path)?;
            runs.insert(run.0.task.clone(), run);
        }
    }
    Ok(runs)
}

/// Differences are of pairs, so both runs must have asked the same documents, all of them.
fn check(task: &str, first: &Run, second: &Run, folders: [&Path; 2]) -> Result<()> {
    for ((header, samples), folder) in [first, second].into_iter().zip(folders) {
        if samples.len() != header.samples {
            let what = format!("has {} of the {} samples of {task}; finish it first", samples.len(), header.samples);
            return Err(Error::from(command::Error::RunFolder { path: folder.to_owned(), what }));
        }
    }
    let hashes = |run: &Run| run.1.iter().map(|sample| sample.doc_hash.clone()).collect::<Vec<_>>();
    if hashes(first) == hashes(second) {
        return Ok(());
    }
    let [a, b] = folders;
    let what = format!(
        "asked other documents of {task} ({}) than {} ({}); compare runs with one --limit on one data file",
        first.1.len(),
        b.display(),
        second.1.len()
    );
    Err(Error::from(command::Error::RunFolder { path: a.to_owned(), what }))
}

fn rows_of(task: &str, first: &[Sample], second: &[Sample]) -> Vec<ComparisonRow> {
    let keys = first.first().map(|sample| sample.metrics.keys().cloned().collect::<Vec<String>>()).unwrap_or_default();
    let row = |metric: String| {
        let values = |samples: &[Sample]| -> Option<Vec<f64>> {
            samples.iter().map(|sample| sample.metrics.get(&metric).copied().map(MetricValue::number)).collect()
        };
        let (a, b) = (values(first)?, values(second)?);
        let compared = paired::compare(&a, &b, LEVEL)?;
        let binary = compared.gained + compared.lost > 0;
        let places = |sign: f64| {
            let differs = |(_, (a, b)): &(usize, (&f64, &f64))| binary && *b - *a == sign;
            a.iter().zip(&b).enumerate().filter(differs).map(|(doc, _)| doc).collect()
        };
        Some(ComparisonRow { task: task.to_owned(), gained: places(1.0), lost: places(-1.0), metric, compared })
    };
    keys.into_iter().filter_map(row).collect()
}

/// The comparison for people.
#[must_use]
pub fn text(rows: &[ComparisonRow]) -> String {
    let mut text = format!(
        "{:<20} {:<28} {:>6} {:>9} {:>9} {:>9} {:>20} {:>8} {:>6} {:>6}\n",
        "task", "metric", "n", "A", "B", "B - A", "95 % interval", "p", "gained", "lost"
    );
    for row in rows {
        let c = &row.compared;
        let interval = c.interval.map_or("not known".to_owned(), |i| format!("{:+.4} .. {:+.4}", i.low, i.high));
        let noise = if c.within_noise() { "  within noise" } else { "" };
        text += &format!(
            "{:<20} {:<28} {:>6} {:>9.4} {:>9.4} {:>+9.4} {interval:>20} {:>8.4} {:>6} {:>6}{noise}\n",
            row.task, row.metric, c.n, c.a, c.b, c.difference, c.p, c.gained, c.lost
        );
    }
    text + "interval: Agresti and Min's for pairs, else Student's; where it has 0, chance explains the difference. p: McNemar's \
            exact test where answers are right or wrong, else a paired t test. A perplexity's values are the \
            log-probabilities of its documents.\n"
}

/// The comparison for programs, with the documents that changed sides.
#[must_use]
pub fn json(rows: &[ComparisonRow]) -> Value {
    let one = |row: &ComparisonRow| {
        let c = &row.compared;
        json!({
            "task": row.task,
            "metric": row.metric,
            "n": c.n,
            "a": c.a,
            "b": c.b,
            "difference": c.difference,
            "stderr": c.stderr,
            "interval": c.interval.map(|interval| [interval.low, interval.high]),
            "level": LEVEL,
            "p": c.p,
            "test": c.test.name(),
            "within_noise": c.within_noise(),
            "gained": row.gained,
            "lost": row.lost,
        })
    };
    rows.iter().map(one).collect()
}
