//! One graded sample, and the file of them: append-only JSON lines behind a header that names what they belong to.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use runtime::read;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::stats::metric::MetricValue;
use crate::task::question::EvalResponse;
use crate::{Error, Result};

/// One graded sample: a line of `samples_TASK.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Place of the document in its file, from 0.
    pub doc_id: usize,
    /// SHA-256 of the document, so that two runs are known to have asked the same.
    pub doc_hash: String,
    /// What was asked: the whole prompt, few-shot examples included; of a choice between contexts the first one.
    pub prompt: String,
    /// The texts that were chosen from; empty for other tasks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// The answers: one, one for every choice, or one for every repeat.
    pub responses: Vec<EvalResponse>,
    /// The answer that was read out of the response, by filter.
    pub extracted: BTreeMap<String, String>,
    /// The right answer.
    pub gold: String,
    /// Whether the task's first metric is 1; `None` where it is not about right and wrong.
    pub correct: Option<bool>,
    /// Values by the metrics' keys (`exact_match,strict-match`).
    pub metrics: BTreeMap<String, MetricValue>,
}

/// The first line of a sample file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The task.
    pub task: String,
    /// Version of its definition.
    pub version: String,
    /// Documents that are asked in all.
    pub samples: usize,
    /// Everything that decides the answers: model, adapter, data sums, examples, seeds, limits.
    pub config: Map<String, Value>,
}

/// A sample file that is being written.
#[derive(Debug)]
pub struct SampleFile {
    path: PathBuf,
    file: File,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FirstLine {
    header: Header,
}

impl SampleFile {
    /// Begins a file, or continues one with the same header; returns what it has already. A last line that a kill cut
    /// short is taken away.
    ///
    /// # Errors
    /// A file of another configuration, naming what differs; one that is damaged or cannot be written.
    pub fn open(path: &Path, header: &Header) -> Result<(Self, Vec<Sample>)> {
        let text = read::if_there(read::text(path, read::TEXT))?.unwrap_or_default();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(Error::io(path))?;
        file.set_len(whole as u64).map_err(Error::io(path))?;
        let mut open = Self { path: path.to_owned(), file };
        if whole == 0 {
            open.line(&FirstLine { header: header.clone() })?;
            return Ok((open, Vec::new()));
        }
        let (found, samples) = parse(path, &text[..whole])?;
        if let Some(what) = difference(&found, header) {
            let hint = "choose another --out, or delete the file to start again";
            return Err(Error::from(command::Error::RunFolder {
                path: path.to_owned(),
                what: format!("{what}; {hint}"),
            }));
        }
        Ok((open, samples))
    }

    /// Appends a sample.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn append(&mut self, sample: &Sample) -> Result<()> {
        self.line(sample)
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value).map_err(|e| Error::io(&self.path)(e.into()))?;
        line.push(b'\n');
        // One call a line: a kill leaves whole lines and at most one piece of the last.
        self.file.write_all(&line).map_err(Error::io(&self.path))
    }
}

/// Reads a sample file; the samples are in the order of their documents.
///
/// # Errors
/// A file that is no such file, or has a document twice.
pub fn read_samples(path: &Path) -> Result<(Header, Vec<Sample>)> {
    let text = read::text(path, read::TEXT)?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<(Header, Vec<Sample>)> {
    let bad = |line: usize, what: String| {
        Error::from(command::Error::Data { path: path.to_owned(), line: Some(line + 1), what })
    };
    let mut lines = text.lines().enumerate();
    let (_, first) = lines.next().ok_or_else(|| bad(0, "is empty; a header is expected".to_owned()))?;
    let first: FirstLine =
        serde_json::from_str(first).map_err(|e| bad(0, format!("is no header of a sample file: {e}")))?;
    let mut samples = BTreeMap::new();
    for (number, line) in lines {
        let sample: Sample = serde_json::from_str(line).map_err(|e| bad(number, e.to_string()))?;
        let doc_id = sample.doc_id;
        if samples.insert(doc_id, sample).is_some() {
            return Err(bad(number, format!("document {doc_id} is there twice")));
        }
    }
    Ok((first.header, samples.into_values().collect()))
}

/// What `found` has otherwise than `wanted`.
fn difference(found: &Header, wanted: &Header) -> Option<String> {
    let differs = |name: &str, found: &dyn std::fmt::Display, wanted: &dyn std::fmt::Display| {
        Some(format!("was begun with {name} {found}, and this run has {wanted}"))
    };
    if found.task != wanted.task {
        return differs("task", &found.task, &wanted.task);
    }
    if found.version != wanted.version {
        return differs("version", &found.version, &wanted.version);
    }
    if found.samples != wanted.samples {
        return differs("samples", &found.samples, &wanted.samples);
    }
    let keys = found.config.keys().chain(wanted.config.keys());
    let get = |config: &Map<String, Value>, key: &String| config.get(key).cloned().unwrap_or_default();
    let key = keys.into_iter().find(|key| get(&found.config, key) != get(&wanted.config, key))?;
    differs(key, &get(&found.config, key), &get(&wanted.config, key))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn header(seed: u64) -> Header {
        let config = Map::from_iter([("model".to_owned(), json!("m")), ("seed".to_owned(), json!(seed))]);
        Header { task: "t".to_owned(), version: "1".to_owned(), samples: 3, config }
    }

    fn sample(doc_id: usize) -> Sample {
        Sample {
            doc_id,
            doc_hash: "0".to_owned(),
            prompt: "p".to_owned(),
            choices: Vec::new(),
            responses: vec![EvalResponse::Rolling { logprob: -1.5, tokens: 2 }],
            extracted: BTreeMap::new(),
            gold: "g".to_owned(),
            correct: None,
            metrics: BTreeMap::from([("word_perplexity,none".to_owned(), MetricValue::Weighted(-1.5, 2.0))]),
        }
    }

    #[test]
    fn a_file_goes_on_after_a_line_that_was_cut_and_only_with_its_configuration() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("samples_t.jsonl");
        let (mut file, found) = SampleFile::open(&path, &header(1)).expect("begun");
        assert!(found.is_empty());
        file.append(&sample(2)).expect("written");
        file.append(&sample(0)).expect("written");
        drop(file);
        let mut text = fs::read_to_string(&path).expect("there");
        text.push_str("{\"doc_id\": 1, \"do");
        fs::write(&path, text).expect("cut short");

        let refusal = SampleFile::open(&path, &header(2)).expect_err("another seed").to_string();
        assert!(refusal.contains("seed 1") && refusal.contains("has 2") && refusal.contains("--out"), "{refusal}");

        let (mut file, found) = SampleFile::open(&path, &header(1)).expect("continued");
        assert_eq!(found, [sample(0), sample(2)]);
        file.append(&sample(1)).expect("written");
        assert_eq!(read_samples(&path).expect("whole").1, [sample(0), sample(1), sample(2)]);
        file.append(&sample(1)).expect("written");
        let refusal = read_samples(&path).expect_err("twice").to_string();
        assert!(refusal.contains(":5") && refusal.contains("document 1"), "{refusal}");
    }
}
