//! A report for people: one HTML file that needs nothing else.
//!
//! It shows what a folder holds: scores with intervals, calibration, lengths, and examples; of a training run's folder also
//! loss, divergences and scores by step, the student's samples and the recipe; of two folders their differences.

mod calibration;
mod chart;
mod load;
mod page;
mod sections;
mod training;

use std::path::Path;

use runtime::write;

use crate::Result;
use crate::compare;
use load::LoadedRun;

/// Writes the report of one folder, or of two beside each other. Each is an evaluation's `--out`, or a training run's folder
/// (its last scores, and how they came about).
///
/// # Errors
/// Folders that are neither; two whose tasks are not comparable; a file that cannot be written.
pub fn write(file: &Path, folders: &[&Path]) -> Result<()> {
    let runs = folders.iter().map(|folder| LoadedRun::load(folder)).collect::<Result<Vec<LoadedRun>>>()?;
    let compared = match &runs[..] {
        [a, b] => match (&a.answers, &b.answers) {
            (Some(first), Some(second)) => compare::compare_samples([first, second], &a.samples, &b.samples)?,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    };
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let mut body = sections::about(&runs);
    body += &sections::scores(&runs);
    if let [a, b] = &runs[..]
        && !compared.is_empty()
    {
        body += &sections::differences([a, b], &compared);
    }
    body += &sections::curves(&runs);
    body += &sections::calibration(&runs);
    body += &sections::lengths(&runs);
    body += &match &runs[..] {
        [a, b] => sections::changed([a, b], &compared),
        _ => sections::examples(&runs[0]),
    };
    body += &training::written(&runs);
    body += &training::recipes(&runs);
    if body.is_empty() {
        body = page::paragraph("Nothing has been measured yet.");
    }
    let html = page::page(&format!("Evaluation of {}", names.join(" and ")), &body);
    Ok(write::replace(file, html)?)
}

#[cfg(test)]
mod tests;
