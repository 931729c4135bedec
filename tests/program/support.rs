//! Starting the programs, and making the folders that they are started on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

pub(crate) const ARLE: &str = env!("CARGO_BIN_EXE_arle");
pub(crate) const TRAIN: &str = env!("CARGO_BIN_EXE_arle-train");

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A program that has not been started; no model cache or log setting of the machine reaches it.
pub(crate) fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .env_remove("RUST_LOG")
        .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
        .env("RAYON_NUM_THREADS", "2")
        .stdin(Stdio::null());
    command
}

pub(crate) fn finish(mut command: Command) -> Ended {
    let output = command.output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("programs write UTF-8");
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

pub(crate) fn arle(args: &[&str]) -> Ended {
    finish(command(ARLE, args))
}

pub(crate) fn arle_train(args: &[&str]) -> Ended {
    finish(command(TRAIN, args))
}

impl Ended {
    /// Standard output of a program that did what was asked.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.stdout
    }

    /// The JSON lines of a program that did what was asked.
    #[track_caller]
    pub(crate) fn lines(self) -> Vec<Value> {
        json_lines(&self.ok())
    }

    /// The only JSON line of a program that did what was asked.
    #[track_caller]
    pub(crate) fn object(self) -> Value {
        let mut lines = self.lines();
        assert_eq!(lines.len(), 1, "one object is expected: {lines:?}");
        lines.remove(0)
    }

    /// Asserts a refusal with this exit code and all these words on stderr, nothing on stdout, and no panic.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert_eq!(self.stdout, "", "a refusal goes to stderr");
        assert!(self.stderr.starts_with("error: "), "{}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {:?}", self.stderr);
        }
    }
}

#[track_caller]
pub(crate) fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// A fixture's path as an argument.
pub(crate) fn fixture(name: &str) -> String {
    fixtures().join(name).display().to_string()
}

pub(crate) fn read_json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A copy of a fixture's folder, to damage.
pub(crate) struct Model {
    folder: TempDir,
}

impl Model {
    pub(crate) fn copy(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for entry in fs::read_dir(fixtures().join(name)).expect("a fixture") {
            let path = entry.expect("an entry").path();
            fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("copied");
        }
        Self { folder }
    }

    pub(crate) fn path(&self) -> String {
        self.folder.path().display().to_string()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Sets one key of a JSON file.
    pub(crate) fn set(&self, file: &str, key: &str, value: Value) {
        let path = self.file(file);
        let mut object = read_json(&path);
        object[key] = value;
        fs::write(path, object.to_string()).expect("written");
    }

    /// Changes the bytes of a file.
    pub(crate) fn edit(&self, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.file(file);
        let mut bytes = fs::read(&path).expect("a file");
        change(&mut bytes);
        fs::write(path, bytes).expect("written");
    }

    /// Changes header and data of a safetensors file.
    pub(crate) fn edit_weights(&self, file: &str, change: impl FnOnce(&mut Map<String, Value>, &mut Vec<u8>)) {
        self.edit(file, |bytes| {
            let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
            let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
            let mut data = bytes.split_off(8 + length);
            change(&mut header, &mut data);
            let header = Value::Object(header).to_string();
            *bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        });
    }
}

/// Folder of a recipe, its rows, and its runs.
pub(crate) struct Workshop {
    folder: TempDir,
}

/// Six training rows and two held-out ones; the teacher sees a system prompt more.
const RECIPE: &str = r#"
[student]
model = "MODEL"
[teacher]
kind = "self"
system_prompt = "You are a helpful assistant."
[lora]
r = 4
alpha = 8.0
[data]
path = "rows.jsonl"
eval_rows = 2
[rollout]
prompts_per_step = 3
max_new_tokens = 8
max_prompt_tokens = 100
[optim]
lr = 1e-2
[schedule]
max_steps = 4
[eval]
every = 2
[checkpoint]
every = 1
keep_last = 2
"#;

impl Workshop {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let workshop = Self { folder };
        let rows = (1..=8).map(|i| json!({ "prompt": format!("Why is number {i} blue?"), "completion": format!("Because the sea is {i}.") }));
        workshop.write("rows.jsonl", &rows.map(|row| format!("{row}\n")).collect::<String>());
        workshop.write("recipe.toml", &RECIPE.replace("MODEL", &fixture("tiny-chat")));
        workshop
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    /// Changes the text of the recipe; what is replaced has to be there.
    pub(crate) fn replace(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.path("recipe.toml")).expect("a recipe");
        assert!(text.contains(from), "{from:?} is not in the recipe");
        self.write("recipe.toml", &text.replace(from, to));
    }

    /// `arle-train recipe.toml --out RUN --json ARGS`, not started.
    pub(crate) fn command(&self, run: &str, args: &[&str]) -> Command {
        let (recipe, out) = (self.name("recipe.toml"), self.name(run));
        command(TRAIN, &[&[recipe.as_str(), "--out", &out, "--json"], args].concat())
    }

    pub(crate) fn train(&self, run: &str, args: &[&str]) -> Ended {
        finish(self.command(run, args))
    }

    /// The metrics of a run without those that measure time or memory.
    #[track_caller]
    pub(crate) fn metrics(&self, run: &str) -> Vec<Map<String, Value>> {
        let timed = |name: &str| name.starts_with("time/") || name.starts_with("perf/");
        let lines = self.metrics_with_times(run).into_iter();
        lines.map(|line| line.into_iter().filter(|(name, _)| !timed(name)).collect()).collect()
    }

    /// All metrics of a run.
    #[track_caller]
    pub(crate) fn metrics_with_times(&self, run: &str) -> Vec<Map<String, Value>> {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).expect("metrics");
        let lines = json_lines(&text).into_iter().map(|line| match line {
            Value::Object(line) => line,
            other => panic!("{other} is not an object"),
        });
        lines.collect()
    }

    /// Names in a folder of a run, sorted.
    #[track_caller]
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let path = self.path(folder);
        let entries = fs::read_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}
