//! The folder that tasks read: known files by their sums, JSON lines, CSV, text.

pub(crate) mod doc;
mod hub;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use runtime::source::DataSet;
use runtime::{read, sums};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::data::doc::Doc;
use crate::data::hub::Hub;
use crate::{Error, Result};
use command::progress::Progress;

/// What the name of a data set of the hub begins with; alone, every task's own one.
pub const HUB: &str = "hf:";

/// Sums of the files that the tasks were compared with lm-evaluation-harness on. Scores on other files are not
/// comparable.
const KNOWN: [(&str, &str); 15] = [
    ("gsm8k/train.jsonl", "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"),
    ("gsm8k/test.jsonl", "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),
    ("math500/test.jsonl", "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132"),
    ("humaneval/HumanEval.jsonl", "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2"),
    ("arc_easy/arc_easy.jsonl", "d2d12e59543acf9a5ef6079634a72b30215e36c2fd4236fff3bc855d287b87f5"),
    ("arc_challenge/arc_challenge.jsonl", "1ae3aeedf1951d881cbd5c2e3a31e78a1993d251479afbe4cb413b6707244636"),
    ("piqa/piqa.jsonl", "d2870e73aec5154df3faf259b7700876e11608eebdf69e9d6667435673dbe4e0"),
    ("boolq/boolq.jsonl", "454ff101e614370bb1807fe7ebbda6fdb57e794b9662cc1ccae211bf1ff626c8"),
    ("winogrande/winogrande.jsonl", "ea1592526f3bfdd0948ed3acb1b4dfa3f83d23698917118688ee1df7f8d4b8d7"),
    ("openbookqa/openbook_qa.jsonl", "adb2e5c7f8db810ddad4d6b2bf53dcc86dcc545499f7aafcaf42a8e179476c09"),
    ("lambada/lambada_openai.jsonl", "411bfbe5b9054346b6a19299c0242670adbefb9162efd958593cbc0290b8c9dc"),
    ("hellaswag/val.jsonl", "d9f6ed4be0b9f399f74fa7202ae6fdb32efa40bd741bfbf5e28f2ac274305281"),
    ("wikitext2/test.txt", "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"),
    ("aime24/test.jsonl", "af2b8bd2aa911b6333ad0df32f3ca05c7ae8ed10f1731f4372c8ae26990bf7ac"),
    ("amc23/test.jsonl", "43707e1ca784602d8479de24ee8ce36609dbebc46dd152b0b12a46611aa898a4"),
];

/// Sums over all files of a folder, joined in the order of their names.
const KNOWN_FOLDERS: [(&str, &str); 2] = [
    ("mmlu/dev", "c42b6f36b1fe4b2f5b6b641dad3319944bffd6940d22392bd76b56923ba2f5cd"),
    ("mmlu/test", "beb70992dc542f455829a80d5f9122ef438ce720c64b74ce28fa0714d6229c39"),
];

/// Where files are, beside their folder.
#[derive(Debug)]
enum DataSource {
    Here,
    /// A data set of the hub with the same files.
    Copy(Box<DataSet>, Progress),
    /// The data sets of the hub that the library uses.
    Own(Hub),
}

/// Where the tasks' data is: a folder of this machine, a data set of the hub with the same files, or the hub.
#[derive(Debug)]
pub struct DataFolder {
    root: PathBuf,
    place: DataSource,
    /// Whether files that differ from the known ones are taken.
    any_version: bool,
    /// SHA-256 of everything that was read, by its path in the folder.
    sums: Mutex<BTreeMap<String, String>>,
}

impl DataFolder {
    /// A folder; with `any_version` its files may differ from the known ones.
    #[must_use]
    pub fn new(root: PathBuf, any_version: bool) -> Self {
        Self { root, place: DataSource::Here, any_version, sums: Mutex::default() }
    }

    /// The same of a folder's path, or of `hf:org/name[@revision]`, whose files are downloaded as tasks read them and kept in the
    /// hub's default cache, or of `hf:`, where each task has the data set that lm-evaluation-harness takes, in any version.
    ///
    /// # Errors
    /// A data set that cannot be had.
    pub fn open(place: &Path, any_version: bool, progress: Progress) -> Result<Self> {
        let folder = Self::new(place.to_owned(), any_version);
        match place.to_str().filter(|text| text.starts_with(HUB)) {
            None => Ok(folder),
            Some(HUB) => Ok(Self { place: DataSource::Own(Hub::new(progress)), ..folder }),
            Some(text) => {
                let set = DataSet::open(text, &|line| progress.line(line))?;
                Ok(Self { root: set.snapshot().clone(), place: DataSource::Copy(Box::new(set), progress), ..folder })
            }
        }
    }

    /// Where a file is, which may have to be downloaded first.
    fn path(&self, file: &str) -> Result<PathBuf> {
        match &self.place {
            DataSource::Copy(set, progress) => Ok(set.get(file, &|line| progress.line(line))?),
            DataSource::Here | DataSource::Own(_) => Ok(self.root.join(file)),
        }
    }

    /// The rows of the hub that stand for a file, where they do.
    ///
    /// # Errors
    /// A file that no data set stands for; rows that cannot be had, or have other columns.
    pub(crate) fn hub_rows(&self, file: &str) -> Result<Option<Vec<Doc>>> {
        let DataSource::Own(hub) = &self.place else { return Ok(None) };
        let rows = hub.rows(file)?;
        self.sums.lock().unwrap_or_else(PoisonError::into_inner).insert(rows.source, rows.sum);
        Ok(Some(rows.docs))
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// SHA-256 of every file that was read so far.
    #[must_use]
    pub fn sums(&self) -> BTreeMap<String, String> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// SHA-256 of a file or folder as it is now; nothing of one that is not there, or is the hub's.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn sum_now(&self, name: &str) -> Result<Option<String>> {
        let path = self.root.join(name);
        let sum = match &self.place {
            DataSource::Own(_) => return Ok(None),
            _ if path.is_dir() => sum_of_folder(&path)?,
            _ if path.is_file() => runtime::sums::of_file(&path)?,
            _ => return Ok(None),
        };
        Ok(Some(sum))
    }

    /// A file as text.
    ///
    /// # Errors
    /// When it is missing, or is not the known one.
    pub fn text(&self, file: &str) -> Result<String> {
        let path = self.path(file)?;
        let bytes = read::bytes(&path, read::TEXT).map_err(|e| self.unreadable(file, e))?;
        let known = KNOWN.iter().find(|(name, _)| *name == file).map(|(_, sum)| *sum);
        self.check(file, &sums::of_bytes(&bytes), known)?;
        String::from_utf8(bytes)
            .map_err(|e| Error::from(command::Error::Data { path, line: None, what: e.to_string() }))
    }

    fn unreadable(&self, file: &str, error: runtime::Error) -> Error {
        match error {
            runtime::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Error::from(command::Error::Data {
                    path: self.root.join(file),
                    line: None,
                    what:
                        "is not there; --data names the folder that has it, or hf: for the hub (trainer/EVALUATION.md)"
                            .to_owned(),
                })
            }
            other => other.into(),
        }
    }

    fn check(&self, name: &str, sum: &str, known: Option<&str>) -> Result<()> {
        if let Some(known) = known.filter(|known| *known != sum && !self.any_version) {
            let what = format!(
                "has SHA-256 {sum}, and the file that scores are comparable on has {known}; get that one, or pass \
                 --any-data to evaluate on yours"
            );
            return Err(Error::from(command::Error::Data { path: self.root.join(name), line: None, what }));
        }
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let twice = sums
            .iter()
            .find(|(other, read)| other.as_str() != name && *read == sum)
            .filter(|_| matches!(self.place, DataSource::Copy(..)));
        if let Some((other, _)) = twice {
            let what = format!("the data set has one file for this and for {other}; ask one of their tasks at a time");
            return Err(Error::from(command::Error::Data { path: self.root.join(name), line: None, what }));
        }
        sums.insert(name.to_owned(), sum.to_owned());
        Ok(())
    }

    /// A file of one JSON object a line; every object has `fields`.
    ///
    /// # Errors
    /// When it is missing, not the known one, empty or malformed, by line.
    pub fn json_lines(&self, file: &str, fields: &[&str]) -> Result<Vec<Doc>> {
        let error = |line: usize, what: String| {
            Error::from(command::Error::Data { path: self.root.join(file), line: Some(line + 1), what })
        };
        let lacking = |doc: &Doc| Some(format!("has no `{}`", fields.iter().find(|field| !doc.contains_key(**field))?));
        if let Some(docs) = self.hub_rows(file)? {
            let bad = docs.iter().enumerate().find_map(|(number, doc)| Some((number, lacking(doc)?)));
            return bad.map_or(Ok(docs), |(number, what)| Err(error(number, what)));
        }
        let text = self.text(file)?;
        let mut docs = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let doc: Map<String, Value> = serde_json::from_str(line).map_err(|e| error(number, e.to_string()))?;
            if let Some(what) = lacking(&doc) {
                return Err(error(number, what));
            }
            docs.push(doc);
        }
        if docs.is_empty() {
            return Err(error(0, "no rows".to_owned()));
        }
        Ok(docs)
    }

    /// A CSV file of a folder whose files have one sum, taken over all of them in byte order of their names.
    ///
    /// # Errors
    /// As [`Self::csv`]; a folder that is not the known one.
    pub fn csv_in(&self, folder: &str, file: &str) -> Result<Vec<Doc>> {
        if let Some(docs) = self.hub_rows(file)? {
            return Ok(docs);
        }
        if !self.sums().contains_key(folder) {
            let path = match &self.place {
                DataSource::Copy(set, progress) => set.get_folder(folder, &|line| progress.line(line))?,
                DataSource::Here | DataSource::Own(_) => self.root.join(folder),
            };
            let sum = sum_of_folder(&path).map_err(|error| self.unreadable(folder, error))?;
            let known = KNOWN_FOLDERS.iter().find(|(name, _)| *name == folder).map(|(_, sum)| *sum);
            self.check(folder, &sum, known)?;
        }
        self.csv(file)
    }

    /// A CSV file (RFC 4180) whose first line names the columns.
    ///
    /// # Errors
    /// When it is missing, not the known one, or malformed, by line.
    pub fn csv(&self, file: &str) -> Result<Vec<Doc>> {
        let text = self.text(file)?;
        let error = |line: usize, what: String| {
            Error::from(command::Error::Data { path: self.root.join(file), line: Some(line), what })
        };
        let mut rows = csv_rows(&text).map_err(|(line, what)| error(line, what))?.into_iter();
        let (_, columns) = rows.next().ok_or_else(|| error(1, "no header line".to_owned()))?;
        let mut docs = Vec::new();
        for (line, row) in rows {
            if row.len() != columns.len() {
                return Err(error(line, format!("{} fields, and the header has {}", row.len(), columns.len())));
            }
            docs.push(columns.iter().cloned().zip(row.into_iter().map(Value::String)).collect());
        }
        Ok(docs)
    }
}

/// SHA-256 over all files of a folder, joined in byte order of their names.
fn sum_of_folder(path: &Path) -> runtime::Result<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(runtime::Error::io(path))? {
        files.push(entry.map_err(runtime::Error::io(path))?.path());
    }
    files.sort_unstable();
    let mut all = Sha256::new();
    for path in &files {
        all.update(read::bytes(path, read::TEXT)?);
    }
    Ok(sums::hex(&all.finalize()))
}

/// The line that a row begins on, and its fields.
type CsvRow = (usize, Vec<String>);

/// Rows with the line that each begins on; fields in quotes may hold commas, line ends and doubled quotes.
fn csv_rows(text: &str) -> Result<Vec<CsvRow>, (usize, String)> {
    let (mut rows, mut row, mut field) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut began, mut quoted) = (1, 1, false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        line += usize::from(c == '\n');
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            ',' if !quoted => row.push(std::mem::take(&mut field)),
            '\r' if !quoted && chars.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut field));
                rows.push((began, std::mem::take(&mut row)));
                began = line;
            }
            _ => field.push(c),
        }
    }
    if quoted {
        return Err((began, "a quoted field does not end".to_owned()));
    }
    if !field.is_empty() || !row.is_empty() {
        row.push(field);
        rows.push((began, row));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_fields_may_hold_commas_quotes_and_line_ends() {
        let rows = csv_rows("a,b\r\n\"x, \"\"y\"\"\nz\",2\n3,\n").expect("valid");
        let text = |row: &[&str]| row.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(rows, [(1, text(&["a", "b"])), (2, text(&["x, \"y\"\nz", "2"])), (4, text(&["3", ""]))]);
        assert_eq!(csv_rows("a\n\"b").expect_err("open quote").0, 2);
    }

    #[test]
    fn a_file_that_is_not_the_known_one_is_refused_by_its_sum() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("gsm8k")).expect("made");
        fs::write(folder.path().join("gsm8k/test.jsonl"), "{\"question\": \"?\"}\n").expect("written");
        let data = |any| DataFolder::new(folder.path().to_owned(), any);
        let refusal = data(false).json_lines("gsm8k/test.jsonl", &[]).expect_err("another file").to_string();
        assert!(refusal.contains("3730d312") && refusal.contains("--any-data"), "{refusal}");
        let taken = data(true);
        assert_eq!(taken.json_lines("gsm8k/test.jsonl", &["question"]).expect("taken").len(), 1);
        assert_eq!(taken.sums().len(), 1);
        let refusal = taken.json_lines("gsm8k/test.jsonl", &["answer"]).expect_err("a field lacks").to_string();
        assert!(refusal.contains("test.jsonl:1") && refusal.contains("`answer`"), "{refusal}");
        let refusal = data(true).text("gsm8k/train.jsonl").expect_err("no such file").to_string();
        assert!(refusal.contains("--data"), "{refusal}");
    }
}
