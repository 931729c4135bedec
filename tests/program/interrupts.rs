//! Runs that Ctrl-C stops: once at the next step, twice at once, and before or while they measure.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::resume::{assert_same_run, assert_whole, lines, start, wait_until};
use crate::serve::client::{self, Server, free_port};
use crate::support::{TRAIN, Workshop, command};

/// Sends Ctrl-C to a program.
#[track_caller]
fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
}

/// Reads stderr up to the line that has `word` in it.
#[track_caller]
fn read_until(stderr: &mut impl BufRead, word: &str) {
    let mut text = String::new();
    while !text.contains(word) {
        let before = text.len();
        stderr.read_line(&mut text).expect("text");
        assert!(text.len() > before, "{word:?} is not in {text:?}");
    }
}

#[test]
fn ctrl_c_stops_with_a_checkpoint() {
    let workshop = Workshop::new();
    let long = ["--set", "schedule.max_steps=100000", "--set", "checkpoint.every=0", "--set", "eval.every=0"];
    let mut child = start(workshop.command("stopped", &long));
    wait_until(&mut child, || lines(&workshop.path("stopped/metrics.jsonl")) > 3);
    interrupt(&child);
    let output = child.wait_with_output().expect("the program ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    let step = lines(&workshop.path("stopped/metrics.jsonl")) - 1;
    assert!(stderr.contains(&format!("interrupted after step {step}; continue with --resume")), "{stderr}");
    assert_eq!(workshop.names("stopped/checkpoints"), ["latest".to_owned(), format!("step_{step:06}")]);
    let steps = format!("schedule.max_steps={}", step + 2);
    let rest = ["--set", &steps, "--set", "checkpoint.every=0", "--set", "eval.every=0"];
    workshop.train("stopped", &[&rest[..], &["--resume"]].concat()).ok();
    workshop.train("whole", &rest).ok();
    assert_eq!(workshop.metrics("stopped"), workshop.metrics("whole"));
}

/// Steps that are far longer than the time between two signals.
const LONG_STEPS: [&str; 10] = [
    "--set",
    "rollout.group_size=200",
    "--set",
    "rollout.max_new_tokens=120",
    "--set",
    "eval.every=0",
    "--set",
    "eval.at_start=false",
    "--set",
    "eval.at_end=false",
];

/// A run of such steps, to be asked what it does.
fn start_long(workshop: &Workshop) -> Server {
    let address = format!("127.0.0.1:{}", free_port());
    let child = start(workshop.command("run", &[&LONG_STEPS[..], &["--serve", &address]].concat()));
    Server { child, address }
}

/// Waits until it has a checkpoint of its first step and is generating again: it is in the second.
fn wait_for_second_step(workshop: &Workshop, run: &Server) {
    client::wait_until("saved", || workshop.path("run/checkpoints/latest").exists());
    client::wait_until("in the second step", || run.stat("arle_num_requests_running") > 0.0);
}

#[test]
fn a_second_ctrl_c_stops_at_once_and_leaves_the_last_checkpoint() {
    let workshop = Workshop::new();
    let mut run = start_long(&workshop);
    let mut stderr = BufReader::new(run.child.stderr.take().expect("a pipe"));
    wait_for_second_step(&workshop, &run);
    interrupt(&run.child);
    read_until(&mut stderr, "stopping after this step");
    interrupt(&run.child);
    read_until(&mut stderr, "stopped at once; --resume continues");
    assert_eq!(run.child.wait().expect("a child").code(), Some(130));
    assert_whole(&workshop, "run");
    assert_eq!(workshop.names("run/checkpoints"), ["latest", "step_000001"]);
    assert_eq!(workshop.metrics("run").len(), 1, "the step was not finished");
    workshop.train("run", &[&LONG_STEPS[..], &["--resume", "--set", "schedule.max_steps=2"]].concat()).ok();
    let steps: Vec<_> = workshop.metrics("run").iter().map(|line| line["step"].as_u64()).collect();
    assert_eq!(steps, [Some(1), Some(2)]);
}

#[test]
fn a_second_ctrl_c_is_heard_when_nobody_reads_the_answer_to_the_first() {
    let workshop = Workshop::new();
    let mut run = start_long(&workshop);
    drop(run.child.stderr.take());
    wait_for_second_step(&workshop, &run);
    interrupt(&run.child);
    sleep(Duration::from_millis(50));
    interrupt(&run.child);
    assert_eq!(run.child.wait().expect("a child").code(), Some(130));
    assert_eq!(workshop.names("run/checkpoints"), ["latest", "step_000001"]);
    assert_eq!(workshop.metrics("run").len(), 1, "the step was not finished");
}

#[test]
fn ctrl_c_before_the_run_begins_leaves_nothing() {
    let workshop = Workshop::new();
    let rows = workshop.path("rows.jsonl");
    // They take seconds to read and to encode.
    let row = |i: usize| format!("{}\n", json!({ "prompt": format!("Why is number {i} blue?"), "completion": "x" }));
    fs::write(&rows, (0..200_000).map(row).collect::<String>()).expect("written");
    let mut child = self::start(workshop.command("run", &[]));
    let reads = |id: u32| {
        let open = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
        open.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file == rows)
    };
    let id = child.id();
    wait_until(&mut child, || reads(id));
    interrupt(&child);
    let start = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().expect("killed");
        }
        sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().expect("the program ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("interrupted before the run began"), "{stderr}");
    assert!(!workshop.path("run").exists());
}

#[test]
fn ctrl_c_in_the_first_measurement_keeps_it() {
    let workshop = Workshop::new();
    let settings = ["--set", "eval.max_new_tokens=120", "--set", "rollout.max_new_tokens=120"];
    workshop.train("whole", &settings).ok();
    let mut child = start(workshop.command("run", &settings));
    wait_until(&mut child, || workshop.path("run/samples.jsonl").exists());
    interrupt(&child);
    assert_eq!(child.wait().expect("a child").code(), Some(130));
    assert_whole(&workshop, "run");
    workshop.train("run", &[&settings[..], &["--resume"]].concat()).ok();
    assert_same_run(&workshop, "run", "whole");
}

#[test]
fn a_closed_terminal_costs_no_checkpoint() {
    let workshop = Workshop::new();
    let (recipe, out) = (workshop.name("recipe.toml"), workshop.name("run"));
    let long = ["--set", "schedule.max_steps=100000", "--set", "checkpoint.every=0", "--set", "eval.every=0"];
    let mut child = start(command(TRAIN, &[&[recipe.as_str(), "--out", &out], &long[..]].concat()));
    drop(child.stderr.take());
    wait_until(&mut child, || lines(&workshop.path("run/metrics.jsonl")) > 3);
    interrupt(&child);
    assert_eq!(child.wait().expect("a child").code(), Some(130));
    let step = lines(&workshop.path("run/metrics.jsonl")) - 1;
    assert_eq!(workshop.names("run/checkpoints"), ["latest".to_owned(), format!("step_{step:06}")]);
}
