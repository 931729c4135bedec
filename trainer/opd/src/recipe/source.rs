//! What a run was started with, kept in its folder: the recipe as it was written, and what `--set` changed of it. So a run is
//! continued by naming its folder and what is new.

use std::path::Path;

use runtime::{read, write};
use serde::{Deserialize, Serialize};

use super::{Override, Recipe, paths};
use crate::{Error, Result};

const FILE: &str = "given.toml";
const HEADER: &str = "# What this run was started with: `arle-train --resume FOLDER` goes on from here. config.toml has every default.\n";

/// A recipe and its changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeSource {
    /// Name of the run, where the recipe gives none.
    name: String,
    /// The recipe's file.
    origin: String,
    /// `KEY=VALUE` of every `--set`; paths are absolute.
    set: Vec<String>,
    /// The recipe's file, with absolute paths.
    recipe: toml::Table,
}

impl RecipeSource {
    /// A recipe's file with changes.
    ///
    /// # Errors
    /// A file that cannot be read, or is not TOML.
    pub fn new(path: &Path, changes: &[Override]) -> Result<Self> {
        let (name, recipe) = read_recipe(path)?;
        let mut given = Self { name, origin: path.display().to_string(), set: Vec::new(), recipe };
        given.change(changes)?;
        Ok(given)
    }

    /// What the run in `folder` was started with, with further changes. Where a recipe is given, in `path`, it takes the place of
    /// the run's, and of earlier changes only those hold on that may not change.
    ///
    /// # Errors
    /// Files that cannot be read, or are not TOML.
    pub fn reload(
        folder: &Path,
        path: Option<&Path>,
        changes: &[Override],
        may_change: &dyn Fn(&str) -> bool,
    ) -> Result<Self> {
        let kept = folder.join(FILE);
        let mut given: Self = match read::if_there(read::text(&kept, read::CONFIGURATION))? {
            Some(text) => {
                let damaged = |e: toml::de::Error| {
                    Error::from(command::Error::Syntax { origin: kept.display().to_string(), what: e.to_string() })
                };
                toml::from_str(&text).map_err(damaged)?
            }
            // The run of an earlier version: there is the recipe with every default filled in.
            None => {
                let path = folder.join("config.toml");
                let (_, recipe) = read_recipe(&path)?;
                let name =
                    folder.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned());
                Self { name, origin: path.display().to_string(), set: Vec::new(), recipe }
            }
        };
        // A warm-up that was shortened once stays as it was trained with.
        let had = |given: &Self, key: &str| given.set.iter().any(|text| text.starts_with(&format!("{key}=")));
        let config = folder.join("config.toml");
        if had(&given, "schedule.max_steps") && !had(&given, "schedule.warmup_steps") && config.is_file() {
            let (_, config) = read_recipe(&config)?;
            let warmup = config.get("schedule").and_then(|schedule| schedule.get("warmup_steps"));
            given.set.extend(warmup.map(|warmup| format!("schedule.warmup_steps={warmup}")));
        }
        if let Some(path) = path {
            (given.name, given.recipe) = read_recipe(path)?;
            given.origin = path.display().to_string();
            given.set.retain(|text| !may_change(key_of(text)));
        }
        given.change(changes)?;
        Ok(given)
    }

    /// Adds changes; one of a key that was changed before takes its place.
    fn change(&mut self, changes: &[Override]) -> Result<()> {
        let keys: Vec<String> = changes.iter().map(Override::key).collect();
        let replaced = |before: &str| keys.iter().any(|key| key == before || alternative(key) == Some(before));
        self.set.retain(|text| !replaced(key_of(text)));
        for change in changes {
            self.set.push(change.absolute()?.to_string());
        }
        Ok(())
    }

    /// The recipe.
    ///
    /// # Errors
    /// Whatever is wrong with it, by key.
    pub fn resolve(&self) -> Result<Recipe> {
        let changes: Vec<Override> = self.set.iter().map(|text| Override::parse(text)).collect::<Result<_>>()?;
        Recipe::from_table(self.recipe.clone(), &self.origin, &self.name, &changes)
    }

    /// Keeps it in a run's folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = toml::to_string_pretty(self).expect("TOML in, TOML out");
        Ok(write::replace(&folder.join(FILE), format!("{HEADER}{text}"))?)
    }
}

/// The key of a change.
fn key_of(change: &str) -> &str {
    change.split_once('=').map_or("", |(key, _)| key)
}

/// The key that has no place beside `key`: where one of them is changed, the other goes.
pub(super) fn alternative(key: &str) -> Option<&'static str> {
    match key {
        "schedule.max_steps" => Some("schedule.epochs"),
        "schedule.epochs" => Some("schedule.max_steps"),
        _ => None,
    }
}

/// Name and table of a recipe's file, its paths made absolute.
fn read_recipe(path: &Path) -> Result<(String, toml::Table)> {
    let error = |what: String| Error::from(command::Error::Syntax { origin: path.display().to_string(), what });
    let text = read::text(path, read::CONFIGURATION).map_err(Error::UnreadableRecipe)?;
    let mut table: toml::Table = text.parse().map_err(|e: toml::de::Error| error(e.to_string().trim().to_owned()))?;
    paths::make_absolute(&mut table, path.parent().unwrap_or(Path::new("")))?;
    let name = path.file_stem().map_or_else(|| "run".to_owned(), |stem| stem.to_string_lossy().into_owned());
    Ok((name, table))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_run_goes_on_with_what_it_was_started_with_and_what_is_new() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mine.toml");
        let text = "[student]\nmodel = \"hf:org/base\"\n[teacher]\nsystem_prompt = \"x\"\n[data]\npath = \"p.jsonl\"\n[schedule]\nepochs = 4";
        fs::write(&path, text).expect("written");
        let changes = |set: &[&str]| -> Vec<Override> {
            set.iter().map(|text| Override::parse(text).expect("an override")).collect()
        };
        let given =
            RecipeSource::new(&path, &changes(&["optim.lr=0.5", "teacher.system_prompt=a = \"b\""])).expect("read");
        given.write(folder.path()).expect("written");
        fs::remove_file(&path).expect("removed");
        let again =
            RecipeSource::reload(folder.path(), None, &changes(&["schedule.max_steps=7", "optim.lr=0.25"]), &|_| false)
                .expect("kept");
        let recipe = again.resolve().expect("valid");
        assert_eq!((recipe.name.as_str(), recipe.optim.lr), ("mine", 0.25));
        assert_eq!(recipe.length, crate::recipe::Length::Steps(7));
        assert_eq!(recipe.data.paths, [folder.path().join("p.jsonl")]);
        let context = recipe.teacher.expect("a teacher").context.expect("a context");
        assert_eq!(context.system_prompt.as_deref(), Some("a = \"b\""));
        again.write(folder.path()).expect("written");
        let epochs =
            RecipeSource::reload(folder.path(), None, &changes(&["schedule.epochs=2"]), &|_| false).expect("kept");
        assert_eq!(epochs.resolve().expect("valid").length, crate::recipe::Length::Epochs(2));
    }
}
