//! SHA-256 sums of files, and the list of them in a folder that must not be damaged unnoticed.
//!
//! The list has a line `SUM  NAME` for every other file of the folder, as `sha256sum --check` reads it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};

use crate::{Error, Result, read};

/// Name of the list.
pub const LIST: &str = "checkpoint.sha256";
/// Files of a checkpoint that only the run reads that wrote it.
pub const OF_A_RUN: [&str; 3] = ["trainer_state.json", "optimizer.safetensors", "master_weights.safetensors"];
/// Files of one folder that are read at the same time: the reading of one hides the adding of another.
const AT_ONCE: usize = 4;

/// A sum as it is written.
#[must_use]
pub fn hex(sum: &[u8]) -> String {
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The sum of bytes.
#[must_use]
pub fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The sum of everything that is read, of which each piece goes to `piece` too.
///
/// # Errors
/// What reading and `piece` return.
pub fn of_reader(mut from: impl Read, mut piece: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<String> {
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&sum.finalize()));
        }
        sum.update(&buffer[..read]);
        piece(&buffer[..read])?;
    }
}

/// The sum of a regular file.
///
/// # Errors
/// A file that cannot be read, or is a pipe or a device, which may never end.
pub fn of_file(path: &Path) -> Result<String> {
    of_reader(read::open(path)?, |_| Ok(())).map_err(Error::io(path))
}

/// The sums of several files, in their order, up to `at_once` of them read at the same time.
///
/// # Errors
/// As [`of_file`].
pub fn of_files(paths: &[PathBuf], at_once: usize) -> Result<Vec<String>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some((index, path)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, paths.get(i)?)))
        {
            done.push((index, of_file(path)));
        }
        done
    };
    let mut sums: Vec<(usize, Result<String>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once.min(paths.len())).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("reading files does not panic")).collect()
    });
    sums.sort_by_key(|(index, _)| *index);
    sums.into_iter().map(|(_, sum)| sum).collect()
}

/// Names of all files in a folder and the folders in it, sorted.
///
/// # Errors
/// A folder that cannot be read.
pub fn files_below(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            names.extend(files_below(&path)?.into_iter().map(|below| format!("{name}/{below}")));
        } else {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Writes the list of a folder's files.
///
/// # Errors
/// A file that cannot be read or written.
pub fn write(folder: &Path) -> Result<()> {
    let names: Vec<String> = files_below(folder)?.into_iter().filter(|name| name != LIST).collect();
    let paths: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
    let sums = of_files(&paths, AT_ONCE)?;
    let text: String = sums.iter().zip(&names).map(|(sum, name)| format!("{sum}  {name}\n")).collect();
    let path = folder.join(LIST);
    fs::write(&path, text).map_err(Error::io(&path))
}

/// Holds the files of a folder that are `wanted` against its list; false where it has no list.
///
/// # Errors
/// [`Error::BadFile`] names the first file that is not what it was; a list that is no list.
pub fn verify(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<bool> {
    let path = folder.join(LIST);
    if !path.is_file() {
        return Ok(false);
    }
    let text = read::bytes(&path, read::CONFIGURATION)?;
    let list = parse(&text).map_err(|what| Error::bad_file(&path, what))?;
    let list: Vec<_> = list.into_iter().filter(|(name, _)| wanted(name)).collect();
    let paths: Vec<PathBuf> = list.iter().map(|(name, _)| folder.join(name)).collect();
    for ((path, sum), (_, want)) in paths.iter().zip(of_files(&paths, AT_ONCE)?).zip(&list) {
        if sum != *want {
            let what = format!(
                "is damaged or was changed: its SHA-256 is {sum}, and {want} when it was written ({LIST}); take another \
                 copy, or remove {LIST} where the change is meant"
            );
            return Err(Error::bad_file(path, what));
        }
    }
    Ok(true)
}

/// Names with their sums.
fn parse(text: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "is damaged: it is no text".to_owned())?;
    let line = |(number, line): (usize, &str)| {
        let pair = line.split_once("  ").filter(|(sum, name)| {
            let inside = name.split('/').all(|part| !matches!(part, "" | "." | ".."));
            sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()) && inside
        });
        let (sum, name) = pair.ok_or_else(|| format!("is damaged: line {} is not `SUM  NAME`", number + 1))?;
        Ok((name.to_owned(), sum.to_owned()))
    };
    let list: BTreeMap<_, _> = text.lines().enumerate().map(line).collect::<Result<_, String>>()?;
    if list.is_empty() { Err("is damaged: it is empty".to_owned()) } else { Ok(list) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_found_also_one_in_the_list() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str| folder.path().join(name);
        assert!(!verify(folder.path(), |_| true).expect("no list"));
        fs::write(file("a"), "one\n").expect("written");
        fs::create_dir(file("b")).expect("made");
        fs::write(file("b/c"), vec![7; 3 << 20]).expect("written");
        write(folder.path()).expect("written");
        let list = fs::read_to_string(file(LIST)).expect("a list");
        // `printf 'one\n' | sha256sum`
        assert!(list.starts_with("2c8b08da5ce60398e1f19af0e5dccc744df274b826abe585eaba68c525434806  a\n"), "{list}");
        assert!(verify(folder.path(), |_| true).expect("whole"));
        for name in ["a", "b/c", LIST] {
            let whole = fs::read(file(name)).expect("a file");
            for byte in [0, whole.len() / 2, whole.len() - 1] {
                let mut damaged = whole.clone();
                damaged[byte] ^= 4;
                fs::write(file(name), damaged).expect("written");
                assert!(verify(folder.path(), |_| true).is_err(), "{name}, byte {byte}");
            }
            fs::write(file(name), whole).expect("written");
        }
        fs::remove_file(file("b/c")).expect("removed");
        assert!(verify(folder.path(), |_| true).expect_err("gone").to_string().contains("/b/c"));
        assert!(verify(folder.path(), |name| name == "a").expect("not asked for"));
    }
}
