//! A run's state besides its weights.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use runtime::read;
use serde::{Deserialize, Serialize};

use super::InputChecksums;
use crate::metrics::StepMetrics;
use crate::{Error, Result};

/// Name of the file.
pub(super) const FILE: &str = runtime::sums::OF_A_RUN[0];
const FORMAT: u32 = 1;

/// The position of a run. Random numbers are keyed by the recipe's seed and this position, so it holds all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerState {
    /// Version of this file.
    format: u32,
    /// Steps done.
    pub step: u64,
    /// Optimizer steps done: less than `step` when some were not finite.
    pub optimizer_step: u64,
    /// Training rows used: the data cursor.
    pub rows_seen: u64,
    /// The learning rate at the top of the schedule, where an operator changed it; else it is the recipe's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Steps in a row, up to now, that were not finite.
    pub non_finite: u32,
    /// Key of the random numbers.
    pub seed: u64,
    /// SHA-256 of the resolved recipe.
    pub recipe_sha256: String,
    /// Checksums of the files that the recipe names; nothing in checkpoints of earlier versions.
    #[serde(default, skip_serializing_if = "InputChecksums::is_empty")]
    pub inputs: InputChecksums,
    /// Length of metrics.jsonl at this step.
    pub metrics_bytes: u64,
    /// Length of samples.jsonl at this step.
    pub samples_bytes: u64,
    /// Held-out measurements before the first step, for the summary.
    pub held_out_before: BTreeMap<String, f64>,
    /// The teacher's scores on `eval.tasks`, for the summary.
    #[serde(default)]
    pub teacher_scores: BTreeMap<String, f64>,
    /// The best step up to now, where the recipe names a metric for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// Numbers of this step that are not written yet, because its held-out measurement was stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<StepMetrics>,
    /// Seconds by phase up to now, for the summary.
    pub seconds: BTreeMap<String, f64>,
}

/// The step with the best value of a measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Its name.
    pub metric: String,
    /// The step, which has a checkpoint.
    pub step: u64,
    /// Its value.
    pub value: f64,
}

impl TrainerState {
    /// The state before the first step.
    #[must_use]
    pub fn start(seed: u64, recipe_sha256: String) -> Self {
        Self {
            format: FORMAT,
            step: 0,
            optimizer_step: 0,
            rows_seen: 0,
            lr: None,
            non_finite: 0,
            seed,
            recipe_sha256,
            inputs: InputChecksums::default(),
            metrics_bytes: 0,
            samples_bytes: 0,
            held_out_before: BTreeMap::new(),
            teacher_scores: BTreeMap::new(),
            best: None,
            pending: None,
            seconds: BTreeMap::new(),
        }
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let text = serde_json::to_string_pretty(self).expect("plain numbers and texts");
        fs::write(&path, text).map_err(Error::io(&path))
    }

    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let bytes = read::bytes(&path, read::CONFIGURATION)?;
        let malformed = |what: String| Error::from(command::Error::RunFolder { path: path.clone(), what });
        let state: Self = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
        if state.format != FORMAT {
            return Err(malformed(format!(
                "format {} was written by another version; this one reads {FORMAT}",
                state.format
            )));
        }
        Ok(state)
    }
}
