//! Several answers to one question.

use crate::Result;
use crate::data::doc::Doc;
use crate::stats;
use crate::stats::metric::{Aggregation, MetricValue};
use crate::task::Task;
use crate::task::outcome::Grade;
use crate::task::question::EvalResponse;

/// Grades several answers to one question: every metric is its mean over them, and the first answer is shown.
pub(crate) fn grade(task: &dyn Task, doc: &Doc, responses: &[EvalResponse]) -> Result<Grade> {
    let outcomes = responses
        .iter()
        .map(|response| task.grade(doc, std::slice::from_ref(response)))
        .collect::<Result<Vec<Grade>>>()?;
    let mut first = outcomes.first().cloned().unwrap_or_default();
    for (key, value) in &mut first.metrics {
        let values: Vec<MetricValue> = outcomes.iter().map(|outcome| outcome.metrics[key]).collect();
        let mean = Aggregation::Mean.of(&values);
        let answers = values.len();
        // Of one question's answers, the mean of `pass@1` gives how many are right.
        let several =
            key.strip_prefix("pass@").and_then(|rest| rest.split(',').next()?.parse().ok()).filter(|&k| k > 1);
        let right = (mean * answers as f64).round() as usize;
        let unbiased = several.and_then(|k| stats::pass_at_k(answers, right, k));
        *value = MetricValue::Number(unbiased.unwrap_or(mean));
    }
    Ok(first)
}
