//! Repositories of the Hugging Face hub, in the cache that Python's `huggingface_hub` uses too.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde_json::Value;

use super::ModelSource;
use crate::text::TextFiles;
use crate::{Error, Result, read};

/// Taken if the repository has it, as are the files of tokenizer and templates.
const GENERATION: &str = "generation_config.json";
/// Fetched last of all, so that a snapshot with it is complete.
const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The variable by which the user forbids to ask the hub, as Python's `huggingface_hub` reads it.
pub(super) fn offline() -> Option<&'static str> {
    let is_set = |name: &&str| {
        std::env::var(name).is_ok_and(|value| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
    };
    ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(is_set)
}

/// Whether a snapshot of a repository is in the cache.
pub(super) fn is_cached(repo: &str, revision: Option<&str>) -> bool {
    let repo = Repo::with_revision(repo.to_owned(), RepoType::Model, revision.unwrap_or("main").to_owned());
    Cache::from_env().repo(repo).get(CONFIG).is_some()
}

/// Downloads what is needed of a repository; returns the snapshot's directory.
pub(super) fn fetch(
    source: &ModelSource,
    repo: &str,
    revision: Option<&str>,
    progress: &dyn Fn(&str),
) -> Result<PathBuf> {
    let at = |revision: &str| Repo::with_revision(repo.to_owned(), RepoType::Model, revision.to_owned());
    let failed = |what: &str, e: ApiError| Error::Source { model: source.to_string(), detail: format!("{what}: {e}") };
    let (cache, asked) = (Cache::from_env(), at(revision.unwrap_or("main")));
    if let Some(variable) = offline() {
        return match cache.repo(asked).get(CONFIG) {
            Some(config) => snapshot(&config),
            None => source
                .error(format!("{variable} is set, and the model is not in the cache ({})", cache.path().display())),
        };
    }
    let api = ApiBuilder::from_env().with_progress(false).build().map_err(|e| failed("hub client", e))?;
    let info = match api.repo(asked.clone()).info() {
        Ok(info) => info,
        Err(error) => {
            let Some(config) = cache.repo(asked).get(CONFIG) else {
                return Err(failed("the hub did not answer and the model is not in the cache", error));
            };
            progress(&format!("{source}: the hub did not answer; using the copy in the cache"));
            return snapshot(&config);
        }
    };
    // A branch may move while files are fetched, so all of them are taken from the commit it is at now.
    let pinned = cache.repo(at(&info.sha));
    pinned.create_ref(&info.sha).map_err(Error::io(pinned.pointer_path(&info.sha)))?;
    let remote = api.repo(at(&info.sha));
    let listing: BTreeSet<_> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    if !listing.contains(CONFIG) {
        return source.error(format!("the repository has no {CONFIG}"));
    }
    let get = |name: &str| -> Result<PathBuf> {
        progress(&format!("{source}: {name}"));
        remote.get(name).map_err(|e| failed(name, e))
    };
    for name in weight_files(source, &listing, &remote)?.iter().map(String::as_str) {
        get(name)?;
    }
    for name in listing.iter().filter(|name| *name == GENERATION || TextFiles::includes(name)) {
        get(name)?;
    }
    let dir = snapshot(&get(CONFIG)?)?;
    cache.repo(asked).create_ref(&info.sha).map_err(Error::io(&dir))?;
    Ok(dir)
}

/// One file, or the index and the shards it names.
fn weight_files(source: &ModelSource, listing: &BTreeSet<String>, remote: &ApiRepo) -> Result<BTreeSet<String>> {
    if listing.contains(SINGLE) {
        return Ok(BTreeSet::from([SINGLE.to_owned()]));
    }
    if !listing.contains(INDEX) {
        return source.error(format!(
            "the repository has neither {SINGLE} nor {INDEX}; download a file of another format and give its path"
        ));
    }
    let index = match remote.get(INDEX) {
        Ok(path) => path,
        Err(e) => return source.error(format!("{INDEX}: {e}")),
    };
    let parsed: Value = read::json(&index)?;
    let Some(map) = parsed.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::missing_key(&index, "weight_map"));
    };
    let shards: BTreeSet<String> = map.values().filter_map(Value::as_str).map(str::to_owned).collect();
    match shards.iter().find(|shard| shard.contains(['/', '\\']) || !listing.contains(*shard)) {
        Some(shard) => source.error(format!("{INDEX} names \"{shard}\", which the repository does not have")),
        None => Ok(shards.into_iter().chain([INDEX.to_owned()]).collect()),
    }
}

fn snapshot(file: &Path) -> Result<PathBuf> {
    match file.parent() {
        Some(dir) => Ok(dir.to_owned()),
        None => Err(Error::bad_file(file, "it lies in no directory")),
    }
}
