//! metrics.jsonl and samples.jsonl: one JSON object a line, cut back to a checkpoint's length when a run is resumed.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use runtime::read;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Named numbers of one step, in the order they were added.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepMetrics(Map<String, Value>);

impl StepMetrics {
    /// Starts with `step`.
    #[must_use]
    pub fn at(step: u64) -> Self {
        Self(Map::from_iter([("step".to_owned(), Value::from(step))]))
    }

    /// Adds one number. JSON has no NaN or infinity: those become `null`.
    pub fn set(&mut self, name: &str, value: f64) {
        self.0.insert(name.to_owned(), Value::from(value));
    }

    /// The number of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).and_then(Value::as_f64)
    }

    /// All of them that are finite.
    pub fn named(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)))
    }

    /// The object itself.
    #[must_use]
    pub fn as_json(&self) -> &Map<String, Value> {
        &self.0
    }
}

/// A file of JSON lines that knows its length.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl JsonLines {
    /// Opens `path`, keeping its first `bytes` bytes only.
    ///
    /// # Errors
    /// When it is shorter than that, or cannot be opened.
    pub fn open(path: &Path, bytes: u64) -> Result<Self> {
        let io = || Error::io(path);
        // A pipe or a device in its place would be waited for, or written without end.
        read::if_there(read::open(path))?;
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(io())?;
        let length = file.metadata().map_err(io())?.len();
        if length < bytes {
            let what = format!("has {length} bytes, but the checkpoint was written after {bytes}; lines are missing");
            return Err(Error::from(command::Error::RunFolder { path: path.to_owned(), what }));
        }
        file.set_len(bytes).map_err(io())?;
        file.seek(SeekFrom::End(0)).map_err(io())?;
        Ok(Self { path: path.to_owned(), file, bytes })
    }

    /// Length of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, object: &Map<String, Value>) -> Result<()> {
        let mut line = serde_json::to_vec(object).expect("plain JSON");
        line.push(b'\n');
        self.file.write_all(&line).map_err(Error::io(&self.path))?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Makes the lines durable, before a checkpoint refers to them.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_after_the_checkpoint_are_cut_off() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics.jsonl");
        let mut lines = JsonLines::open(&path, 0).expect("opens");
        lines.write(StepMetrics::at(1).as_json()).expect("written");
        let kept = lines.bytes();
        lines.write(StepMetrics::at(2).as_json()).expect("written");
        drop(lines);
        let mut lines = JsonLines::open(&path, kept).expect("opens");
        let mut again = StepMetrics::at(2);
        again.set("loss", f64::NAN);
        lines.write(again.as_json()).expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("text"), "{\"step\":1}\n{\"step\":2,\"loss\":null}\n");
        assert!(JsonLines::open(&path, 1000).expect_err("too short").to_string().contains("1000"));
    }
}
