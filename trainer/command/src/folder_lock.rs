//! A folder that one process at a time writes to.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::progress::Progress;
use crate::{Error, Result};

/// Name of the file that is locked. It stays: to remove it would take the lock from under a process that opened it before.
const FILE: &str = "run.lock";

/// Holds a folder until it is dropped. The lock is the system's, so that it ends with the process, however that ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes a folder that is there.
    ///
    /// # Errors
    /// Another process has it: names that one.
    pub fn take(folder: &Path, progress: Progress) -> Result<Self> {
        let path = folder.join(FILE);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(Error::io(&path))?;
        match file.try_lock() {
            Ok(()) => {
                let written = file.set_len(0).and_then(|()| file.rewind());
                written.and_then(|()| writeln!(file, "{}", std::process::id())).map_err(Error::io(&path))?;
            }
            Err(TryLockError::WouldBlock) => return Err(taken(folder, &mut file)),
            // Some network file systems have no locks; a run there is worth more than the lock.
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                progress.line(&format!(
                    "note       {} is on a file system without locks: nothing stops a second run in this folder",
                    folder.display()
                ));
            }
            Err(TryLockError::Error(source)) => return Err(Error::Io { path, source }),
        }
        Ok(Self { _file: file })
    }
}

fn taken(folder: &Path, file: &mut File) -> Error {
    let mut pid = String::new();
    // The other process may be about to write it.
    let who = match file.read_to_string(&mut pid) {
        Ok(_) if !pid.trim().is_empty() => format!("process {}", pid.trim()),
        _ => "another process".to_owned(),
    };
    let what = format!(
        "{who} is writing to this folder; wait until it ends (or stop it with Ctrl-C there), or choose another folder with \
         --out"
    );
    Error::RunFolder { path: folder.to_owned(), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_writer_until_that_one_is_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let quiet = Progress::new(true);
        let first = FolderLock::take(folder.path(), quiet).expect("free");
        let refused = FolderLock::take(folder.path(), quiet).expect_err("taken").to_string();
        let process = format!("process {}", std::process::id());
        assert!(refused.contains(&process) && refused.contains(&folder.path().display().to_string()), "{refused}");
        drop(first);
        FolderLock::take(folder.path(), quiet).expect("free again");
    }
}
