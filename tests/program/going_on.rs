//! Runs that are looked at before they begin, stopped in the middle of a measurement, and continued by their folder alone.

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{TRAIN, Workshop, arle_train, command, finish};

#[test]
fn a_run_goes_on_by_its_folder_and_what_is_new() {
    let workshop = Workshop::new();
    let settings = ["--set", "optim.lr=5e-3", "--set", "lora.dropout=0.1"];
    workshop.train("whole", &settings).ok();
    workshop.train("run", &[&settings[..], &["--set", "schedule.max_steps=2"]].concat()).ok();
    let kept = fs::read_to_string(workshop.path("recipe.toml")).expect("a recipe");
    fs::remove_file(workshop.path("recipe.toml")).expect("removed");
    let run = workshop.name("run");
    arle_train(&["--resume", &run, "--json", "--set", "schedule.max_steps=3"]).ok();
    // Changes of an earlier continuation hold on, too.
    arle_train(&["--resume", &run, "--json", "--set", "schedule.max_steps=4"]).ok();
    assert_eq!(workshop.metrics("run").last(), workshop.metrics("whole").last());
    // With its recipe, what was changed at the start need not be said again; what was edited since is a change.
    workshop.write("recipe.toml", &kept);
    workshop.train("run", &["--resume", "--set", "schedule.max_steps=5"]).ok();
    workshop.replace("prompts_per_step = 3", "prompts_per_step = 2");
    workshop.train("run", &["--resume"]).refused(1, &["rollout.prompts_per_step: 3 -> 2"]);
    arle_train(&["--resume", &run, "--set", "optim.lr=1e-3"]).refused(1, &["optim.lr: 0.005 -> 0.001"]);
    arle_train(&["--resume"]).refused(2, &["--resume", "runs/quickstart"]);
    arle_train(&["--resume", &workshop.name("nowhere")]).refused(1, &["nowhere", "holds no run"]);
}

#[test]
fn where_a_run_runs_may_change() {
    let workshop = Workshop::new();
    workshop.train("run", &["--set", "schedule.max_steps=2"]).ok();
    let (run, recipe) = (workshop.name("run"), workshop.name("recipe.toml"));
    let more = ["--resume", "--set", "schedule.max_steps=4", "--set", "runtime.max_running=1", "--set"];
    let told =
        arle_train(&[&[recipe.as_str(), "--out", &run], &more[..], &["runtime.tokens_per_microbatch=200"]].concat());
    assert_eq!(told.code, Some(0), "{told:#?}");
    assert!(told.stderr.contains("`runtime.tokens_per_microbatch`: 2048 -> 200"), "{}", told.stderr);
    workshop.train("whole", &[]).ok();
    let last = |run: &str| workshop.metrics(run).last().expect("a line")["loss"].as_f64().expect("a number");
    assert!((last("run") - last("whole")).abs() < 1e-4, "{} and {}", last("run"), last("whole"));
}

#[test]
fn a_run_tells_what_it_will_do_and_a_dry_run_does_no_more() {
    let workshop = Workshop::new();
    let recipe = workshop.name("recipe.toml");
    let dry = |set: &[&str]| {
        let set: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        arle_train(&[&[recipe.as_str(), "--dry-run"], &set[..]].concat())
    };
    let told = dry(&[]);
    assert_eq!(told.code, Some(0), "{told:#?}");
    let words = [
        "LoRA of rank 4 on all-linear",
        "reverse_kl on the student's own completions",
        "6 rows and 2 held-out ones; 4 steps, 2.0 epochs; a step has 3 prompts and at most 24 new tokens",
        "memory     cpu",
        "device     cpu",
    ];
    for word in words {
        assert!(told.stderr.contains(word), "{word:?} is not in {}", told.stderr);
    }
    dry(&["lora.target_modules=[\"qq_proj\"]"]).refused(1, &["qq_proj"]);
    dry(&["rollout.max_prompt_tokens=3"]).refused(1, &["rows.jsonl:1", "`rollout.max_prompt_tokens` is 3"]);
    dry(&["teacher.system_prompt=x", "data.chat=false"]).refused(1, &["teacher.system_prompt", "chat template"]);
    dry(&["student.layers=[0, 2]"]).refused(1, &["layers", "2"]);
    workshop.replace("[lora]\nr = 4\nalpha = 8.0\n", "");
    let told = dry(&[]);
    assert!(
        told.stderr.contains("every weight of the student") && told.stderr.contains("no [lora]"),
        "{}",
        told.stderr
    );
}

#[test]
fn a_shorter_run_has_a_shorter_warm_up() {
    let workshop = Workshop::new();
    workshop.replace("max_steps = 4", "kind = \"cosine\"\nmax_steps = 40\nwarmup_steps = 10");
    let (recipe, run) = (workshop.name("recipe.toml"), workshop.name("run"));
    let told = arle_train(&[&recipe, "--out", &run, "--set", "schedule.max_steps=8"]);
    assert!(told.code == Some(0) && told.stderr.contains("`schedule.warmup_steps` is 2 instead of 10"), "{told:#?}");
    let rates: Vec<f64> = workshop.metrics("run").iter().filter_map(|line| line.get("optim/lr")?.as_f64()).collect();
    assert_eq!(rates[..2], [0.005, 0.01]);
    // It stays as it was when the run becomes longer.
    arle_train(&["--resume", &run, "--json", "--set", "schedule.max_steps=9"]).ok();
    // A length of the other kind takes the place of the recipe's.
    workshop.train("epochs", &["--set", "schedule.epochs=1"]).ok();
    assert_eq!(workshop.metrics("epochs").iter().filter(|line| line.contains_key("loss")).count(), 2);
}

/// A run whose measurements take long: many held-out rows with long completions.
fn slow_to_measure() -> Workshop {
    let workshop = Workshop::new();
    let row = |i: usize| format!("{}\n", json!({ "prompt": format!("Why is number {i} blue?") }));
    workshop.write("rows.jsonl", &(0..66).map(row).collect::<String>());
    workshop.replace("eval_rows = 2", "eval_rows = 60");
    workshop.replace("every = 2", "every = 1\nat_start = false\nmax_new_tokens = 60");
    workshop
}

#[test]
fn a_measurement_that_is_stopped_is_made_by_the_continuation() {
    let workshop = slow_to_measure();
    workshop.train("whole", &["--set", "schedule.max_steps=2"]).ok();
    let want = workshop.metrics("whole");
    for (number, wait) in [0, 40, 150, 300].into_iter().enumerate() {
        let run = format!("run-{number}");
        let mut command = workshop.command(&run, &["--set", "schedule.max_steps=2"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let begun = Instant::now();
        while !workshop.path(&run).join("teacher_completions.json").exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing happens");
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(wait));
        let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
        let output = child.wait_with_output().expect("the program ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        if output.status.code() != Some(0) {
            assert_eq!(output.status.code(), Some(130), "{stderr}");
            assert!(stderr.contains("interrupted") && !stderr.contains("error:"), "{stderr}");
            workshop.train(&run, &["--resume", "--set", "schedule.max_steps=2"]).ok();
        }
        assert_eq!(workshop.metrics(&run), want, "stopped after {wait} ms");
    }
}

#[test]
fn a_stop_before_the_first_measurement_is_over_is_no_error() {
    let workshop = slow_to_measure();
    let (recipe, out) = (workshop.name("recipe.toml"), workshop.name("run"));
    let mut command = command(TRAIN, &[&recipe, "--out", &out]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let begun = Instant::now();
    while !workshop.path("run/given.toml").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing happens");
        sleep(Duration::from_millis(1));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs").success());
    let output = child.wait_with_output().expect("the program ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(!stderr.contains("error:"), "{stderr}");
    assert_eq!(finish(workshop.command("run", &["--resume", "--set", "schedule.max_steps=1"])).code, Some(0));
}
