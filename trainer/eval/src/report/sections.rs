//! The parts of a report. A part that the folders have nothing for is left out.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::compare::ComparisonRow;
use crate::report::calibration::{self, answers};
use crate::report::chart::{Chart, Point, Series};
use crate::report::load::{Key, LoadedRun, scores as values_of, stderr_of};
use crate::report::page::{details, escape, labelled, paragraph, section, table};
use crate::run::sample::Sample;
use crate::task::question::EvalResponse;

/// Examples of one kind that are shown of a task, at most.
const SHOWN: usize = 20;
/// Columns of a histogram.
const COLUMNS: usize = 20;

fn number(value: f64) -> String {
    format!("{value:.4}")
}

fn charts(figures: Vec<String>) -> String {
    if figures.is_empty() { String::new() } else { format!("<div class=\"charts\">\n{}</div>\n", figures.concat()) }
}

/// What was evaluated.
pub(super) fn about(runs: &[LoadedRun]) -> String {
    let mut rows = Vec::new();
    for run in runs {
        let Some(results) = &run.results else { continue };
        let plain = |key: &str| match results.config.get(key) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        let asked: usize = results.n_samples.values().map(|counts| counts.effective).sum();
        let adapter = results.config.get("adapter").and_then(|adapter| adapter.get("path")).and_then(Value::as_str);
        let sampling = results.config.get("sampling").and_then(|sampling| sampling.get("seed"));
        let sampling = sampling.map_or_else(|| plain("sampling_seed"), ToString::to_string);
        let adapter = adapter.unwrap_or_default().to_owned();
        rows.push(vec![
            run.name.clone(),
            plain("model"),
            adapter,
            plain("device"),
            asked.to_string(),
            plain("fewshot_seed"),
            sampling,
        ]);
    }
    if rows.is_empty() {
        return String::new();
    }
    table(&["run", "model", "adapter", "device", "documents", "seed of examples", "seed of sampling"], &rows)
}

/// Scores with intervals; of a run the last ones.
pub(super) fn scores(runs: &[LoadedRun]) -> String {
    let mut rows = Vec::new();
    for run in runs {
        let Some(results) = &run.results else { continue };
        for ((task, key), value, interval) in values_of(results) {
            let result = &results.results[&task];
            let metric = key.split(',').next().unwrap_or_default();
            let better = results.higher_is_better.get(&task).and_then(|metrics| metrics.get(metric));
            let arrow = better.map_or("", |&higher| if higher { " ↑" } else { " ↓" });
            let stderr = stderr_of(result, &key).map_or_else(String::new, number);
            let interval = interval.map_or_else(String::new, |[low, high]| format!("{low:.4} – {high:.4}"));
            let teacher = run.teacher.get(&(task.clone(), key.clone())).copied().map_or_else(String::new, number);
            let metric = format!("{}{arrow}", key.strip_suffix(",none").unwrap_or(&key));
            let count = result.sample_len.to_string();
            rows.push(vec![run.name.clone(), task, metric, number(value), stderr, interval, count, teacher]);
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let mut headings = vec!["run", "task", "metric", "value", "stderr", "95 % interval", "n", "teacher"];
    if runs.iter().all(|run| run.teacher.is_empty()) {
        headings.pop();
        rows.iter_mut().for_each(|row| _ = row.pop());
    }
    let note = "Intervals are Wilson's where answers are right or wrong, Agresti and Coull's of other scores, of a perplexity those of its logarithm.";
    section("Scores", &(table(&headings, &rows) + &paragraph(note)))
}

/// Paired differences of two runs.
pub(super) fn differences([a, b]: [&LoadedRun; 2], compared: &[ComparisonRow]) -> String {
    let mut rows = Vec::new();
    for row in compared {
        let c = &row.compared;
        let interval = c.interval.map_or("not known".to_owned(), |i| format!("{:+.4} – {:+.4}", i.low, i.high));
        let verdict = if c.within_noise() { "within noise" } else { "more than noise" };
        let counts = [c.n, c.gained, c.lost].map(|count| count.to_string());
        let [n, gained, lost] = counts;
        let (difference, p) = (format!("{:+.4}", c.difference), number(c.p));
        rows.push(vec![
            row.task.clone(),
            row.metric.clone(),
            n,
            number(c.a),
            number(c.b),
            difference,
            interval,
            p,
            gained,
            lost,
            verdict.to_owned(),
        ]);
    }
    let headings = ["task", "metric", "n", &a.name, &b.name, "difference", "95 % interval", "p", "gained", "lost", ""];
    let note =
        "The same documents in pairs: McNemar's exact test where answers are right or wrong, else a paired t test.";
    section("Differences", &(table(&headings, &rows) + &paragraph(note)))
}

/// Values by step.
pub(super) fn curves(runs: &[LoadedRun]) -> String {
    let keys: BTreeSet<&Key> = runs.iter().flat_map(|run| run.curves.keys()).collect();
    let figure = |key: &Key| {
        let with = |run: &&LoadedRun| run.curves.get(key).is_some_and(|points| points.len() > 1);
        let series: Vec<Series> = runs.iter().filter(with).map(|run| curve(run, key)).collect();
        let teacher = runs.iter().find_map(|run| run.teacher.get(key));
        let rules = teacher.map(|&value| ("teacher".to_owned(), value)).into_iter().collect();
        let title = format!("{}: {}", key.0, key.1.strip_suffix(",none").unwrap_or(&key.1));
        let chart = Chart { title, x: "step".to_owned(), series, rules, ..Chart::default() };
        (!chart.series.is_empty()).then(|| chart.html())
    };
    let figures = charts(keys.into_iter().filter_map(figure).collect());
    if figures.is_empty() { figures } else { section("By step of training", &figures) }
}

fn curve(run: &LoadedRun, key: &Key) -> Series {
    let points = run.curves[key].iter().map(|p| Point { x: p.x, y: p.y, interval: p.interval });
    Series { name: run.name.clone(), points: points.collect() }
}

/// Confidence against right answers.
pub(super) fn calibration(runs: &[LoadedRun]) -> String {
    let (mut figures, mut rows) = (Vec::new(), Vec::new());
    for task in tasks(runs) {
        let mut series = Vec::new();
        for run in runs {
            let Some((_, samples)) = run.samples.get(task) else { continue };
            let answers = answers(samples);
            if answers.is_empty() {
                continue;
            }
            let bins = calibration::bins(&answers);
            rows.push(vec![
                run.name.clone(),
                task.clone(),
                number(calibration::error(&bins)),
                answers.len().to_string(),
            ]);
            let points = bins.iter().map(|bin| Point { x: bin.confidence, y: bin.accuracy, interval: None }).collect();
            series.push(Series { name: run.name.clone(), points });
        }
        if !series.is_empty() {
            let (x, y) = ("confidence".to_owned(), "right".to_owned());
            let range = Some([[0.0, 1.0], [0.0, 1.0]]);
            figures.push(Chart { title: task.clone(), x, y, series, diagonal: true, range, ..Chart::default() }.html());
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let note = "Confidence: of a choice the probability of the likeliest among the choices, of a text the geometric mean of \
                its tokens' probabilities. Calibration error: mean distance of the two over ten bins.";
    let body = charts(figures) + &table(&["run", "task", "calibration error", "n"], &rows) + &paragraph(note);
    section("Calibration", &body)
}

fn tasks(runs: &[LoadedRun]) -> BTreeSet<&String> {
    runs.iter().flat_map(|run| run.samples.keys()).collect()
}

/// How long written answers are, and how many were cut.
pub(super) fn lengths(runs: &[LoadedRun]) -> String {
    let (mut figures, mut rows) = (Vec::new(), Vec::new());
    for task in tasks(runs) {
        let written: Vec<(&LoadedRun, Vec<(usize, bool)>)> = runs
            .iter()
            .filter_map(|run| Some((run, lengths_of(&run.samples.get(task)?.1))))
            .filter(|(_, written)| !written.is_empty())
            .collect();
        let longest = written.iter().flat_map(|(_, all)| all.iter().map(|(length, _)| *length)).max().unwrap_or(0);
        let mut bars = Vec::new();
        for (run, all) in &written {
            let total: usize = all.iter().map(|(length, _)| length).sum();
            let cut = all.iter().filter(|(_, cut)| *cut).count();
            let mean = format!("{:.1}", total as f64 / all.len() as f64);
            let share = format!("{:.1} %", 100.0 * cut as f64 / all.len() as f64);
            rows.push(vec![
                run.name.clone(),
                task.clone(),
                mean,
                longest_of(all).to_string(),
                share,
                all.len().to_string(),
            ]);
            bars.push((run.name.clone(), histogram(all.iter().map(|(length, _)| *length), longest)));
        }
        if !bars.is_empty() {
            let (x, y) = ("tokens of an answer".to_owned(), "answers".to_owned());
            figures.push(Chart { title: task.clone(), x, y, bars, ..Chart::default() }.html());
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let headings = ["run", "task", "mean tokens", "longest", "cut at the limit", "answers"];
    section("Lengths", &(charts(figures) + &table(&headings, &rows)))
}

fn longest_of(all: &[(usize, bool)]) -> usize {
    all.iter().map(|(length, _)| *length).max().unwrap_or(0)
}

/// Tokens of every written answer, and whether the limit ended it.
fn lengths_of(samples: &[Sample]) -> Vec<(usize, bool)> {
    let written = samples.iter().flat_map(|sample| &sample.responses).filter_map(|response| match response {
        EvalResponse::Text { token_ids, finish_reason, .. } => Some((token_ids.len(), finish_reason == "length")),
        _ => None,
    });
    written.collect()
}

/// (from, to, count) of columns of one whole width that hold all lengths up to `longest`.
pub(super) fn histogram(lengths: impl Iterator<Item = usize>, longest: usize) -> Vec<[f64; 3]> {
    let width = (longest + 1).div_ceil(COLUMNS).max(1);
    let mut counts = vec![0usize; (longest + 1).div_ceil(width)];
    lengths.for_each(|length| counts[length / width] += 1);
    let column = |(i, &count): (usize, &usize)| [(i * width) as f64, ((i + 1) * width) as f64, count as f64];
    counts.iter().enumerate().map(column).collect()
}

/// Documents that one run answers rightly and the other wrongly.
pub(super) fn changed([a, b]: [&LoadedRun; 2], compared: &[ComparisonRow]) -> String {
    let mut body = String::new();
    let mut seen = BTreeSet::new();
    for row in compared {
        // One metric a task: its first about right and wrong.
        if row.gained.is_empty() && row.lost.is_empty() || !seen.insert(&row.task) {
            continue;
        }
        for (places, who) in [(&row.gained, &b.name), (&row.lost, &a.name)] {
            let shown = places.iter().take(SHOWN).map(|&place| {
                let [first, second] = [a, b].map(|run| &run.samples[&row.task].1[place]);
                example(&row.task, first, &[(&a.name, first), (&b.name, second)])
            });
            let shown: String = shown.collect();
            if !shown.is_empty() {
                let title =
                    format!("{}: only {who} is right ({} of {})", row.task, places.len().min(SHOWN), places.len());
                body += &format!("<h3>{}</h3>\n{shown}", escape(title));
            }
        }
    }
    if body.is_empty() { body } else { section("What changed", &body) }
}

/// Some documents that a run answers rightly, and some wrongly.
pub(super) fn examples(run: &LoadedRun) -> String {
    let mut body = String::new();
    for (task, (_, samples)) in &run.samples {
        for (verdict, word) in [(Some(false), "wrong"), (Some(true), "right")] {
            let all: Vec<&Sample> = samples.iter().filter(|sample| sample.correct == verdict).collect();
            let shown = all.len().min(SHOWN / 4);
            if shown > 0 {
                body += &format!("<h3>{}</h3>\n", escape(format!("{task}: {word} ({shown} of {})", all.len())));
                body.extend(all.iter().take(shown).map(|sample| example(task, sample, &[(&run.name, sample)])));
            }
        }
    }
    if body.is_empty() { body } else { section("Examples", &body) }
}

fn example(task: &str, asked: &Sample, answers: &[(&String, &Sample)]) -> String {
    let mut body = labelled("prompt", &asked.prompt);
    if !asked.choices.is_empty() {
        body += &labelled("choices", &asked.choices.join("\n"));
    }
    for (name, sample) in answers {
        let said: Vec<String> = match &sample.responses[..] {
            responses @ [EvalResponse::Text { .. }, ..] => responses.iter().map(|r| r.text().to_owned()).collect(),
            responses => responses.iter().map(|r| format!("ln p = {:.4}", r.logprob())).collect(),
        };
        body += &labelled(name, &said.join("\n"));
        let read: Vec<String> = sample.extracted.iter().map(|(filter, text)| format!("{filter}: {text}")).collect();
        body += &labelled(&format!("{name}, read as"), &read.join("\n"));
    }
    body += &labelled("right answer", &asked.gold);
    details(&format!("{task}, document {}: {}", asked.doc_id, last_line(&asked.prompt)), &body)
}

/// The end of a prompt, where its question stands.
fn last_line(prompt: &str) -> String {
    let line = prompt.trim_end().rsplit('\n').find(|line| line.chars().count() > 12).unwrap_or(prompt);
    let short: String = line.chars().take(110).collect();
    if short.len() < line.len() { short + "…" } else { short }
}
