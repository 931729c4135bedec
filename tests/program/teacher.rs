//! Checkpoints as teachers.

use std::fs;

use crate::support::{Workshop, fixture};

const SYSTEM: &str = "kind = \"self\"\nsystem_prompt = \"You are a helpful assistant.\"";
const CHECKPOINT: &str = "kind = \"checkpoint\"\npath = \"first/checkpoints/latest\"";
const LORA: &str = "[lora]\nr = 4\nalpha = 8.0\n";

/// Held-out KL of the first and the last measurement of a run.
fn kl(workshop: &Workshop, run: &str) -> (f64, f64) {
    let metrics = workshop.metrics(run);
    let of = |line: &serde_json::Map<String, serde_json::Value>| line["eval/kl"].as_f64().expect("a measurement");
    (of(&metrics[0]), of(&metrics[metrics.len() - 1]))
}

/// Makes the teacher: a run that goes far enough from the base model to be told from it.
fn train_first(workshop: &Workshop) {
    workshop.train("first", &["--set", "schedule.max_steps=20", "--set", "eval.every=0"]).ok();
}

#[test]
fn a_student_learns_what_an_adapter_checkpoint_has_learned() {
    let workshop = Workshop::new();
    train_first(&workshop);
    // The path is relative to the recipe, not to where the program runs.
    workshop.replace(SYSTEM, CHECKPOINT);
    let long = ["--set", "schedule.max_steps=20", "--set", "eval.every=0"];
    workshop.train("second", &long).ok();
    let (before, after) = kl(&workshop, "second");
    assert!(before > 0.02 && after < 0.5 * before, "held-out KL {before} -> {after}");
    // The teacher stays as it was saved while the student, on the same base weights, moves on.
    let teacher = |run: &str| {
        let metrics = workshop.metrics(run);
        [0, metrics.len() - 1].map(|at| metrics[at]["eval/teacher_perplexity"].as_f64().expect("a measurement"))
    };
    let [at_start, at_end] = teacher("second");
    assert_eq!(at_start, at_end);
    // A full fine-tune has the base weights changed under the same teacher.
    workshop.replace(LORA, "");
    workshop.train("third", &[&long[..], &["--set", "optim.lr=3e-3"]].concat()).ok();
    let (full_before, full_after) = kl(&workshop, "third");
    assert!((full_before / before - 1.0).abs() < 1e-9, "the same two models: {full_before} and {before}");
    assert!(full_after < 0.5 * full_before, "held-out KL {full_before} -> {full_after}");
    let [at_start, at_end] = teacher("third");
    assert_eq!(at_start, at_end);
}

#[test]
fn a_fine_tuned_checkpoint_teaches_with_its_own_weights_and_a_context() {
    let workshop = Workshop::new();
    workshop.replace(LORA, "");
    workshop.train("first", &["--set", "schedule.max_steps=5", "--set", "optim.lr=3e-3"]).ok();
    workshop.replace(SYSTEM, CHECKPOINT);
    workshop.train("second", &["--set", "schedule.max_steps=2"]).ok();
    assert!(kl(&workshop, "second").0 > 1e-3);
    // The same folder as a model is the same teacher.
    workshop.replace("kind = \"checkpoint\"\npath =", "kind = \"model\"\nmodel =");
    workshop.train("third", &["--set", "schedule.max_steps=2"]).ok();
    assert_eq!(workshop.metrics("third"), workshop.metrics("second"));
    workshop.train("fourth", &["--set", "schedule.max_steps=2", "--set", "teacher.system_prompt=\"Be brief.\""]).ok();
    assert_ne!(kl(&workshop, "fourth").0, kl(&workshop, "second").0);
}

#[test]
fn a_run_taught_by_a_checkpoint_resumes_to_the_bit() {
    let workshop = Workshop::new();
    train_first(&workshop);
    workshop.replace(SYSTEM, CHECKPOINT);
    workshop.train("whole", &[]).ok();
    workshop.train("cut", &["--set", "schedule.max_steps=2"]).ok();
    workshop.train("cut", &["--resume"]).ok();
    assert_eq!(workshop.metrics("cut"), workshop.metrics("whole"));
}

#[test]
fn a_checkpoint_that_cannot_teach_is_refused() {
    let workshop = Workshop::new();
    let teacher = |set: &[&str]| workshop.train("run", &[&["--set", "schedule.max_steps=1"], set].concat());
    workshop.replace(SYSTEM, "kind = \"checkpoint\"");
    teacher(&[]).refused(2, &["teacher.path", "kind = \"checkpoint\""]);
    let path = |path: &str| format!("teacher.path={path}");
    teacher(&["--set", &path(&workshop.name("nowhere"))]).refused(1, &["nowhere", "adapter_model.safetensors"]);
    // The folder of a run is not a checkpoint.
    fs::create_dir_all(workshop.path("other/checkpoints/step_000001")).expect("a folder");
    teacher(&["--set", &path(&workshop.name("other"))]).refused(1, &["other", "checkpoints/step_000100"]);
    // An adapter of another model.
    let adapter = fixture("adapters/qwen3-patterns-rslora");
    teacher(&["--set", &path(&adapter)]).refused(1, &["qwen3-patterns-rslora"]);
    teacher(&["--set", &path(&adapter), "--set", "teacher.kind=self"]).refused(2, &["teacher.path", "no effect"]);
    assert!(!workshop.path("run").exists());
}
