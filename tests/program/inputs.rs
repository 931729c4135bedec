//! What a run depends on may not change under it, and nobody else may write to its folder.

use std::fs;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::{Workshop, arle, arle_train, fixture, fixtures};

/// A recipe whose student, teacher, adapter and rows are copies, to be changed.
fn workshop() -> Workshop {
    let workshop = Workshop::new();
    for folder in ["student", "teacher"] {
        copy("tiny-chat", &workshop, folder);
    }
    let held_out = fs::read_to_string(workshop.path("rows.jsonl")).expect("rows");
    workshop.write("held_out.jsonl", &held_out);
    workshop.replace(&format!("model = \"{}\"", fixture("tiny-chat")), "model = \"student\"");
    workshop.replace("kind = \"self\"", "model = \"teacher\"");
    workshop.replace("eval_rows = 2", "held_out = \"held_out.jsonl\"");
    workshop
}

fn copy(fixture: &str, workshop: &Workshop, folder: &str) {
    fs::create_dir_all(workshop.path(folder)).expect("made");
    for entry in fs::read_dir(fixtures().join(fixture)).expect("a fixture") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, workshop.path(folder).join(path.file_name().expect("a name"))).expect("copied");
    }
}

/// Changes the last byte of a file, which keeps its length.
fn change_last_byte(workshop: &Workshop, name: &str) {
    let mut bytes = fs::read(workshop.path(name)).expect("a file");
    let last =
        bytes.iter_mut().rev().find(|byte| byte.is_ascii_punctuation() && !b"\"}".contains(&**byte)).expect("a byte");
    *last ^= 1;
    fs::write(workshop.path(name), bytes).expect("written");
}

const MORE: [&str; 3] = ["--resume", "--set", "schedule.max_steps=6"];

#[test]
fn a_changed_input_is_refused_by_name() {
    let workshop = workshop();
    workshop.train("run", &[]).ok();
    let whole = workshop.metrics("run");
    for (name, key) in [
        ("student/model.safetensors", "student.model"),
        ("student/config.json", "student.model"),
        ("student/tokenizer.json", "student.model"),
        ("teacher/model.safetensors", "teacher.model"),
        ("rows.jsonl", "data.path"),
        ("held_out.jsonl", "data.held_out"),
    ] {
        let before = fs::read(workshop.path(name)).expect("a file");
        let mut changed = before.clone();
        match name.ends_with(".safetensors") {
            true => *changed.last_mut().expect("a byte") ^= 1,
            false => changed.push(b'\n'),
        }
        fs::write(workshop.path(name), changed).expect("written");
        workshop.train("run", &MORE).refused(1, &["has changed", key, name, "SHA-256", "--accept-changed-inputs"]);
        fs::write(workshop.path(name), before).expect("written");
    }
    // A file that was not there decides as well.
    workshop.write("student/special_tokens_map.json", "{}");
    workshop.train("run", &MORE).refused(1, &["student.model", "special_tokens_map.json is new"]);
    fs::remove_file(workshop.path("student/special_tokens_map.json")).expect("removed");
    assert_eq!(workshop.metrics("run"), whole, "a refusal changes nothing");
    workshop.train("run", &MORE).ok();
    workshop.train("whole", &MORE[1..]).ok();
    assert_eq!(workshop.metrics("run").last(), workshop.metrics("whole").last());
}

#[test]
fn an_accepted_change_is_told_and_then_known() {
    let workshop = workshop();
    workshop.train("run", &[]).ok();
    change_last_byte(&workshop, "rows.jsonl");
    change_last_byte(&workshop, "held_out.jsonl");
    let completions = workshop.path("run/teacher_completions.json");
    let before = fs::metadata(&completions).expect("there").modified().expect("a time");
    let (recipe, out) = (workshop.name("recipe.toml"), workshop.name("run"));
    let told = arle_train(&[&[recipe.as_str(), "--out", &out, "--accept-changed-inputs"], &MORE[..]].concat());
    assert_eq!(told.code, Some(0), "{told:#?}");
    for word in ["goes on with changed inputs", "data.path", "data.held_out", "begin anew"] {
        assert!(told.stderr.contains(word), "{word:?} is not in {}", told.stderr);
    }
    assert!(fs::metadata(&completions).expect("there").modified().expect("a time") > before, "the teacher wrote anew");
    workshop.train("run", &["--resume", "--set", "schedule.max_steps=7"]).ok();
}

#[test]
fn the_same_files_elsewhere_are_the_same_inputs() {
    let workshop = workshop();
    workshop.train("run", &[]).ok();
    workshop.train("whole", &MORE[1..]).ok();
    fs::rename(workshop.path("student"), workshop.path("moved")).expect("moved");
    fs::rename(workshop.path("rows.jsonl"), workshop.path("others.jsonl")).expect("moved");
    let (model, rows) = (workshop.name("moved"), workshop.name("others.jsonl"));
    let moved = [format!("student.model={model}"), format!("data.path={rows}")];
    workshop.train("run", &[&MORE[..], &["--set", &moved[0], "--set", &moved[1]]].concat()).ok();
    assert_eq!(workshop.metrics("run").last(), workshop.metrics("whole").last());
}

#[test]
fn a_damaged_checkpoint_is_not_loaded_as_an_adapter() {
    let workshop = Workshop::new();
    workshop.train("run", &["--set", "schedule.max_steps=1"]).ok();
    let adapter = workshop.name("run/checkpoints/latest");
    let model = fixture("tiny-chat");
    let generate =
        || arle(&["generate", "--model", &model, "--adapter", &adapter, "--prompt", "Why?", "--max-new-tokens", "2"]);
    assert_eq!(generate().code, Some(0));
    let weights = workshop.path("run/checkpoints/latest/adapter_model.safetensors");
    let mut bytes = fs::read(&weights).expect("an adapter");
    *bytes.last_mut().expect("a byte") ^= 1;
    fs::write(&weights, bytes).expect("written");
    generate().refused(1, &["adapter_model.safetensors", "damaged", "SHA-256"]);
}

#[test]
fn a_second_run_in_a_folder_names_the_first() {
    let workshop = Workshop::new();
    let long = ["--set", "schedule.max_steps=100000", "--set", "checkpoint.every=0", "--set", "eval.every=0"];
    let mut command = workshop.command("run", &long);
    let mut first: Child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
    let metrics = workshop.path("run/metrics.jsonl");
    let begun = Instant::now();
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 2 {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing happens");
        sleep(Duration::from_millis(2));
    }
    let (process, folder) = (format!("process {}", first.id()), workshop.name("run"));
    for resume in [&[][..], &["--resume"]] {
        workshop.train("run", &[&long[..], resume].concat()).refused(1, &[&process, &folder, "--out"]);
    }
    first.kill().expect("killed");
    first.wait().expect("a child");
    let steps: Vec<u64> = workshop.metrics("run").iter().filter_map(|line| line["step"].as_u64()).collect();
    assert!(steps.windows(2).all(|pair| pair[1] == pair[0] + 1), "one writer: {steps:?}");
    // The lock went with the process.
    workshop.train("run", &["--resume", "--set", "checkpoint.every=0", "--set", "eval.every=0"]).ok();
}
