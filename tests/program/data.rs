//! Runs from Parquet files, and columns that only the teacher sees.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Ended, Workshop, arle_train, fixture, json_lines};

const SYSTEM: &str = "kind = \"self\"\nsystem_prompt = \"You are a helpful assistant.\"";

/// Given completions count as much as sampled ones, so a row that is read differently is seen.
const MIXED: [&str; 4] = ["--set", "loss.lmbda=0.5", "--set", "rollout.group_size=2"];

/// A workshop whose rows have a column `hint`.
fn with_hints(hint: impl Fn(u32) -> String) -> Workshop {
    let workshop = Workshop::new();
    let row = |i: u32| json!({ "prompt": format!("Why is number {i} blue?"), "hint": hint(i) });
    workshop.write("rows.jsonl", &(1..=8).map(|i| format!("{}\n", row(i))).collect::<String>());
    workshop
}

fn first_kl(workshop: &Workshop, run: &str) -> f64 {
    workshop.metrics(run)[0]["eval/kl"].as_f64().expect("a measurement")
}

#[test]
fn a_run_from_parquet_is_the_run_from_the_same_rows_as_json_lines() {
    let workshop = Workshop::new();
    workshop.train("jsonl", &MIXED).ok();
    for name in ["text", "chat"] {
        let path = format!("data.path={}", fixture(&format!("parquet/{name}.parquet")));
        workshop.train(name, &[&MIXED[..], &["--set", &path]].concat()).ok();
        assert_eq!(workshop.metrics(name), workshop.metrics("jsonl"), "{name}");
        let adapter = |run: &str| {
            fs::read(workshop.path(run).join("checkpoints/latest/adapter_model.safetensors")).expect("an adapter")
        };
        assert!(adapter(name) == adapter("jsonl"), "{name}");
    }
}

#[test]
fn parquet_and_json_lines_can_be_mixed_and_resumed() {
    let workshop = Workshop::new();
    let parquet = fixture("parquet/chat.parquet");
    workshop.replace("path = \"rows.jsonl\"\neval_rows = 2", "path = [\"rows.jsonl\"]\nheld_out = \"PARQUET\"");
    workshop.replace("PARQUET", &parquet);
    workshop.train("whole", &["--set", "schedule.max_steps=6"]).ok();
    workshop.train("cut", &["--set", "schedule.max_steps=3", "--set", "eval.every=2"]).ok();
    workshop.train("cut", &["--resume", "--set", "schedule.max_steps=6"]).ok();
    let at_the_end = |run: &str| workshop.metrics(run).pop().expect("a line");
    assert_eq!(at_the_end("cut"), at_the_end("whole"));
}

#[test]
fn a_bad_parquet_file_is_refused_before_anything_is_written() {
    let workshop = Workshop::new();
    let bytes = fs::read(fixture("parquet/text.parquet")).expect("a fixture");
    fs::write(workshop.path("cut.parquet"), &bytes[..bytes.len() / 2]).expect("written");
    let run = |path: &str, set: &[&str]| workshop.train("run", &[&["--set", path], set].concat());
    run(&format!("data.path={}", workshop.name("cut.parquet")), &[]).refused(1, &["cut.parquet", "Parquet"]);
    run(&format!("data.path={}", workshop.name("rows.jsonl")), &["--set", "data.format=parquet"])
        .refused(1, &["rows.jsonl", "Parquet"]);
    let text = format!("data.path={}", fixture("parquet/text.parquet"));
    run(&text, &["--set", "data.format=jsonl"]).refused(1, &["text.parquet"]);
    run(&text, &["--set", "teacher.context_column=hint"]).refused(1, &["text.parquet:5", "no column `hint`"]);
    assert!(!workshop.path("run").exists());
}

#[test]
fn a_context_that_is_the_same_in_every_row_is_a_system_prompt() {
    let workshop = with_hints(|_| "You are a helpful assistant.".to_owned());
    workshop.train("system", &[]).ok();
    workshop.replace(SYSTEM, "kind = \"self\"\ncontext_column = \"hint\"");
    workshop.train("column", &[]).ok();
    assert_eq!(workshop.metrics("column"), workshop.metrics("system"));
}

#[test]
fn every_row_has_its_own_context_and_the_student_learns_without_it() {
    let workshop = with_hints(|i| format!("number {i}"));
    workshop.replace(
        SYSTEM,
        "kind = \"self\"\ncontext_column = \"hint\"\ncontext_template = \"The answer is {context}, so say it.\"",
    );
    let long = ["--set", "schedule.max_steps=25", "--set", "eval.every=0", "--set", "checkpoint.every=0"];
    workshop.train("hints", &long).ok();
    let kl = |line: &serde_json::Map<String, Value>| line["eval/kl"].as_f64().expect("a measurement");
    let metrics = workshop.metrics("hints");
    let (before, after) = (kl(&metrics[0]), kl(&metrics[metrics.len() - 1]));
    assert!(before > 0.05 && after < 0.7 * before, "held-out KL {before} -> {after}");
    // Another text, or the same around it, is another teacher.
    workshop.train("template", &["--set", "teacher.context_template={context}", "--set", "schedule.max_steps=1"]).ok();
    assert_ne!(first_kl(&workshop, "template"), first_kl(&workshop, "hints"));
    let others = with_hints(|i| format!("letter {i}"));
    others.replace(SYSTEM, "kind = \"self\"\ncontext_column = \"hint\"");
    others.train("run", &["--set", "schedule.max_steps=1"]).ok();
    assert_ne!(first_kl(&others, "run"), first_kl(&workshop, "template"));
}

#[test]
fn a_context_without_a_chat_template_stands_before_the_prompt() {
    let workshop = Workshop::new();
    workshop.replace(SYSTEM, "kind = \"self\"\ncontext_column = \"completion_hint\"");
    let rows = (1..=8).map(|i| json!({ "prompt": format!("Number {i} is"), "completion_hint": "The sea. " }));
    workshop.write("rows.jsonl", &rows.map(|row| format!("{row}\n")).collect::<String>());
    workshop.train("run", &["--set", "data.chat=false", "--set", "schedule.max_steps=2"]).ok();
    assert!(first_kl(&workshop, "run") > 1e-3);
}

#[test]
fn a_row_without_its_context_is_refused() {
    let workshop = with_hints(|i| format!("number {i}"));
    workshop.replace(SYSTEM, "kind = \"self\"\ncontext_column = \"hints\"");
    let refused: Ended = workshop.train("run", &[]);
    refused.refused(1, &["rows.jsonl:1", "no column `hints`", "`teacher.context_column`", "hint"]);
    workshop
        .train("run", &["--set", "teacher.context_template=nothing", "--set", "teacher.context_column=hint"])
        .refused(2, &["teacher.context_template", "{context}"]);
    assert!(!workshop.path("run").exists());
}

#[test]
fn sample_prompts_say_why_the_teacher_is_not_shown() {
    let workshop = with_hints(|i| format!("number {i}"));
    workshop.replace(SYSTEM, "kind = \"self\"\ncontext_column = \"hint\"");
    let (recipe, out) = (workshop.name("recipe.toml"), workshop.name("run"));
    let sets = ["--set", "eval.sample_prompts=[\"Why?\"]", "--set", "schedule.max_steps=2"];
    let ended = arle_train(&[&[recipe.as_str(), "--out", &out], &sets[..]].concat());
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let why = "not shown: its context comes from the data column `hint`";
    assert!(ended.stderr.contains(&format!("[teacher] {why}")), "{}", ended.stderr);
    let text = fs::read_to_string(workshop.path("run/samples.jsonl")).expect("samples");
    let lines = json_lines(&text);
    assert!(lines[0]["teacher_skipped"].as_str().is_some_and(|text| text.starts_with(why)), "{text}");
    assert!(lines.iter().all(|line| line["completion"].is_string() && line.get("teacher").is_none()), "{text}");
}
