//! Files that others wrote, opened: every read of one goes through here, so that nothing waits for a pipe, follows a
//! device, or holds more of a file than its purpose can need.

use std::fs::{File, FileType, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::bytes::Bytes;
use crate::{Error, Result};

/// Most bytes of a file of keys.
pub const KEYS: u64 = 1 << 20;
/// Most bytes of a configuration, recipe, template or index: the index of a model of 200,000 tensors has 20 MB. Of small
/// values JSON takes thirty times its length in memory.
pub const CONFIGURATION: u64 = 32 << 20;
/// Most bytes of a tokenizer: of 256,000 tokens it has 35 MB.
pub const TOKENIZER: u64 = 128 << 20;
/// Most bytes of a text, and of a file of rows that is read as a whole.
pub const TEXT: u64 = 1 << 30;
/// Most bytes of one line of a file that is read by lines.
pub const LINE: u64 = 16 << 20;

/// Opens a regular file, or what a link leads to if that is one.
///
/// # Errors
/// What cannot be opened; a folder, a pipe, a device or a socket.
pub fn open(path: &Path) -> Result<File> {
    check(path, &std::fs::metadata(path).map_err(Error::io(path))?)?;
    let mut options = OpenOptions::new();
    options.read(true);
    // Should a pipe have taken the file's place by now: opening it must not wait for a writer.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(Error::io(path))?;
    check(path, &file.metadata().map_err(Error::io(path))?)?;
    Ok(file)
}

fn check(path: &Path, data: &std::fs::Metadata) -> Result<()> {
    if data.is_file() {
        return Ok(());
    }
    Err(Error::NotAFile { path: path.to_owned(), kind: kind(data.file_type()) })
}

fn kind(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kinds = [
            (kind.is_fifo(), "a pipe"),
            (kind.is_char_device(), "a character device"),
            (kind.is_block_device(), "a block device"),
            (kind.is_socket(), "a socket"),
        ];
        if let Some((_, name)) = kinds.into_iter().find(|(is, _)| *is) {
            return name;
        }
    }
    if kind.is_dir() { "a folder" } else { "no regular file" }
}

/// The contents of a file of at most `limit` bytes.
///
/// # Errors
/// As [`open`]; a longer file.
pub fn bytes(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let too_long =
        |length: u64| Error::FileTooLong { path: path.to_owned(), length: Bytes(length), limit: Bytes(limit) };
    let length = file.metadata().map_err(Error::io(path))?.len();
    if length > limit {
        return Err(too_long(length));
    }
    let mut contents = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    // A file may grow while it is read, and those of the kernel say that they are empty.
    file.take(limit + 1).read_to_end(&mut contents).map_err(Error::io(path))?;
    if contents.len() as u64 > limit { Err(too_long(contents.len() as u64)) } else { Ok(contents) }
}

/// [`bytes`] as text.
///
/// # Errors
/// As [`bytes`]; what is not UTF-8.
pub fn text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(bytes(path, limit)?).map_err(|e| Error::bad_file(path, format!("is no text: {}", e.utf8_error())))
}

/// A configuration in JSON.
///
/// # Errors
/// As [`bytes`]; what is not JSON of that form.
pub fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&bytes(path, CONFIGURATION)?).map_err(|e| Error::bad_file(path, e.to_string()))
}

/// A result, or nothing where there is no such file.
///
/// # Errors
/// Those of `read` but that one.
pub fn if_there<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// The lines of a file, without their ends. A line of more than [`LINE`] bytes is an error.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    number: usize,
}

/// Opens a file to read it by lines.
///
/// # Errors
/// As [`open`].
pub fn lines(path: &Path) -> Result<Lines> {
    Ok(Lines { path: path.to_owned(), file: BufReader::new(open(path)?), number: 0 })
}

impl Lines {
    fn line(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        self.number += 1;
        let read = Read::by_ref(&mut self.file).take(LINE + 1).read_until(b'\n', &mut line);
        if read.map_err(Error::io(&self.path))? == 0 {
            return Ok(None);
        }
        let refuse = |detail: String| Error::BadLine { path: self.path.clone(), line: self.number, detail };
        if line.len() as u64 > LINE {
            return Err(refuse(format!("is longer than {}; one line is one row", Bytes(LINE))));
        }
        for end in [b'\n', b'\r'] {
            line.pop_if(|last| *last == end);
        }
        String::from_utf8(line).map(Some).map_err(|e| refuse(format!("is no text: {}", e.utf8_error())))
    }
}

impl Iterator for Lines {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.line().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.expect_err("refused").to_string()
    }

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("runs").success());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).expect("a link");
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let cases = [
            (folder.path(), "is a folder"),
            (&pipe, "is a pipe"),
            (&link, "is a character device"),
            (&socket, "is a socket"),
        ];
        for (path, kind) in cases {
            for refusal in [refusal(bytes(path, TEXT)), refusal(lines(path)), refusal(if_there(json::<u8>(path)))] {
                assert!(refusal.contains(kind) && refusal.contains(&path.display().to_string()), "{refusal}");
            }
        }
        let absent = folder.path().join("absent");
        assert_eq!(if_there(bytes(&absent, TEXT)).expect("nothing"), None);
        assert!(refusal(text(&absent, TEXT)).contains("absent"));
    }

    #[test]
    fn a_long_file_is_refused_before_it_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("sparse");
        File::create(&path).and_then(|file| file.set_len(1 << 40)).expect("a file of holes");
        assert!(
            refusal(bytes(&path, CONFIGURATION)).contains("1024.0 GiB, more than the 32 MiB"),
            "{}",
            refusal(bytes(&path, CONFIGURATION))
        );
        assert!(
            refusal(lines(&path).and_then(Iterator::collect::<Result<Vec<_>>>)).contains("sparse:1: is longer than")
        );
        std::fs::write(&path, "12345").expect("written");
        assert_eq!(bytes(&path, 5).expect("as long as allowed"), b"12345");
        assert!(refusal(bytes(&path, 4)).contains("5 bytes, more than the 4 bytes"));
        // Files of the kernel have length 0 until they are read.
        assert!(!text(Path::new("/proc/self/status"), TEXT).expect("text").is_empty());
        assert!(refusal(text(Path::new("/proc/self/status"), 10)).contains("more than the 10 bytes"));
    }

    #[test]
    fn lines_end_at_either_kind_of_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lines");
        std::fs::write(&path, "a\r\n\nb\rc\nd").expect("written");
        let read: Vec<String> = lines(&path).expect("opens").collect::<Result<_>>().expect("text");
        assert_eq!(read, ["a", "", "b\rc", "d"]);
        std::fs::write(&path, b"a\n\xff\n").expect("written");
        let read = lines(&path).expect("opens").collect::<Result<Vec<_>>>();
        assert!(refusal(read).contains("lines:2: is no text"));
    }
}
