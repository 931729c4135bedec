//! What a training run's folder has besides scores: how loss and divergences came down, the student's samples, and the
//! recipe.

use std::collections::BTreeMap;
use std::path::Path;

use runtime::read;
use serde_json::{Map, Value};

use crate::report::chart::Point;
use crate::report::load::{Key, LoadedRun};
use crate::report::page::{details, escape, labelled, section};
use crate::{Error, Result};

/// Names in metrics.jsonl that are drawn by step.
const DRAWN: [&str; 11] = [
    "loss",
    "teacher_kl",
    "forward_kl",
    "mismatch_kl",
    "agreement",
    "entropy",
    "teacher_entropy",
    "completions/mean_length",
    "truncated_fraction",
    "optim/grad_norm",
    "optim/lr",
];
/// Points of a curve at most: of more steps, means of as many in a row.
const MOST_POINTS: usize = 400;

/// Texts that followed one prompt: who or at which step, and the text.
type Written = Vec<(String, String)>;

/// A run's folder but for its evaluations.
#[derive(Default)]
pub(super) struct TrainingHistory {
    recipe: Option<String>,
    /// In the order of the file.
    samples: Vec<(String, Written)>,
}

impl TrainingHistory {
    /// Reads what is there, and adds the curves to `curves`.
    pub(super) fn load(folder: &Path, curves: &mut BTreeMap<Key, Vec<Point>>) -> Result<Self> {
        for line in lines(&folder.join("metrics.jsonl"))? {
            let Some(step) = line.get("step").and_then(Value::as_f64) else { continue };
            for (name, value) in &line {
                let held_out = name.strip_prefix("eval/").filter(|name| !name.contains('/'));
                let group = if held_out.is_some() { "held out" } else { "training" };
                let name = held_out.or_else(|| DRAWN.contains(&name.as_str()).then_some(name));
                if let (Some(name), Some(y)) = (name, value.as_f64()) {
                    let key = (group.to_owned(), name.to_owned());
                    curves.entry(key).or_default().push(Point { x: step, y, interval: None });
                }
            }
        }
        let of_training = curves.iter_mut().filter(|((group, _), _)| group == "training");
        of_training.for_each(|(_, points)| *points = thinned(points));
        let recipe = read::if_there(read::text(&folder.join("config.toml"), read::CONFIGURATION))?;
        Ok(Self { recipe, samples: samples(&folder.join("samples.jsonl"))? })
    }
}

/// Every line of a file, as an object; none where there is no file.
fn lines(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let Some(lines) = read::if_there(read::lines(path))? else { return Ok(Vec::new()) };
    let object = |(number, line): (usize, runtime::Result<String>)| {
        let bad = |e: serde_json::Error| {
            Error::from(command::Error::Data { path: path.to_owned(), line: Some(number + 1), what: e.to_string() })
        };
        serde_json::from_str(&line?).map_err(bad)
    };
    lines.enumerate().map(object).collect()
}

fn thinned(points: &[Point]) -> Vec<Point> {
    let mean = |points: &[Point], of: fn(&Point) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
    let together = points.len().div_ceil(MOST_POINTS).max(1);
    points.chunks(together).map(|p| Point { x: mean(p, |p| p.x), y: mean(p, |p| p.y), interval: None }).collect()
}

/// By prompt: the teacher's text, and the student's first and last.
fn samples(path: &Path) -> Result<Vec<(String, Written)>> {
    let mut all: Vec<(String, Written)> = Vec::new();
    for line in lines(path)? {
        let text = |key: &str| line.get(key).and_then(Value::as_str).map(str::to_owned);
        let Some(prompt) = text("prompt") else { continue };
        let at = all.iter().position(|(known, _)| *known == prompt).unwrap_or_else(|| {
            all.push((prompt, Vec::new()));
            all.len() - 1
        });
        let written = &mut all[at].1;
        written.extend(text("teacher").map(|text| ("teacher".to_owned(), text)));
        let step = line.get("step").map_or_else(String::new, ToString::to_string);
        let Some(text) = text("completion") else { continue };
        // The last one gives way to the one after it.
        let students = written.iter().filter(|(who, _)| who != "teacher").count();
        if students > 1 {
            written.pop();
        }
        written.push((format!("student, step {step}"), text));
    }
    Ok(all)
}

/// The student's samples before and after.
pub(super) fn written(runs: &[LoadedRun]) -> String {
    let mut body = String::new();
    for (run, training) in of(runs) {
        let shown = training.samples.iter().map(|(prompt, written)| {
            let texts: String = written.iter().map(|(who, text)| labelled(who, text)).collect();
            details(&prompt.chars().take(110).collect::<String>(), &(labelled("prompt", prompt) + &texts))
        });
        let shown: String = shown.collect();
        if !shown.is_empty() {
            body += &format!("<h3>{}</h3>\n{shown}", escape(&run.name));
        }
    }
    if body.is_empty() { body } else { section("Samples", &body) }
}

/// The recipe with every default.
pub(super) fn recipes(runs: &[LoadedRun]) -> String {
    let body: String = of(runs)
        .filter_map(|(run, training)| {
            Some(details(&format!("{}: config.toml", run.name), &labelled("", training.recipe.as_ref()?)))
        })
        .collect();
    if body.is_empty() { body } else { section("Recipe", &body) }
}

fn of(runs: &[LoadedRun]) -> impl Iterator<Item = (&LoadedRun, &TrainingHistory)> {
    runs.iter().filter_map(|run| Some((run, run.training.as_ref()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_is_drawn_by_means_and_samples_are_the_first_and_the_last() {
        let folder = tempfile::tempdir().expect("a folder");
        let line = |step: usize| format!("{{\"step\": {step}, \"loss\": {step}, \"eval/kl\": 1, \"time/step\": 3}}\n");
        std::fs::write(folder.path().join("metrics.jsonl"), (0..1000).map(line).collect::<String>()).expect("written");
        let line = |step: usize| {
            format!(
                "{{\"step\": {step}, \"prompt\": \"p\", \"completion\": \"c{step}\", \"teacher\": {}}}\n",
                if step == 0 { "\"t\"" } else { "null" }
            )
        };
        std::fs::write(folder.path().join("samples.jsonl"), (0..5).map(line).collect::<String>()).expect("written");
        let mut curves = BTreeMap::new();
        let training = TrainingHistory::load(folder.path(), &mut curves).expect("a run");
        let names: Vec<&str> = curves.keys().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["kl", "loss"]);
        let loss = &curves[&("training".to_owned(), "loss".to_owned())];
        assert_eq!((loss.len(), loss[0].x, loss[0].y), (334, 1.0, 1.0));
        let texts =
            |all: &Written| all.iter().map(|(who, text)| format!("{who}: {text}")).collect::<Vec<_>>().join("; ");
        assert_eq!(texts(&training.samples[0].1), "teacher: t; student, step 0: c0; student, step 4: c4");
    }
}
