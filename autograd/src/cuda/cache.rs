//! Compiled kernels on disk.
//!
//! An entry is named by everything its code depends on and starts with the sum of the rest, so a file that a crash or
//! a full disk left behind is noticed and built again. It gets its name when it is complete.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// `$ARLE_CACHE`, else `$XDG_CACHE_HOME/arle`, else `~/.cache/arle`.
#[must_use]
pub fn cache_dir() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("ARLE_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("arle")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/arle")))
}

/// The directory of compiled kernels.
///
/// # Errors
/// When the environment names no place for it.
pub fn kernel_dir() -> Result<PathBuf> {
    let dir = cache_dir()
        .ok_or_else(|| Error::KernelCache { path: "kernels".to_owned(), why: "there is no place for it".to_owned() })?;
    Ok(dir.join("kernels"))
}

const SUM: usize = 32;

/// The directory of compiled kernels.
pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The one of this process.
    pub(super) fn of_process() -> Result<Self> {
        Ok(Self { dir: kernel_dir()? })
    }

    #[cfg(test)]
    pub(super) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Where the code of `file` for `arch` lies, if it depends on nothing but `parts`.
    pub(super) fn entry(&self, file: &str, arch: &str, parts: &[&str]) -> PathBuf {
        let mut sum = Sha256::new();
        for part in [file, arch].iter().chain(parts) {
            // Lengths keep ("ab", "c") and ("a", "bc") apart.
            sum.update((part.len() as u64).to_le_bytes());
            sum.update(part);
        }
        let key: String = sum.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        self.dir.join(format!("{}-{arch}-{key}.cubin", file.trim_end_matches(".cu").replace('/', "-")))
    }

    /// The code at `entry`; none if it is absent or damaged.
    pub(super) fn read(entry: &Path) -> Result<Option<Vec<u8>>> {
        let mut bytes = match std::fs::read(entry) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(entry, &e)),
        };
        if bytes.len() < SUM {
            return Ok(None);
        }
        let code = bytes.split_off(SUM);
        Ok((Sha256::digest(&code)[..] == bytes[..]).then_some(code))
    }

    /// Stores `code` at `entry`, whole or not at all; processes that do so at the same time do not disturb each other.
    pub(super) fn write(entry: &Path, code: &[u8]) -> Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let dir = entry.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).map_err(|e| failed(dir, &e))?;
        let unique = format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let temporary = dir.join(unique);
        let write = || {
            let mut file = std::fs::File::create(&temporary)?;
            file.write_all(&Sha256::digest(code))?;
            file.write_all(code)?;
            file.sync_all()?;
            std::fs::rename(&temporary, entry)
        };
        write().map_err(|e| {
            let _ = std::fs::remove_file(&temporary);
            failed(entry, &e)
        })
    }
}

fn failed(path: &Path, e: &std::io::Error) -> Error {
    Error::KernelCache { path: path.display().to_string(), why: e.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_found_again_and_a_damaged_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(&dir.path().join("kernels"));
        let entry = cache.entry("a.cu", "sm_80", &["text"]);
        assert_eq!(Cache::read(&entry).unwrap(), None);
        Cache::write(&entry, b"code").unwrap();
        assert_eq!(Cache::read(&entry).unwrap().unwrap(), b"code");
        assert_eq!(std::fs::read_dir(entry.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");

        let whole = std::fs::read(&entry).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..10], &[], &[&whole[..], b"x"].concat()] {
            std::fs::write(&entry, damaged).unwrap();
            assert_eq!(Cache::read(&entry).unwrap(), None, "{} bytes", damaged.len());
        }
    }

    #[test]
    fn entries_differ_by_all_they_depend_on() {
        let cache = Cache::at(Path::new("/cache"));
        let entries = [
            cache.entry("a.cu", "sm_80", &["x", "y"]),
            cache.entry("b.cu", "sm_80", &["x", "y"]),
            cache.entry("a.cu", "sm_89", &["x", "y"]),
            cache.entry("a.cu", "sm_80", &["xy", ""]),
            cache.entry("a.cu", "sm_80", &["x", "z"]),
        ];
        for (i, entry) in entries.iter().enumerate() {
            assert!(!entries[..i].contains(entry), "{}", entry.display());
        }
    }

    #[test]
    fn a_cache_that_cannot_be_written_names_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = Cache::write(&dir.path().join("file/a.cubin"), b"code").unwrap_err().to_string();
        assert!(error.contains("ARLE_CACHE") && error.contains("/file"), "{error}");
    }
}
