//! The folder of a run: `config.toml`, `metrics.jsonl`, `samples.jsonl`, `checkpoints/`.

use std::fs;
use std::path::{Path, PathBuf};

use runtime::write;

use crate::checkpoint::Checkpoints;
use crate::recipe::{Recipe, RecipeSource};
use crate::{Error, Result};
use command::folder_lock::FolderLock;
use command::progress::Progress;

const CONFIG: &str = "config.toml";

/// Keys that may change between a run and its continuation: none of them changes what a step computes, only how many
/// steps there are, what is seen of them and where their memory is.
const FREE: [&str; 21] = [
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
    // Where it runs; a step is the same up to rounding.
    "runtime.device",
    "runtime.token_budget",
    "runtime.max_running",
    ROUNDED[0],
    ROUNDED[1],
    ROUNDED[2],
    // How a remote teacher is reached.
    "teacher.url",
    "teacher.api_key_file",
    "teacher.timeout_s",
    "teacher.retries",
    "teacher.concurrency",
];
/// Those of them with which a step is no longer the same to the last bit.
const ROUNDED: [&str; 3] = ["runtime.tokens_per_microbatch", "runtime.merge_adapter", "runtime.deterministic"];
/// Keys that name files, whose contents are compared by their checksums: where they are may change.
const BY_CONTENT: [&str; 6] =
    ["data.path", "data.held_out", "student.model", "student.adapter", "teacher.model", "teacher.path"];

/// What to continue from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The newest checkpoint of the run folder; the beginning when it has none.
    Latest,
    /// This checkpoint.
    From(PathBuf),
}

/// The folder of a run, which no other process writes to.
#[derive(Debug)]
pub(super) struct RunFolder {
    root: PathBuf,
    _lock: FolderLock,
    /// Its checkpoints.
    pub(super) checkpoints: Checkpoints,
    /// The checkpoint to continue from.
    pub(super) resume_from: Option<PathBuf>,
    /// Keys of [`BY_CONTENT`] that have another value than before, each with both values.
    moved: Vec<String>,
}

impl RunFolder {
    /// Whether a new run can start here; nothing is written.
    ///
    /// # Errors
    /// A folder that holds a run already, perhaps one that goes on.
    pub(super) fn check_new(root: &Path, progress: Progress) -> Result<()> {
        if !root.join(CONFIG).exists() {
            return Ok(());
        }
        FolderLock::take(root, progress)?;
        Err(refuse(root, "holds a run already; continue it with --resume, or choose another folder with --out"))
    }

    /// Makes the folder of a new run.
    ///
    /// # Errors
    /// As [`RunFolder::check_new`]; a folder that cannot be written.
    pub(super) fn create(root: &Path, recipe: &Recipe, given: &RecipeSource, progress: Progress) -> Result<Self> {
        fs::create_dir_all(root).map_err(Error::io(root))?;
        let lock = FolderLock::take(root, progress)?;
        if root.join(CONFIG).exists() {
            return Err(refuse(root, "got another run while this one was set up; choose another folder with --out"));
        }
        let checkpoints = Checkpoints::open(root.join("checkpoints"), recipe.checkpoint.keep_last)?;
        let folder = Self { root: root.to_owned(), _lock: lock, checkpoints, resume_from: None, moved: Vec::new() };
        folder.keep_recipe(recipe, given)?;
        Ok(folder)
    }

    /// Opens the folder of a run to continue, as its recipe stands there.
    ///
    /// # Errors
    /// No run, or one that another process goes on with; a recipe that differs; no such checkpoint.
    pub(super) fn reopen(root: &Path, recipe: &Recipe, resume: &Resume, progress: Progress) -> Result<Self> {
        let config = root.join(CONFIG);
        if !config.exists() {
            return Err(no_run(root));
        }
        let lock = FolderLock::take(root, progress)?;
        let moved = check_same(&config, recipe, progress)?;
        let checkpoints = Checkpoints::open(root.join("checkpoints"), recipe.checkpoint.keep_last)?;
        let resume_from = match resume {
            Resume::Latest => checkpoints.latest()?,
            Resume::From(path) => Some(fs::canonicalize(path).map_err(Error::io(path))?),
        };
        Ok(Self { root: root.to_owned(), _lock: lock, checkpoints, resume_from, moved })
    }

    /// Refuses files that have another path than before, where there are no checksums to know them by.
    ///
    /// # Errors
    /// [`Error::RunFolder`] names their keys.
    pub(super) fn check_not_moved(&self) -> Result<()> {
        if self.moved.is_empty() { Ok(()) } else { Err(other_recipe(&self.root.join(CONFIG), &self.moved)) }
    }

    /// Keeps the recipe that the run goes on with.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn keep_recipe(&self, recipe: &Recipe, given: &RecipeSource) -> Result<()> {
        given.write(&self.root)?;
        write_config(&self.root.join(CONFIG), recipe)
    }

    /// A file of the run.
    #[must_use]
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where the teacher's completions of the held-out rows are kept.
    #[must_use]
    pub(super) fn teacher_completions(&self) -> PathBuf {
        self.file("teacher_completions.json")
    }

    /// Removes the teacher's completions, so that it generates others.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub(super) fn forget_teacher_completions(&self) -> Result<()> {
        let path = self.teacher_completions();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::from(command::Error::Io { path, source: error }))
            }
            _ => Ok(()),
        }
    }

    /// The folder itself.
    #[must_use]
    pub(super) fn root(&self) -> &Path {
        &self.root
    }
}

fn write_config(path: &Path, recipe: &Recipe) -> Result<()> {
    Ok(write::replace(path, recipe.to_toml())?)
}

/// Whether a key may change between a run and its continuation.
pub fn may_change(key: &str) -> bool {
    FREE.iter().any(|free| key == *free || (free.ends_with('.') && key.starts_with(free)))
}

/// The error of a folder without a run.
pub fn no_run(root: &Path) -> Error {
    refuse(root, "holds no run to continue (there is no config.toml); start one without --resume")
}

fn refuse(root: &Path, what: &str) -> Error {
    Error::from(command::Error::RunFolder { path: root.to_owned(), what: what.to_owned() })
}

/// Refuses a recipe that differs in what a step computes; returns the keys that name other files.
fn check_same(config: &Path, recipe: &Recipe, progress: Progress) -> Result<Vec<String>> {
    let before = Recipe::load(config, &[])?;
    let differences = before.differences(recipe);
    for (key, old, new) in
        differences.iter().filter(|(key, ..)| key == "runtime.device" || ROUNDED.contains(&key.as_str()))
    {
        progress.line(&format!("note       `{key}`: {old} -> {new}; the run goes on, not to the bit as it would have"));
    }
    let (moved, changed): (Vec<_>, Vec<_>) = differences
        .into_iter()
        .filter(|(key, ..)| !may_change(key))
        .partition(|(key, ..)| BY_CONTENT.contains(&key.as_str()));
    let show = |keys: Vec<(String, String, String)>| -> Vec<String> {
        keys.into_iter().map(|(key, old, new)| format!("  {key}: {old} -> {new}")).collect()
    };
    if changed.is_empty() { Ok(show(moved)) } else { Err(other_recipe(config, &show(changed))) }
}

fn other_recipe(config: &Path, changed: &[String]) -> Error {
    let what = format!(
        "the run was made with another recipe; these keys differ:\n{}\nrestore them, or start a new run with --out",
        changed.join("\n")
    );
    Error::from(command::Error::RunFolder { path: config.to_owned(), what })
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

    const QUIET: fn() -> Progress = || Progress::new(true);

    fn given() -> RecipeSource {
        let file = tempfile::NamedTempFile::new().expect("a file");
        RecipeSource::new(file.path(), &[]).expect("an empty recipe")
    }

    fn create(root: &Path, recipe: &Recipe) -> Result<RunFolder> {
        RunFolder::create(root, recipe, &given(), QUIET())
    }

    fn reopen(root: &Path, recipe: &Recipe) -> Result<RunFolder> {
        RunFolder::reopen(root, recipe, &Resume::Latest, QUIET())
    }

    #[test]
    fn a_run_is_never_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("run");
        let run = create(&root, &recipe(&[])).expect("new");
        for taken in [
            RunFolder::check_new(&root, QUIET()),
            create(&root, &recipe(&[])).map(drop),
            reopen(&root, &recipe(&[])).map(drop),
        ] {
            let error = taken.expect_err("it goes on").to_string();
            assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        }
        drop(run);
        let error = RunFolder::check_new(&root, QUIET()).expect_err("there already");
        assert!(error.to_string().contains("--resume"), "{error}");
        assert!(create(&root, &recipe(&[])).is_err(), "there already");
        let nothing = reopen(&folder.path().join("other"), &recipe(&[]));
        assert!(nothing.expect_err("nothing there").to_string().contains("config.toml"));
    }

    #[test]
    fn a_changed_recipe_is_refused_by_key() {
        let folder = tempfile::tempdir().expect("a folder");
        create(folder.path(), &recipe(&[])).expect("new");
        let changed = recipe(&["optim.lr=0.5", "loss.kind=forward_kl", "schedule.max_steps=9"]);
        let error = reopen(folder.path(), &changed).expect_err("differs").to_string();
        assert!(error.contains("  loss.kind: \"reverse_kl\" -> \"forward_kl\"\n  optim.lr: 0.00001 -> 0.5"), "{error}");
        assert!(!error.contains("max_steps"), "{error}");
    }

    #[test]
    fn the_length_of_a_run_may_change_and_the_place_of_its_files() {
        let folder = tempfile::tempdir().expect("a folder");
        create(folder.path(), &recipe(&[])).expect("new");
        let longer = recipe(&["schedule.max_steps=9", "checkpoint.every=2", "log.mismatch=false"]);
        let run = reopen(folder.path(), &longer).expect("continues");
        run.keep_recipe(&longer, &given()).expect("written");
        assert_eq!(run.resume_from, None);
        assert!(run.check_not_moved().is_ok());
        assert!(fs::read_to_string(run.file("config.toml")).expect("text").contains("max_steps = 9"));
        drop(run);
        let moved = reopen(folder.path(), &recipe(&["data.path=/elsewhere/p.jsonl"])).expect("continues");
        let error = moved.check_not_moved().expect_err("without checksums").to_string();
        assert!(error.contains("data.path: \"/p.jsonl\" -> \"/elsewhere/p.jsonl\""), "{error}");
    }
}
