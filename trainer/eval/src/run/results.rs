//! `results.json`, with lm-evaluation-harness' field names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How many documents there are and were asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleCounts {
    /// In the file.
    pub original: usize,
    /// Asked.
    pub effective: usize,
}

/// The numbers of one task: `alias`, `sample_len`, then `METRIC,FILTER` and `METRIC_stderr,FILTER`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TaskResult {
    /// Name for people.
    pub alias: String,
    /// Documents asked.
    pub sample_len: usize,
    /// Metrics and their standard errors; a standard error that is not defined is `"N/A"`.
    #[serde(flatten)]
    pub values: Map<String, Value>,
}

/// The same for a group: means over its tasks, weighted by their sizes.
pub type Group = TaskResult;

/// A whole evaluation.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Results {
    /// By task, and by group.
    pub results: BTreeMap<String, TaskResult>,
    /// By group.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, Group>,
    /// The tasks of a group; none for a task.
    pub group_subtasks: BTreeMap<String, Vec<String>>,
    /// Definition of every task.
    pub configs: BTreeMap<String, Value>,
    /// Version of every task's definition.
    pub versions: BTreeMap<String, Value>,
    /// Few-shot examples of every task.
    #[serde(rename = "n-shot")]
    pub n_shot: BTreeMap<String, usize>,
    /// By task and metric.
    pub higher_is_better: BTreeMap<String, BTreeMap<String, bool>>,
    /// By task.
    #[serde(rename = "n-samples")]
    pub n_samples: BTreeMap<String, SampleCounts>,
    /// Model and options.
    pub config: Map<String, Value>,
    /// SHA-256 over the hashes of all documents asked, by task.
    pub task_hashes: BTreeMap<String, String>,
    /// Wilson's 95 % interval of every score of right and wrong answers, by task and key; a field of ours.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub wilson_95: BTreeMap<String, BTreeMap<String, [f64; 2]>>,
    /// Everything else: `date`, `git_hash`, `model_name`, `chat_template_sha`, `max_length`, ...
    #[serde(flatten)]
    pub more: Map<String, Value>,
}
