//! `checkpoint.best`: the best step of a run stays.

use std::fs;

use serde_json::Value;

use crate::support::{Workshop, read_json};

/// A run that gets worse after its first steps, of which one checkpoint is kept.
const SETTINGS: [&str; 10] = [
    "--set",
    "eval.every=1",
    "--set",
    "checkpoint.every=2",
    "--set",
    "checkpoint.keep_last=1",
    "--set",
    "checkpoint.best=eval/kl_forward",
    "--set",
    "optim.lr=0.3",
];

/// Step and value of the least measurement after step 0.
fn least(workshop: &Workshop, run: &str) -> (u64, f64) {
    let lines = workshop.metrics(run);
    let measured = lines[1..].iter().map(|line| (line["step"].as_u64(), line["eval/kl_forward"].as_f64()));
    let measured = measured.map(|(step, value)| (step.expect("a step"), value.expect("measured")));
    measured.min_by(|a, b| a.1.total_cmp(&b.1)).expect("steps")
}

fn target(workshop: &Workshop, run: &str) -> String {
    let link = fs::read_link(workshop.path(run).join("checkpoints/best")).expect("a link");
    link.display().to_string()
}

#[test]
fn the_best_step_is_kept_and_named() {
    let workshop = Workshop::new();
    let length = ["--set", "schedule.max_steps=6"];
    let text = workshop.train("run", &[&SETTINGS[..], &length].concat()).ok();
    let summary = crate::support::json_lines(&text).pop().expect("a summary");
    let (step, value) = least(&workshop, "run");
    assert!(step < 6, "the run gets worse");
    assert_eq!(summary["best"]["step"], step);
    assert_eq!(summary["best"]["value"], value);
    assert_eq!(target(&workshop, "run"), format!("step_{step:06}"));
    let kept = ["best".to_owned(), "latest".to_owned(), format!("step_{step:06}"), "step_000006".to_owned()];
    assert_eq!(workshop.names("run/checkpoints"), kept);
    let state = read_json(&workshop.path("run/checkpoints/best/trainer_state.json"));
    assert_eq!(state["step"], step);
}

#[test]
fn a_continued_run_goes_on_comparing() {
    let workshop = Workshop::new();
    let train = |run: &str, steps: u64, more: &[&str]| {
        let length = format!("schedule.max_steps={steps}");
        workshop.train(run, &[&SETTINGS[..], &["--set", &length], more].concat()).ok()
    };
    train("whole", 6, &[]);
    train("parts", 3, &[]);
    // As if it had been killed between the two links of a checkpoint.
    fs::remove_file(workshop.path("parts/checkpoints/best")).expect("removed");
    train("parts", 6, &["--resume"]);
    assert_eq!(target(&workshop, "parts"), target(&workshop, "whole"));
    let best = |run: &str| -> Value {
        read_json(&workshop.path(run).join("checkpoints/latest/trainer_state.json"))["best"].clone()
    };
    assert_eq!(best("parts"), best("whole"));
    assert_eq!(workshop.names("parts/checkpoints"), workshop.names("whole/checkpoints"));
}

#[test]
fn a_metric_that_is_not_measured_is_refused() {
    let workshop = Workshop::new();
    let refused = |set: &[&str], words: &[&str]| workshop.train("run", set).refused(2, words);
    refused(&["--set", "checkpoint.best=eval/klx"], &["checkpoint.best", "eval/klx", "eval/kl_forward"]);
    refused(&["--set", "checkpoint.best=eval/entropy"], &["eval/entropy", "one of"]);
    workshop.replace("eval_rows = 2\n", "");
    workshop.replace("[eval]\nevery = 2\n", "");
    refused(&["--set", "checkpoint.best=eval/kl"], &["checkpoint.best", "[eval]"]);
}
