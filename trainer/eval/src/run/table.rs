//! Results for people.

use serde_json::Value;

use crate::run::results::{Results, TaskResult};

const HEADINGS: [&str; 9] = ["task", "version", "filter", "n-shot", "metric", "value", "stderr", "95 % (Wilson)", "n"];

/// A table of all results: the groups after the tasks.
#[must_use]
pub fn table(results: &Results) -> String {
    let mut rows: Vec<[String; 9]> = vec![HEADINGS.map(str::to_owned)];
    let tasks = results.results.iter().filter(|(name, _)| !results.groups.contains_key(*name));
    for (name, result) in tasks.chain(&results.groups) {
        rows.extend(rows_of(name, result, results));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            // Numbers to the right.
            if column >= 5 { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn rows_of(name: &str, result: &TaskResult, results: &Results) -> Vec<[String; 9]> {
    let plain = |value: Option<&Value>| value.map_or_else(String::new, |value| value.to_string().replace('"', ""));
    let number = |value: Option<&Value>| match value.and_then(Value::as_f64) {
        Some(number) => format!("{number:.4}"),
        None => plain(value),
    };
    let metrics = result.values.iter().filter(|(key, _)| !key.contains("_stderr,"));
    metrics
        .map(|(key, value)| {
            let (metric, filter) = key.split_once(',').unwrap_or((key, "none"));
            let interval = results.wilson_95.get(name).and_then(|intervals| intervals.get(key));
            let better = results.higher_is_better.get(name).and_then(|metrics| metrics.get(metric));
            let arrow = better.map_or("", |&higher| if higher { " (up)" } else { " (down)" });
            [
                name.to_owned(),
                plain(results.versions.get(name)),
                filter.to_owned(),
                results.n_shot.get(name).map_or_else(String::new, ToString::to_string),
                format!("{metric}{arrow}"),
                number(Some(value)),
                number(result.values.get(&format!("{metric}_stderr,{filter}"))),
                interval.map_or_else(String::new, |[low, high]| format!("{low:.4} - {high:.4}")),
                result.sample_len.to_string(),
            ]
        })
        .collect()
}
