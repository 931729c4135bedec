//! Data sets of the Hugging Face hub, a file at a time.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::{ModelSource, hub};
use crate::{Error, Result, read};

/// A data set at one commit, in the cache that Python's `huggingface_hub` uses too.
pub struct DataSet {
    source: String,
    /// Where its files are.
    snapshot: PathBuf,
    /// Its files on the hub; nothing where the hub did not answer, and only the cache's are to be had.
    remote: Option<(ApiRepo, BTreeSet<String>)>,
}

impl DataSet {
    /// Opens `hf:org/name[@revision]`. `progress` gets a line about everything that takes time.
    ///
    /// # Errors
    /// What is no such source; a data set that neither the hub nor the cache has.
    pub fn open(text: &str, progress: &dyn Fn(&str)) -> Result<Self> {
        let source = ModelSource::parse(text)?;
        let ModelSource::Hub { repo, revision } = &source else {
            return source.error("a data set is written as hf:org/name[@revision]".to_owned());
        };
        let revision = revision.as_deref().unwrap_or("main");
        let at = |revision: &str| Repo::with_revision(repo.clone(), RepoType::Dataset, revision.to_owned());
        let failed = |what: &str, e: ApiError| Error::Source { model: text.to_owned(), detail: format!("{what}: {e}") };
        let cache = Cache::from_env();
        let in_cache = || {
            let folder = cache.path().join(at(revision).folder_name());
            let commit = read::text(&folder.join("refs").join(revision), read::KEYS).ok()?;
            let snapshot = cache.repo(at(revision)).pointer_path(commit.trim());
            Some(Self { source: text.to_owned(), snapshot, remote: None })
        };
        if let Some(variable) = hub::offline() {
            let missing =
                || format!("{variable} is set, and the data set is not in the cache ({})", cache.path().display());
            return in_cache().map_or_else(|| source.error(missing()), Ok);
        }
        let api = ApiBuilder::from_env().with_progress(false).build().map_err(|e| failed("hub client", e))?;
        match api.repo(at(revision)).info() {
            Ok(info) => {
                // A branch may move while files are fetched, so all of them are taken from the commit it is at now.
                let pinned = cache.repo(at(&info.sha));
                let snapshot = pinned.pointer_path(&info.sha);
                let reference = cache.repo(at(revision)).create_ref(&info.sha);
                reference.and_then(|()| pinned.create_ref(&info.sha)).map_err(Error::io(&snapshot))?;
                let files = info.siblings.into_iter().map(|file| file.rfilename).collect();
                Ok(Self { source: text.to_owned(), snapshot, remote: Some((api.repo(at(&info.sha)), files)) })
            }
            Err(error) => match in_cache() {
                None => Err(failed("the hub did not answer and the data set is not in the cache", error)),
                Some(cached) => {
                    progress(&format!("{text}: the hub did not answer; using the copy in the cache"));
                    Ok(cached)
                }
            },
        }
    }

    /// A file, downloaded unless it is in the cache: `folder/name`, or in a data set with no such folder `name`.
    ///
    /// # Errors
    /// A file that is not there, or cannot be downloaded.
    pub fn get(&self, file: &str, progress: &dyn Fn(&str)) -> Result<PathBuf> {
        let name = file.rsplit('/').next().unwrap_or(file);
        let refuse = |detail: String| Err(Error::Source { model: self.source.clone(), detail });
        let Some((remote, files)) = &self.remote else {
            let cached = [file, name].map(|name| self.snapshot.join(name)).into_iter().find(|path| path.is_file());
            return cached
                .map_or_else(|| refuse(format!("{file} is not in the cache, and the hub did not answer")), Ok);
        };
        let Some(found) = [file, name].into_iter().find(|name| files.contains(*name)) else {
            return refuse(format!("has neither {file} nor {name}"));
        };
        if !self.snapshot.join(found).is_file() {
            progress(&format!("{}: {found}", self.source));
        }
        remote.get(found).or_else(|e| refuse(format!("{found}: {e}")))
    }

    /// Every file below a folder, which is returned.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_folder(&self, folder: &str, progress: &dyn Fn(&str)) -> Result<PathBuf> {
        if let Some((_, files)) = &self.remote {
            let is_below = |file: &&String| file.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
            files.iter().filter(is_below).try_for_each(|file| self.get(file, progress).map(drop))?;
        }
        Ok(self.snapshot.join(folder))
    }

    /// Where the files are.
    #[must_use]
    pub fn snapshot(&self) -> &PathBuf {
        &self.snapshot
    }
}

impl fmt::Debug for DataSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataSet")
            .field("source", &self.source)
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}
