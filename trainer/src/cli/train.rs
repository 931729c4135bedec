//! `arle-train`

use std::path::{Path, PathBuf};

use clap::Parser;

use super::print;
use crate::data::Rows;
use crate::interrupt::Interrupt;
use crate::opd::{self, Options, Resume};
use crate::recipe::{Override, Recipe};
use crate::{Error, Result};

const EXAMPLES: &str = "Examples:
  arle-train recipes/quickstart.toml                            run a recipe; results go to runs/quickstart
  arle-train recipes/quickstart.toml --set optim.lr=2e-4 --out runs/faster
  arle-train recipes/quickstart.toml --dry-run                  check it and print it with every default
  arle-train recipes/quickstart.toml --resume                   continue where it was stopped
  arle-train recipes/quickstart.toml --resume --set schedule.max_steps=200

Ctrl-C stops after the current step and writes a checkpoint; a second Ctrl-C stops at once.
Exit codes: 0 done, 1 failed, 2 bad usage or recipe, 3 the GPU was lost, 130 interrupted.";

/// Distil a language model on its own completions.
#[derive(Debug, Parser)]
#[command(name = "arle-train", version, after_help = EXAMPLES)]
pub struct TrainArgs {
    /// The recipe, a TOML file.
    recipe: PathBuf,
    /// Change one key of it; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Check recipe and data, print the recipe with every default filled in, and stop.
    #[arg(long)]
    dry_run: bool,
    /// Continue the run in its folder from the newest checkpoint, or from the checkpoint (or run folder) at PATH.
    #[arg(long, value_name = "PATH", num_args = 0..=1)]
    resume: Option<Option<PathBuf>>,
    /// Folder of the run [default: runs/NAME].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print metrics as JSON lines on stdout and nothing on stderr.
    #[arg(long)]
    json: bool,
}

impl TrainArgs {
    /// Does what was asked.
    ///
    /// # Errors
    /// Whatever stops it.
    pub fn run(self) -> Result<()> {
        let overrides: Vec<Override> = self.set.iter().map(|text| Override::parse(text)).collect::<Result<_>>()?;
        let recipe = Recipe::load(&self.recipe, &overrides)?;
        if self.dry_run {
            Rows::load(&recipe.data)?;
            return print(&recipe.to_toml());
        }
        let interrupt =
            Interrupt::listen().map_err(|e| Error::Models { what: format!("Ctrl-C cannot be handled: {e}") })?;
        let (folder, resume) = place(self.resume, self.out, &recipe.name);
        opd::run(&Options { recipe, folder, resume, json: self.json }, &interrupt)
    }
}

/// The run's folder and what to continue from. `--resume PATH` names a run folder or a checkpoint in one.
fn place(resume: Option<Option<PathBuf>>, out: Option<PathBuf>, name: &str) -> (PathBuf, Option<Resume>) {
    let default = || Path::new("runs").join(name);
    match resume {
        None => (out.unwrap_or_else(default), None),
        Some(None) => (out.unwrap_or_else(default), Some(Resume::Latest)),
        Some(Some(path)) if path.join("checkpoints").is_dir() => (out.unwrap_or(path), Some(Resume::Latest)),
        Some(Some(path)) => {
            // RUN/checkpoints/step_000123
            let run = path.parent().and_then(Path::parent).map(Path::to_owned);
            (out.or(run).unwrap_or_else(default), Some(Resume::From(path)))
        }
    }
}
