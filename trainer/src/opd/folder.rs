//! The folder of a run: `config.toml`, `metrics.jsonl`, `samples.jsonl`, `checkpoints/`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoints;
use crate::recipe::Recipe;
use crate::{Error, Result};

/// Keys that may change between a run and its continuation: none of them changes what a step computes, only how many
/// steps there are, what is seen of them and where their memory is.
const FREE: [&str; 10] = [
    "schedule.max_steps",
    "schedule.epochs",
    "schedule.max_seconds",
    "eval.",
    "checkpoint.",
    "log.",
    // Where memory is taken, so that a run that ran out of it can go on.
    "runtime.kv_bytes",
    "runtime.gradient_checkpointing",
    "teacher.offload",
    "optim.offload",
];

/// What to continue from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The newest checkpoint of the run folder; the beginning when it has none.
    Latest,
    /// This checkpoint.
    From(PathBuf),
}

/// The folder of a run, ready to be written to.
#[derive(Debug)]
pub(super) struct RunFolder {
    root: PathBuf,
    /// Its checkpoints.
    pub(super) checkpoints: Checkpoints,
    /// The checkpoint to continue from.
    pub(super) resume_from: Option<PathBuf>,
}

impl RunFolder {
    /// Whether a run can start or continue here; nothing is written.
    ///
    /// # Errors
    /// A folder that holds a run already, or none; a recipe that differs.
    pub(super) fn check(root: &Path, recipe: &Recipe, resume: Option<&Resume>) -> Result<()> {
        let config = root.join("config.toml");
        let refuse = |what: &str| Err(Error::RunFolder { path: root.to_owned(), what: what.to_owned() });
        match resume {
            None if config.exists() => {
                refuse("holds a run already; continue it with --resume, or choose another folder with --out")
            }
            None => Ok(()),
            Some(_) if !config.exists() => {
                refuse("holds no run to continue (there is no config.toml); start one without --resume")
            }
            Some(_) => check_same(&config, recipe),
        }
    }

    /// Makes the folder of a new run, or opens that of the run to continue.
    ///
    /// # Errors
    /// As [`RunFolder::check`]; no such checkpoint; a folder that cannot be written.
    pub(super) fn open(root: &Path, recipe: &Recipe, resume: Option<&Resume>) -> Result<Self> {
        Self::check(root, recipe, resume)?;
        let checkpoints = Checkpoints::open(root.join("checkpoints"), recipe.checkpoint.keep_last)?;
        let resume_from = match resume {
            None => None,
            Some(Resume::Latest) => checkpoints.latest()?,
            Some(Resume::From(path)) => Some(fs::canonicalize(path).map_err(Error::io(path))?),
        };
        write_config(&root.join("config.toml"), recipe)?;
        Ok(Self { root: root.to_owned(), checkpoints, resume_from })
    }

    /// A file of the run.
    #[must_use]
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The folder itself.
    #[must_use]
    pub(super) fn root(&self) -> &Path {
        &self.root
    }
}

fn write_config(path: &Path, recipe: &Recipe) -> Result<()> {
    let temporary = path.with_extension("toml.tmp");
    fs::write(&temporary, recipe.to_toml()).map_err(Error::io(&temporary))?;
    fs::rename(&temporary, path).map_err(Error::io(path))
}

fn check_same(config: &Path, recipe: &Recipe) -> Result<()> {
    let before = Recipe::load(config, &[])?;
    let free = |key: &str| FREE.iter().any(|free| key == *free || (free.ends_with('.') && key.starts_with(free)));
    let changed: Vec<String> = before
        .differences(recipe)
        .into_iter()
        .filter(|(key, ..)| !free(key))
        .map(|(key, old, new)| format!("  {key}: {old} -> {new}"))
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    let what = format!(
        "the run was made with another recipe; these keys differ:\n{}\nrestore them, or start a new run with --out",
        changed.join("\n")
    );
    Err(Error::RunFolder { path: config.to_owned(), what })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Override;

    fn recipe(set: &[&str]) -> Recipe {
        let text = "[student]\nmodel = \"hf:org/base\"\n[teacher]\nsystem_prompt = \"x\"\n[data]\npath = \"p.jsonl\"\n[schedule]\nmax_steps = 4";
        let overrides: Vec<Override> = set.iter().map(|text| Override::parse(text).expect("an override")).collect();
        Recipe::parse(text, "test", "test", Path::new("/"), &overrides).expect("valid")
    }

    #[test]
    fn a_run_is_never_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("run");
        RunFolder::open(&root, &recipe(&[]), None).expect("new");
        let error = RunFolder::open(&root, &recipe(&[]), None).expect_err("there already");
        assert!(error.to_string().contains("--resume"), "{error}");
        let nothing = RunFolder::open(&folder.path().join("other"), &recipe(&[]), Some(&Resume::Latest));
        assert!(nothing.expect_err("nothing there").to_string().contains("config.toml"));
    }

    #[test]
    fn a_changed_recipe_is_refused_by_key() {
        let folder = tempfile::tempdir().expect("a folder");
        RunFolder::open(folder.path(), &recipe(&[]), None).expect("new");
        let changed = recipe(&["optim.lr=0.5", "loss.kind=forward_kl", "schedule.max_steps=9"]);
        let error = RunFolder::open(folder.path(), &changed, Some(&Resume::Latest)).expect_err("differs").to_string();
        assert!(error.contains("  loss.kind: \"reverse_kl\" -> \"forward_kl\"\n  optim.lr: 0.00001 -> 0.5"), "{error}");
        assert!(!error.contains("max_steps"), "{error}");
    }

    #[test]
    fn the_length_of_a_run_may_change() {
        let folder = tempfile::tempdir().expect("a folder");
        RunFolder::open(folder.path(), &recipe(&[]), None).expect("new");
        let longer = recipe(&["schedule.max_steps=9", "checkpoint.every=2", "log.mismatch=false"]);
        let run = RunFolder::open(folder.path(), &longer, Some(&Resume::Latest)).expect("continues");
        assert_eq!(run.resume_from, None);
        assert!(fs::read_to_string(run.file("config.toml")).expect("text").contains("max_steps = 9"));
    }
}
