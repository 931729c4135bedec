//! What a run depends on besides its recipe: the files that the recipe names, by their checksums.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use runtime::sums;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A larger file whose size, times and inode are those of the run's last look at it is taken as unchanged without being
/// read, as git's index does: a start does not wait for the checksums of large weights.
const READ_AGAIN: u64 = 64 << 20;
/// Seconds. A file that changed so short a time before it was read may change again within the resolution of its times.
const SETTLED: i64 = 2;
/// Files that are read at the same time where a start waits for them.
const AT_ONCE: usize = 4;

/// One file that a run reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFile {
    /// The key of the recipe that names it, such as `student.model`.
    pub key: String,
    /// Its name below what that key names. Moving all of it to another folder changes nothing.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// Checksums by key and name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InputChecksums(BTreeMap<String, BTreeMap<String, InputChecksum>>);

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InputChecksum {
    sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// Device, inode, and the times of the last changes of its content and of the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stamp: Option<String>,
}

/// A file that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key of the recipe.
    pub key: String,
    what: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.what)
    }
}

impl InputChecksums {
    /// Reads all files, `at_once` of them at the same time.
    ///
    /// # Errors
    /// One that cannot be read.
    pub fn read(files: &[InputFile], at_once: usize) -> Result<Self> {
        Self::default().look(files, at_once)
    }

    /// The sums of `files` now; one that has not been touched since `self` keeps its sum.
    fn look(&self, files: &[InputFile], at_once: usize) -> Result<Self> {
        let stats = files.iter().map(|file| fs::metadata(&file.path).map_err(Error::io(&file.path)));
        let stats: Vec<Metadata> = stats.collect::<Result<_>>()?;
        let known: Vec<Option<&InputChecksum>> =
            files.iter().zip(&stats).map(|(file, stat)| self.untouched(file, stat)).collect();
        // Student and teacher are often one model.
        let unknown: BTreeSet<&PathBuf> =
            files.iter().zip(&known).filter(|(_, known)| known.is_none()).map(|(file, _)| &file.path).collect();
        let unknown: Vec<PathBuf> = unknown.into_iter().cloned().collect();
        let sums: BTreeMap<PathBuf, String> = unknown.iter().cloned().zip(sums::of_files(&unknown, at_once)?).collect();
        let mut inputs = Self::default();
        for ((file, stat), known) in files.iter().zip(&stats).zip(known) {
            let input = match known {
                Some(input) => input.clone(),
                None => InputChecksum {
                    sha256: sums[&file.path].clone(),
                    bytes: Some(stat.len()),
                    stamp: settled(stat).then(|| stamp(stat)),
                },
            };
            inputs.0.entry(file.key.clone()).or_default().insert(file.name.clone(), input);
        }
        Ok(inputs)
    }

    fn untouched(&self, file: &InputFile, stat: &Metadata) -> Option<&InputChecksum> {
        let input = self.0.get(&file.key)?.get(&file.name)?;
        let same = stat.len() > READ_AGAIN && input.stamp.as_ref() == Some(&stamp(stat));
        same.then_some(input)
    }

    /// The sums of `files` now, and in what they are not these.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn compare(&self, files: &[InputFile]) -> Result<(Self, Vec<Change>)> {
        let now = self.look(files, AT_ONCE)?;
        let path = |key: &str, name: &str| {
            let file = files.iter().find(|file| file.key == key && file.name == name);
            file.map_or_else(|| name.to_owned(), |file| file.path.display().to_string())
        };
        let mut changes = Vec::new();
        let keys: BTreeSet<&String> = self.0.keys().chain(now.0.keys()).collect();
        for key in keys {
            let empty = BTreeMap::new();
            let (before, after) = (self.0.get(key).unwrap_or(&empty), now.0.get(key).unwrap_or(&empty));
            let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for name in names {
                let what = match (before.get(name), after.get(name)) {
                    (Some(before), Some(after)) if before.sha256 == after.sha256 => continue,
                    // Which tasks a run is measured by may change.
                    (None, Some(_)) | (Some(_), None) if key.starts_with("eval.") => continue,
                    (Some(before), Some(after)) => format!("{} was {before} and is {after}", path(key, name)),
                    (None, Some(after)) => format!("{} is new, {after}", path(key, name)),
                    (Some(before), None) => format!("{name}, {before}, is not there any more"),
                    (None, None) => continue,
                };
                changes.push(Change { key: key.clone(), what });
            }
        }
        Ok((now, changes))
    }

    /// Whether nothing is recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sums below a key.
    #[must_use]
    pub fn sums(&self, key: &str) -> BTreeMap<String, String> {
        let inputs = self.0.get(key).into_iter().flatten();
        inputs.map(|(name, input)| (name.clone(), input.sha256.clone())).collect()
    }

    /// Puts sums of a key beside those that are there. In what they contradict these is returned, and they are not taken.
    pub fn add(&mut self, key: &str, sums: BTreeMap<String, String>) -> Vec<Change> {
        let recorded = self.0.entry(key.to_owned()).or_default();
        let mut changes = Vec::new();
        for (name, sha256) in sums {
            let now = InputChecksum { sha256, bytes: None, stamp: None };
            match recorded.get(&name) {
                None => drop(recorded.insert(name, now)),
                Some(before) if before.sha256 == now.sha256 => {}
                Some(before) => {
                    let what = format!("{name} was {before} and is {now}");
                    changes.push(Change { key: key.to_owned(), what });
                }
            }
        }
        changes
    }

    /// Takes all of a key out.
    pub fn take(&mut self, key: &str) -> Self {
        Self(self.0.remove_entry(key).into_iter().collect())
    }

    /// Puts all of `other` in.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

impl fmt::Display for InputChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = self.sha256.get(..12).unwrap_or(&self.sha256);
        match self.bytes {
            Some(bytes) => write!(f, "{bytes} bytes (SHA-256 {sum}...)"),
            None => write!(f, "SHA-256 {sum}..."),
        }
    }
}

/// What changes when a file is touched.
fn stamp(stat: &Metadata) -> String {
    let (mtime, ctime) = ((stat.mtime(), stat.mtime_nsec()), (stat.ctime(), stat.ctime_nsec()));
    format!("{} {} {}.{:09} {}.{:09}", stat.dev(), stat.ino(), mtime.0, mtime.1, ctime.0, ctime.1)
}

/// Whether the last change of a file is so long ago that another one would show in its times.
fn settled(stat: &Metadata) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    i64::try_from(now).is_ok_and(|now| now - stat.ctime() > SETTLED)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn file(folder: &Path, key: &str, name: &str) -> InputFile {
        InputFile { key: key.to_owned(), name: name.to_owned(), path: folder.join(name) }
    }

    #[test]
    fn every_change_is_named_and_a_move_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let other = tempfile::tempdir().expect("a folder");
        for (name, text) in [("a", "1"), ("b", "2")] {
            fs::write(folder.path().join(name), text).expect("written");
            fs::write(other.path().join(name), text).expect("written");
        }
        let files = |folder: &Path| vec![file(folder, "student.model", "a"), file(folder, "student.model", "b")];
        let before = InputChecksums::read(&files(folder.path()), 2).expect("read");
        assert_eq!(before.compare(&files(other.path())).expect("read").1, []);
        fs::write(other.path().join("b"), "3").expect("written");
        fs::write(other.path().join("c"), "new").expect("written");
        let now = [file(other.path(), "student.model", "b"), file(other.path(), "student.model", "c")];
        let (now, changes) = before.compare(&now).expect("read");
        let text: Vec<String> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(text.len(), 3, "{text:?}");
        assert!(text[0].starts_with("student.model: a, 1 bytes (SHA-256 6b86b273ff34...), is not there"), "{text:?}");
        assert!(
            text[1].contains("/b was 1 bytes (SHA-256 d4735e3a265e...) and is 1 bytes (SHA-256 4e07408562be...)"),
            "{text:?}"
        );
        assert!(text[2].contains("/c is new"), "{text:?}");
        assert_eq!(now.sums("student.model").len(), 2);
    }

    #[test]
    fn a_pipe_has_no_sum() {
        let error =
            InputChecksums::read(&[file(Path::new("/dev"), "data.path", "null")], 1).expect_err("no file").to_string();
        assert!(error.contains("/dev/null") && error.contains("regular file"), "{error}");
    }

    #[test]
    fn large_files_are_read_again_when_anything_touched_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let input = file(folder.path(), "student.model", "weights");
        let handle = fs::File::create(&input.path).expect("made");
        handle.set_len(READ_AGAIN + 1).expect("long");
        let mut before = InputChecksums::read(std::slice::from_ref(&input), 1).expect("read");
        let stat = fs::metadata(&input.path).expect("there");
        assert!(!settled(&stat), "it was changed a moment ago");
        let mut compared = |stamp: Option<String>| {
            let known = before.0.get_mut("student.model").and_then(|files| files.get_mut("weights"));
            *known.expect("recorded") = InputChecksum { sha256: "another".to_owned(), bytes: None, stamp };
            before.compare(std::slice::from_ref(&input)).expect("read").1.len()
        };
        // A stamp that fits stands for the sum, whatever that is; one that does not fit does not.
        assert_eq!([compared(Some(stamp(&stat))), compared(Some("older".to_owned())), compared(None)], [0, 1, 1]);
    }
}
