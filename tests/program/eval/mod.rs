//! `arle eval` as a process, on a tiny model and rows of our own.

mod compare;
mod generation_config;
mod held_out;
mod hub;
mod refusals;
mod report;
mod resume;
mod runs;
mod training;

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::fixture;

/// A folder with data of some tasks.
struct Data {
    folder: TempDir,
}

const NAMES: [&str; 8] = ["sun", "moon", "sea", "wind", "snow", "rain", "fire", "sand"];

impl Data {
    fn new() -> Self {
        let data = Self { folder: tempfile::tempdir().expect("a folder") };
        let choice = |(i, name): (usize, &&str)| json!({"query": format!("Question: What is {name}?"), "choices": ["a", "bb", name, "dddd"], "gold": i % 4});
        data.rows("arc_easy/arc_easy.jsonl", NAMES.iter().enumerate().map(choice));
        let word = |name: &&str| json!({"question": format!("How many {name}s?"), "answer": format!("Two.\n#### {}", name.len())});
        data.rows("gsm8k/train.jsonl", NAMES.iter().map(word));
        data.rows("gsm8k/test.jsonl", NAMES[..4].iter().map(word));
        let last = |name: &&str| json!({"context": format!("We look at the"), "continuation": name});
        data.rows("lambada/lambada_openai.jsonl", NAMES.iter().map(last));
        let pronoun = |(i, name): (usize, &&str)| {
            let contexts = ["so Ann".to_owned(), format!("so {name}")];
            json!({"context_options": contexts, "continuation": "won.", "gold": i % 2})
        };
        data.rows("winogrande/winogrande.jsonl", NAMES.iter().enumerate().map(pronoun));
        let article = |name: &&str| format!(" \n = {name} = \n \n The {name} is {} . \n", "old , ".repeat(60));
        data.write("wikitext2/test.txt", &NAMES[..3].iter().map(article).collect::<String>());
        data
    }

    fn rows(&self, file: &str, rows: impl Iterator<Item = Value>) {
        self.write(file, &rows.map(|row| format!("{row}\n")).collect::<String>());
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.path(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// `arle eval` of the tiny model on this data; `--any-data` since the files are ours.
    fn eval(&self, more: &[&str]) -> Vec<String> {
        let (model, data) = (fixture("tiny-chat"), self.name(""));
        let args = ["eval", "--model", &model, "--device", "cpu", "--data", &data, "--any-data"];
        args.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    }
}

/// The samples of a file, after its header.
fn samples(path: PathBuf) -> Vec<Value> {
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut samples = crate::support::json_lines(&text);
    assert!(samples.remove(0).get("header").is_some(), "the first line is the header");
    samples.sort_by_key(|sample| sample["doc_id"].as_u64());
    samples
}

fn run(args: &[String]) -> crate::support::Ended {
    crate::support::arle(&args.iter().map(String::as_str).collect::<Vec<_>>())
}
