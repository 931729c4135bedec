//! From graded samples to results, as lm-evaluation-harness aggregates them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use runtime::sums;
use serde_json::{Map, Value, json};

use crate::run::results::{Results, SampleCounts, TaskResult};
use crate::run::sample::Sample;
use crate::run::{EvalOptions, TaskRun};
use crate::stats;
use crate::stats::metric::{Aggregation, MetricValue};
use crate::stats::stderr::{self, BOOTSTRAP_ITERATIONS};
use crate::tasks;

/// The results of runs whose samples are all there.
pub(crate) fn results(
    runs: &[TaskRun],
    options: &EvalOptions,
    identity: &Map<String, Value>,
    truncated: usize,
    took: Duration,
) -> Results {
    let mut results = Results { config: config(options, identity, truncated), ..Results::default() };
    for run in runs {
        let info = run.task.info();
        let name = info.name.clone();
        results.results.insert(name.clone(), task_result(run));
        // A mean of several answers to one question is no proportion of questions.
        let intervals = if options.repeats == 1 { intervals(run) } else { BTreeMap::new() };
        if !intervals.is_empty() {
            results.wilson_95.insert(name.clone(), intervals);
        }
        results.group_subtasks.insert(name.clone(), Vec::new());
        results.versions.insert(name.clone(), version(&info.version));
        results.n_shot.insert(name.clone(), run.shots);
        let better = info.metrics.iter().map(|metric| (metric.name.clone(), metric.higher_is_better)).collect();
        results.higher_is_better.insert(name.clone(), better);
        let counts = SampleCounts { original: run.docs.test.len(), effective: run.asked };
        results.n_samples.insert(name.clone(), counts);
        results.task_hashes.insert(name.clone(), sums::of_bytes(run.hashes.concat().as_bytes()));
        results.configs.insert(name, definition(run));
    }
    add_groups(&mut results);
    let date = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
    for (key, value) in [
        ("date", json!(date)),
        ("model_source", json!("arle")),
        ("model_name", identity.get("model").cloned().unwrap_or_default()),
        ("arle_version", json!(env!("CARGO_PKG_VERSION"))),
        ("max_length", identity.get("max_length").cloned().unwrap_or_default()),
        ("system_instruction", json!(options.system)),
        ("fewshot_as_multiturn", json!(options.chat)),
        ("data_sha256", json!(options.data.sums())),
        ("total_evaluation_time_seconds", json!(took.as_secs_f64().to_string())),
    ] {
        results.more.insert(key.to_owned(), value);
    }
    results
}

fn config(options: &EvalOptions, identity: &Map<String, Value>, truncated: usize) -> Map<String, Value> {
    let mut config = identity.clone();
    for (key, value) in [
        ("limit", json!(options.limit)),
        ("bootstrap_iters", json!(BOOTSTRAP_ITERATIONS)),
        ("fewshot_seed", json!(options.seed)),
        ("apply_chat_template", json!(options.chat)),
        ("repeats", json!(options.repeats)),
        ("truncated_requests", json!(truncated)),
    ] {
        config.insert(key.to_owned(), value);
    }
    config
}

/// lm-evaluation-harness' versions are numbers.
fn version(text: &str) -> Value {
    text.parse::<f64>().map_or_else(|_| json!(text), |number| json!(number))
}

fn definition(run: &TaskRun) -> Value {
    let info = run.task.info();
    let metrics: Vec<Value> = info
        .metrics
        .iter()
        .map(|metric| {
            json!({
                "metric": metric.name,
                "filter": metric.filter,
                "aggregation": metric.aggregation.name(),
                "higher_is_better": metric.higher_is_better,
            })
        })
        .collect();
    json!({
        "task": info.name,
        "description": info.description,
        "num_fewshot": run.shots,
        "metric_list": metrics,
        "metadata": { "version": version(&info.version) },
        "config": run.config,
    })
}

fn values(run: &TaskRun, key: &str) -> Vec<MetricValue> {
    run.samples.iter().flatten().filter_map(|sample: &Sample| sample.metrics.get(key).copied()).collect()
}

fn task_result(run: &TaskRun) -> TaskResult {
    let info = run.task.info();
    let mut result = TaskResult { alias: info.name.clone(), sample_len: run.asked, values: Map::new() };
    for metric in &info.metrics {
        let values = values(run, &metric.key());
        result.values.insert(metric.key(), json!(metric.aggregation.of(&values)));
        let stderr = stderr::stderr(metric.aggregation, &values);
        result.values.insert(metric.stderr_key(), stderr.map_or_else(|| json!("N/A"), |stderr| json!(stderr)));
    }
    result
}

/// Wilson's intervals of the metrics that are means of right and wrong.
fn intervals(run: &TaskRun) -> BTreeMap<String, [f64; 2]> {
    let means = run.task.info().metrics.iter().filter(|metric| metric.aggregation == Aggregation::Mean);
    let scores = means.map(|metric| (metric.key(), values(run, &metric.key())));
    scores.filter_map(|(key, values)| Some((key, proportion(&values)?))).collect()
}

/// The interval of a proportion; none of other numbers.
fn proportion(values: &[MetricValue]) -> Option<[f64; 2]> {
    let is = |value: &MetricValue, what: f64| *value == MetricValue::Number(what);
    let right = values.iter().filter(|value| is(value, 1.0)).count();
    let all = values.iter().all(|value| is(value, 0.0) || is(value, 1.0));
    (all && !values.is_empty()).then(|| stats::wilson(right, values.len(), 0.95)).map(|i| [i.low, i.high])
}

/// Means of the groups all of whose tasks were evaluated, weighted by the tasks' sizes.
fn add_groups(results: &mut Results) {
    let mut tasks_of: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (group, members) in tasks::groups() {
        let tasks: Vec<String> =
            members.iter().flat_map(|m| tasks_of.get(m).cloned().unwrap_or_else(|| vec![m.clone()])).collect();
        if tasks.iter().all(|task| results.results.contains_key(task)) {
            let result = group_result(&group, &tasks, results);
            if let Some(interval) = group_interval(&result, &tasks, results) {
                results.wilson_95.insert(group.clone(), interval);
            }
            results.results.insert(group.clone(), result.clone());
            results.groups.insert(group.clone(), result);
            results.group_subtasks.insert(group.clone(), members);
        }
        tasks_of.insert(group, tasks);
    }
}

/// That of all members' answers together, when each has one.
fn group_interval(group: &TaskResult, tasks: &[String], results: &Results) -> Option<BTreeMap<String, [f64; 2]>> {
    let key = "acc,none";
    let all = tasks.iter().all(|task| results.wilson_95.get(task).is_some_and(|of| of.contains_key(key)));
    let score = group.values.get(key).and_then(Value::as_f64).filter(|_| all)?;
    let right = (score * group.sample_len as f64).round() as usize;
    let interval = stats::wilson(right, group.sample_len, 0.95);
    Some(BTreeMap::from([(key.to_owned(), [interval.low, interval.high])]))
}

fn group_result(group: &str, tasks: &[String], results: &Results) -> TaskResult {
    let members: Vec<&TaskResult> = tasks.iter().map(|task| &results.results[task]).collect();
    let sizes: Vec<usize> = members.iter().map(|member| member.sample_len).collect();
    let total: usize = sizes.iter().sum();
    let numbers = |key: &str| members.iter().map(|m| m.values.get(key)?.as_f64()).collect::<Option<Vec<f64>>>();
    let mut values = Map::new();
    // MMLU's groups are the only ones, and report this.
    if let Some(scores) = numbers("acc,none") {
        let sum: f64 = scores.iter().zip(&sizes).map(|(score, &size)| score * size as f64).sum();
        values.insert("acc,none".to_owned(), json!(sum / total as f64));
        let stderr = numbers("acc_stderr,none").map(|stderrs| stderr::pooled_stderr(&stderrs, &sizes));
        values.insert("acc_stderr,none".to_owned(), stderr.map_or_else(|| json!("N/A"), |stderr| json!(stderr)));
    }
    TaskResult { alias: group.to_owned(), sample_len: total, values }
}
