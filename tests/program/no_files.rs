//! Pipes, devices and folders where files are expected: refused by name, and nothing waits for them. And what files say
//! reaches no terminal as a command.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{ARLE, Ended, Model, Workshop, arle, command, finish, fixture};

/// What takes the place of a file.
const KINDS: [&str; 3] = ["a pipe", "a character device", "a folder"];

fn put(kind: &str, path: &Path) {
    if path.exists() {
        fs::remove_file(path).expect("removed");
    }
    match kind {
        "a pipe" => assert!(Command::new("mkfifo").arg(path).status().expect("runs").success()),
        "a folder" => fs::create_dir(path).expect("made"),
        _ => std::os::unix::fs::symlink("/dev/zero", path).expect("linked"),
    }
}

#[track_caller]
fn refused(ended: &Ended, name: &str, kind: &str) {
    assert!(matches!(ended.code, Some(1 | 2)), "{name}, {kind}: {ended:?}");
    assert!(ended.stderr.contains(name) && ended.stderr.contains(&format!("is {kind}")), "{name}, {kind}: {ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
}

#[test]
fn of_a_model() {
    for kind in KINDS {
        let names =
            ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
        for name in names {
            let model = Model::copy("tiny-chat");
            put(kind, &model.file(name));
            refused(&arle(&["generate", "--model", &model.path(), "--chat", "x", "--max-tokens", "1"]), name, kind);
        }
        let model = Model::copy("tiny-chat");
        put(kind, &model.file("model.gguf"));
        let gguf = model.file("model.gguf").display().to_string();
        let ended = arle(&["score", "--model", &gguf, "--tokens", "1,2"]);
        let word = if kind == "a folder" { "config.json" } else { kind };
        assert!(ended.code == Some(1) && ended.stderr.contains(word), "{ended:?}");
    }
}

#[test]
fn of_a_training_run() {
    for kind in KINDS {
        for name in ["rows.jsonl", "recipe.toml"] {
            let workshop = Workshop::new();
            put(kind, &workshop.path(name));
            refused(&workshop.train("run", &[]), name, kind);
        }
        let workshop = Workshop::new();
        workshop.train("run", &["--set", "schedule.max_steps=1"]).ok();
        for name in ["metrics.jsonl", "config.toml"] {
            let path = workshop.path("run").join(name);
            let kept = fs::read(&path).expect("a file");
            put(kind, &path);
            refused(&workshop.train("run", &["--resume", "--set", "schedule.max_steps=1"]), name, kind);
            if kind == "a folder" { fs::remove_dir(&path) } else { fs::remove_file(&path) }.expect("removed");
            fs::write(&path, kept).expect("written");
        }
    }
}

const TASK: &str = "name = \"own\"\nversion = \"1\"\nabout = \"own\"\nkind = \"loglikelihood\"\ndata = { test = \"own.jsonl\" }\n\
                    [prompt]\nquestion = \"{{q}}\"\nanswer = \"{{a}}\"\n";

#[test]
fn of_an_evaluation_and_a_command() {
    let model = fixture("tiny-chat");
    for kind in KINDS {
        let folder = tempfile::tempdir().expect("a folder");
        let name = |name: &str| folder.path().join(name).display().to_string();
        let eval = || arle(&["eval", "--model", &model, "--tasks", &name("own.toml")]);
        put(kind, &folder.path().join("own.toml"));
        refused(&eval(), "own.toml", kind);
        if kind == "a folder" {
            fs::remove_dir(name("own.toml")).expect("removed");
        } else {
            fs::remove_file(name("own.toml")).expect("removed");
        }
        fs::write(name("own.toml"), TASK).expect("written");
        put(kind, &folder.path().join("own.jsonl"));
        refused(&eval(), "own.jsonl", kind);
        put(kind, &folder.path().join("other"));
        refused(&arle(&["score", "--model", &model, "--text-file", &name("other")]), "other", kind);
        refused(&arle(&["bench", "--model", &model, "--requests", &name("other")]), "other", kind);
        let remote = ["eval", "--url", "http://127.0.0.1:9", "--served-model", "m", "--tasks", "gsm8k", "--data", "."];
        refused(&arle(&[&remote[..], &["--api-key-file", &name("other")]].concat()), "other", kind);
        for option in ["--api-key-file", "--chat-template"] {
            let serve = ["serve", "--model", &model, "--port", "0", option, &name("other")];
            refused(&finish(command(ARLE, &serve)), "other", kind);
        }
        let serve =
            ["serve", "--model", &model, "--port", "0", "--tls-cert", &name("other"), "--tls-key", &name("other")];
        refused(&finish(command(ARLE, &serve)), "other", kind);
    }
}

#[test]
fn what_files_say_is_shown_and_not_obeyed() {
    let workshop = Workshop::new();
    workshop.write("rows.jsonl", "{\"pro\\u001b]0;title\\u0007mpt\\u009b2J\": 1}\n");
    let ended = workshop.train("run", &[]);
    assert!(ended.code == Some(1) && ended.stderr.contains("rows.jsonl"), "{ended:?}");
    assert!(!ended.stderr.contains(['\u{1b}', '\u{9b}', '\u{7}']), "{ended:?}");
    let folder = tempfile::tempdir().expect("a folder");
    let (task, data) = (folder.path().join("own.toml"), folder.path().join("own.jsonl"));
    fs::write(&task, TASK.replace("name = \"own\"", "name = \"ow\\u001b[31mn\"")).expect("written");
    fs::write(&data, "{\"q\": \"a\", \"a\": \" b\"}\n").expect("written");
    let ended = arle(&["eval", "--model", &fixture("tiny-chat"), "--tasks", &task.display().to_string()]);
    assert!(!ended.stdout.contains('\u{1b}') && !ended.stderr.contains('\u{1b}'), "{ended:?}");
    assert!(ended.stdout.contains(r"ow\u{1b}[31mn") || ended.code != Some(0), "{ended:?}");
}

/// Reads that are of this machine's own files, or write.
const OTHERS: [&str; 4] = [
    "runtime/src/read.rs",
    "trainer/opd/src/memory.rs",
    "trainer/opd/src/checkpoint/folder.rs",
    "trainer/opd/src/checkpoint/state.rs",
];

#[test]
fn no_other_place_reads_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut folders = ["runtime/src", "serve/src", "trainer"].map(|folder| root.join(folder)).to_vec();
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(&root).expect("below").display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") && !OTHERS.contains(&name.as_str()) {
                let text = fs::read_to_string(&path).expect("text");
                // What tests read, they wrote.
                let tests = name.ends_with("tests.rs")
                    || name.ends_with("fixtures.rs")
                    || name.ends_with("hostile.rs")
                    || name.ends_with("invalid_responses.rs");
                let program = if tests { "" } else { text.split("mod tests {").next().expect("a part") };
                for call in ["fs::read(", "fs::read_to_string(", " File::open(", "(File::open(", "fs::File::open("] {
                    assert!(!program.contains(call), "{name} has {call}: runtime::read opens files");
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 100, "{seen} sources");
}
