//! Runs that are killed or out of disk space, and what `--resume` makes of them.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::{TRAIN, Workshop, command, finish, fixture, read_json};

const CHECKPOINT_FILES: [&str; 5] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "checkpoint.sha256",
    "optimizer.safetensors",
    "trainer_state.json",
];

/// Lines of a file that may not be there yet.
pub(crate) fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

/// Waits until `done`; a program that ends (or hangs) before is a failure.
#[track_caller]
pub(crate) fn wait_until(child: &mut Child, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing happens");
        assert_eq!(child.try_wait().expect("a child"), None, "the program ended too early");
        sleep(Duration::from_millis(1));
    }
}

pub(crate) fn start(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

/// Every folder that is called a checkpoint is a whole one.
#[track_caller]
pub(crate) fn assert_whole(workshop: &Workshop, run: &str) {
    for name in workshop.names(&format!("{run}/checkpoints")) {
        if let Some(step) = name.strip_prefix("step_") {
            let folder = format!("{run}/checkpoints/{name}");
            assert_eq!(workshop.names(&folder), CHECKPOINT_FILES);
            let state = read_json(&workshop.path(&folder).join("trainer_state.json"));
            assert_eq!(state["step"].as_u64(), step.parse().ok());
        }
    }
}

/// Both runs measured the same, to the last bit, and left the same adapter and the same names.
#[track_caller]
pub(crate) fn assert_same_run(workshop: &Workshop, got: &str, want: &str) {
    assert_eq!(workshop.metrics(got), workshop.metrics(want));
    assert_eq!(workshop.names(got), workshop.names(want));
    assert_eq!(workshop.names(&format!("{got}/checkpoints")), workshop.names(&format!("{want}/checkpoints")));
    for file in ["adapter_model.safetensors", "optimizer.safetensors"] {
        let bytes =
            |run: &str| fs::read(workshop.path(run).join("checkpoints/latest").join(file)).expect("a checkpoint");
        assert!(bytes(got) == bytes(want), "{file} differs");
    }
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_like_one_that_was_not() {
    let workshop = Workshop::new();
    // Dropout, warm-up and a bent schedule: everything that has to come back has an effect.
    let settings = [
        "schedule.max_steps=60",
        "schedule.kind=cosine",
        "schedule.warmup_steps=7",
        "lora.dropout=0.1",
        "eval.every=9",
        "eval.sample_prompts=[\"Why?\"]",
    ];
    let settings: Vec<&str> = settings.iter().flat_map(|set| ["--set", set]).collect();
    workshop.train("whole", &settings).ok();
    let (config, metrics) = (workshop.path("killed/config.toml"), workshop.path("killed/metrics.jsonl"));
    let mut kills = 0;
    for round in 0..14_u64 {
        let resume: &[&str] = if round == 0 { &[] } else { &["--resume"] };
        let mut child = start(workshop.command("killed", &[&settings[..], resume].concat()));
        // The first kills fall before any step, the others some steps on, at another phase of the step each time.
        let before = lines(&metrics);
        match round {
            0 => wait_until(&mut child, || config.exists()),
            1 => wait_until(&mut child, || lines(&metrics) > 0),
            _ => wait_until(&mut child, || lines(&metrics) > before + 1),
        }
        sleep(Duration::from_micros(1300 * round));
        child.kill().expect("killed");
        kills += usize::from(child.wait().expect("a child").code().is_none());
        assert_whole(&workshop, "killed");
    }
    assert!(kills >= 10, "only {kills} kills came before the end");
    assert!(lines(&metrics) < 61, "the run was over before it was resumed");
    workshop.train("killed", &[&settings[..], &["--resume"]].concat()).ok();
    assert_same_run(&workshop, "killed", "whole");
    let samples = |run: &str| fs::read_to_string(workshop.path(run).join("samples.jsonl")).expect("samples");
    assert_eq!(samples("killed"), samples("whole"));
}

#[test]
fn full_fine_tuning_resumes_to_the_bit_too() {
    let workshop = Workshop::new();
    workshop.replace("[lora]\nr = 4\nalpha = 8.0\n", "");
    let settings = ["--set", "optim.lr=3e-3", "--set", "schedule.max_steps=6"];
    workshop.train("whole", &settings).ok();
    let mut child = start(workshop.command("killed", &settings));
    wait_until(&mut child, || workshop.path("killed/checkpoints/latest").exists());
    child.kill().expect("killed");
    child.wait().expect("a child");
    workshop.train("killed", &[&settings[..], &["--resume"]].concat()).ok();
    assert_eq!(workshop.metrics("killed"), workshop.metrics("whole"));
    let weights =
        |run: &str| fs::read(workshop.path(run).join("checkpoints/latest/model.safetensors")).expect("a model");
    assert!(weights("killed") == weights("whole"));
}

#[test]
fn half_written_checkpoints_are_removed() {
    let workshop = Workshop::new();
    workshop.train("run", &["--set", "schedule.max_steps=2"]).ok();
    let left = workshop.path("run/checkpoints/.tmp-step_000003");
    fs::create_dir(&left).expect("a folder");
    fs::write(left.join("adapter_model.safetensors"), "half").expect("written");
    std::os::unix::fs::symlink("step_000003", workshop.path("run/checkpoints/.tmp-latest")).expect("a link");
    workshop.train("run", &["--resume", "--set", "schedule.max_steps=3"]).ok();
    assert_eq!(workshop.names("run/checkpoints"), ["latest", "step_000002", "step_000003"]);
}

#[test]
fn a_changed_recipe_is_refused_by_key_and_a_longer_one_is_not() {
    let workshop = Workshop::new();
    workshop.train("run", &["--set", "schedule.max_steps=2"]).ok();
    let before = workshop.metrics("run");
    let changed = ["--resume", "--set", "optim.lr=2e-2", "--set", "rollout.group_size=2"];
    workshop
        .train("run", &changed)
        .refused(1, &["another recipe", "optim.lr: 0.01 -> 0.02", "rollout.group_size: 1 -> 2", "--out"]);
    assert_eq!(workshop.metrics("run"), before);
    workshop.train("run", &["--resume"]).ok();
    workshop.train("whole", &[]).ok();
    assert_eq!(
        workshop.metrics("run").last().map(|line| &line["eval/kl"]),
        workshop.metrics("whole").last().map(|line| &line["eval/kl"])
    );
}

#[test]
fn what_cannot_be_continued_is_refused() {
    let workshop = Workshop::new();
    workshop.train("run", &["--resume"]).refused(1, &["holds no run to continue", "config.toml"]);
    assert!(!workshop.path("run").exists());
    workshop.train("run", &[]).ok();
    workshop
        .train("run", &["--resume", &workshop.name("run/checkpoints/step_000001")])
        .refused(1, &["step_000001", "No such file"]);
    let optimizer = workshop.path("run/checkpoints/step_000004/optimizer.safetensors");
    let whole = fs::read(&optimizer).expect("a checkpoint");
    fs::write(&optimizer, &whole[..whole.len() / 2]).expect("written");
    workshop.train("run", &["--resume"]).refused(1, &["optimizer.safetensors"]);
    fs::remove_file(&optimizer).expect("removed");
    workshop.train("run", &["--resume"]).refused(1, &["optimizer.safetensors"]);
    let mut flipped = whole.clone();
    *flipped.last_mut().expect("a byte") ^= 1;
    fs::write(&optimizer, flipped).expect("written");
    workshop.train("run", &["--resume"]).refused(1, &["optimizer.safetensors", "damaged", "SHA-256"]);
    fs::write(&optimizer, whole).expect("written");
    let metrics = workshop.path("run/metrics.jsonl");
    let text = fs::read(&metrics).expect("metrics");
    fs::write(&metrics, &text[..text.len() - 10]).expect("written");
    workshop.train("run", &["--resume"]).refused(1, &["metrics.jsonl", "lines are missing"]);
    fs::write(&metrics, text).expect("written");
    workshop.train("run", &["--resume"]).ok();
}

#[test]
fn an_older_checkpoint_can_be_continued_from_even_if_that_is_killed() {
    let workshop = Workshop::new();
    let settings = ["--set", "checkpoint.keep_last=9"];
    workshop.train("whole", &settings).ok();
    workshop.train("run", &settings).ok();
    let older = workshop.name("run/checkpoints/step_000002");
    workshop.train("run", &[&settings[..], &["--resume", &older]].concat()).ok();
    assert_same_run(&workshop, "run", "whole");
    // Killed after the metrics were cut back to step 2 and before step 3 is saved.
    let long = [
        "--set",
        "checkpoint.keep_last=9",
        "--set",
        "schedule.max_steps=100000",
        "--set",
        "checkpoint.every=0",
        "--set",
        "eval.every=0",
    ];
    let mut child = start(workshop.command("run", &[&long[..], &["--resume", &older]].concat()));
    let metrics = workshop.path("run/metrics.jsonl");
    wait_until(&mut child, || lines(&metrics) != 5);
    child.kill().expect("killed");
    child.wait().expect("a child");
    workshop.train("run", &[&settings[..], &["--resume"]].concat()).ok();
    assert_same_run(&workshop, "run", "whole");
}

#[test]
fn a_full_disk_leaves_the_checkpoint_from_before() {
    let workshop = Workshop::new();
    workshop.train("run", &["--set", "schedule.max_steps=2"]).ok();
    let before = fs::read(workshop.path("run/checkpoints/latest/adapter_model.safetensors")).expect("an adapter");
    assert!(before.len() > 9 << 10, "the adapter has to be larger than the limit below");
    // A limit on the size of files stands for the disk; the signal that would come with it is ignored.
    let script = "trap '' XFSZ; ulimit -f 9; exec \"$@\"";
    let (recipe, out) = (workshop.name("recipe.toml"), workshop.name("run"));
    let limited = command("bash", &["-c", script, "bash", TRAIN, &recipe, "--out", &out, "--json", "--resume"]);
    let ended = finish(limited);
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("safetensors") && ended.stderr.contains("File too large"), "{ended:#?}");
    assert_eq!(workshop.names("run/checkpoints"), ["latest", "step_000001", "step_000002"]);
    assert!(fs::read(workshop.path("run/checkpoints/latest/adapter_model.safetensors")).expect("an adapter") == before);
    workshop.train("run", &["--resume"]).ok();
    workshop.train("whole", &["--set", "schedule.max_steps=4"]).ok();
    assert_eq!(workshop.metrics("run").last(), workshop.metrics("whole").last());
    assert_eq!(workshop.names("run/checkpoints"), ["latest", "step_000003", "step_000004"]);
}

#[test]
fn a_checkpoint_of_another_model_is_refused() {
    let workshop = Workshop::new();
    workshop.train("run", &["--set", "schedule.max_steps=1"]).ok();
    let config = workshop.path("run/checkpoints/latest/adapter_model.safetensors");
    fs::copy(fixture("adapters/llama-all-linear/adapter_model.safetensors"), config).expect("copied");
    workshop
        .train("run", &["--resume", "--set", "schedule.max_steps=2"])
        .refused(1, &["adapter_model.safetensors", "SHA-256", "checkpoint.sha256"]);
    // Also where no sum tells.
    fs::remove_file(workshop.path("run/checkpoints/latest/checkpoint.sha256")).expect("removed");
    workshop
        .train("run", &["--resume", "--set", "schedule.max_steps=2"])
        .refused(1, &["adapter_model.safetensors", "lora", "not F32"]);
}
