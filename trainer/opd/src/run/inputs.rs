//! Which files a recipe's results depend on, and whether they are still those of a run that goes on.

use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use runtime::source::ModelSource;
use runtime::{read, sums};

use crate::checkpoint::{ADAPTER_WEIGHTS, Change, InputChecksums, InputFile};
use crate::recipe::{HeldOut, Recipe, Teacher, TeacherWeights};
use crate::{Error, Result};
use command::progress::Progress;

/// The key of the data of `eval.tasks`, whose files are known once they were read.
pub(super) const TASK_DATA: &str = "eval.data";
/// The command line's way to go on with other inputs.
const ACCEPT: &str = "--accept-changed-inputs";

/// The checksums of a run's inputs, which are read beside its first steps: nothing waits for those of large weights
/// before the first checkpoint, which keeps them.
pub(super) struct PendingChecksums(JoinHandle<Result<InputChecksums>>);

impl PendingChecksums {
    /// Begins to read them.
    pub(super) fn begin(files: Vec<InputFile>) -> Self {
        Self(thread::spawn(move || InputChecksums::read(&files, 1)))
    }

    /// The sums.
    ///
    /// # Errors
    /// A file that cannot be read (any more).
    pub(super) fn wait(self) -> Result<InputChecksums> {
        self.0.join().expect("reading files does not panic")
    }
}

/// The files that a recipe names.
///
/// # Errors
/// A model that cannot be had; a folder that cannot be read.
pub(super) fn files(recipe: &Recipe, progress: Progress) -> Result<Vec<InputFile>> {
    let mut files = Vec::new();
    let mut one = |key: &str, name: String, path: PathBuf| files.push(InputFile { key: key.to_owned(), name, path });
    for (number, path) in recipe.data.paths.iter().enumerate() {
        // Their order counts, not their names.
        one("data.path", format!("{}", number + 1), path.clone());
    }
    if let Some(HeldOut::File(path)) = &recipe.data.held_out {
        one("data.held_out", "1".to_owned(), path.clone());
    }
    let mut all = |key: &str, found: Vec<(String, PathBuf)>| found.into_iter().for_each(|(n, path)| one(key, n, path));
    all("student.model", of_model(&resolve(&recipe.student.model, progress)?)?);
    if let Some(folder) = &recipe.student.adapter {
        all("student.adapter", of_adapter(folder));
    }
    match recipe.teacher.as_ref().map(|Teacher { weights, .. }| weights) {
        Some(TeacherWeights::Model(source)) => all("teacher.model", of_model(&resolve(source, progress)?)?),
        Some(TeacherWeights::Checkpoint(folder)) if folder.join(ADAPTER_WEIGHTS).is_file() => {
            all("teacher.path", of_adapter(folder));
        }
        Some(TeacherWeights::Checkpoint(folder)) => all("teacher.path", of_model(folder)?),
        // The student's own, or another process'.
        Some(TeacherWeights::Student | TeacherWeights::Remote(_)) | None => {}
    }
    let tasks = recipe.eval.iter().filter_map(|eval| eval.benchmark.as_ref()).flat_map(|benchmark| &benchmark.tasks);
    for task in tasks.filter(|task| task.ends_with(".toml")) {
        all("eval.tasks", of_task(Path::new(task)));
    }
    Ok(files)
}

fn resolve(source: &str, progress: Progress) -> Result<PathBuf> {
    Ok(ModelSource::parse(source)?.resolve(&|line| progress.line(line))?)
}

/// A file, or what may decide how a folder's model computes, reads and writes.
fn of_model(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    if !path.is_dir() {
        return Ok(vec![("model".to_owned(), path.to_owned())]);
    }
    let known = |name: &str| {
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        let kept = matches!(extension, "json" | "jinja" | "safetensors" | "model")
            || matches!(name, "merges.txt" | "vocab.txt");
        kept && !sums::OF_A_RUN.contains(&name) && !name.starts_with('.')
    };
    let named = |folder: &Path| -> Result<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
            let path = entry.map_err(Error::io(folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if known(&name) && path.is_file() {
                found.push((name, path));
            }
        }
        Ok(found)
    };
    let mut found = named(path)?;
    let templates = path.join("additional_chat_templates");
    if templates.is_dir() {
        found.extend(
            named(&templates)?.into_iter().map(|(name, path)| (format!("additional_chat_templates/{name}"), path)),
        );
    }
    Ok(found)
}

fn of_adapter(folder: &Path) -> Vec<(String, PathBuf)> {
    ["adapter_config.json", ADAPTER_WEIGHTS].map(|name| (name.to_owned(), folder.join(name))).into()
}

/// The definition of a task of the user's own, and its data.
fn of_task(path: &Path) -> Vec<(String, PathBuf)> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let text = read::text(path, read::CONFIGURATION).unwrap_or_default();
    let table: toml::Table = text.parse().unwrap_or_default();
    let data = table.get("data").and_then(toml::Value::as_table);
    let data = ["test", "few_shot"].into_iter().filter_map(|key| data?.get(key)?.as_str());
    let folder = path.parent().unwrap_or(Path::new(""));
    let data = data.map(|file| (format!("{}: {file}", name(path)), folder.join(file)));
    [(name(path), path.to_owned())].into_iter().chain(data).collect()
}

/// Refuses inputs that are not those of the run, or prints them where they are `accepted`.
///
/// # Errors
/// [`Error::RunFolder`] names each of them.
pub(super) fn check(checkpoint: &Path, changes: &[Change], accepted: bool, progress: Progress) -> Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let list: String = changes.iter().map(|change| format!("\n  {change}")).collect();
    if accepted {
        progress.line(&format!("note       the run goes on with changed inputs:{list}"));
        return Ok(());
    }
    let what = format!(
        "what the run depends on has changed since:{list}\nbring it back, start a new run with --out, or go on with it as it \
         is now by {ACCEPT}"
    );
    Err(Error::from(command::Error::RunFolder { path: checkpoint.to_owned(), what }))
}

/// Whether held-out measurements from before the change and from after it are of different things.
pub(super) fn touch_measurements(changes: &[Change], recipe: &Recipe) -> bool {
    let last_rows = matches!(recipe.data.held_out, Some(HeldOut::LastRows(_)));
    changes.iter().any(|change| match change.key.as_str() {
        "data.path" => last_rows,
        "data.held_out" | "student.model" | "teacher.model" | "teacher.path" => true,
        "student.adapter" => matches!(recipe.teacher.as_ref().map(|t| &t.weights), Some(TeacherWeights::Student)),
        _ => false,
    })
}
