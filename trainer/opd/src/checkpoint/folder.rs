//! The folder of checkpoints: temporary siblings, renames, the `latest` link.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use runtime::sums;

use super::Best;
use crate::{Error, Result};

/// What a half-written or half-deleted checkpoint is called.
const TEMPORARY: &str = ".tmp-";
/// What a whole checkpoint is called while the one that takes its place gets its name.
const ASIDE: &str = ".aside-";
const LATEST: &str = "latest";
const BEST: &str = "best";

/// The `checkpoints` folder of a run.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    root: PathBuf,
    keep_last: usize,
}

impl Checkpoints {
    /// Opens (or makes) the folder, puts back what a killed run had put aside, and removes what it left half-written.
    ///
    /// # Errors
    /// When the folder cannot be made or cleaned.
    pub fn open(root: PathBuf, keep_last: usize) -> Result<Self> {
        fs::create_dir_all(&root).map_err(Error::io(&root))?;
        for entry in fs::read_dir(&root).map_err(Error::io(&root))? {
            let path = entry.map_err(Error::io(&root))?.path();
            if file_name(&path).starts_with(TEMPORARY) {
                remove(&path)?;
            }
        }
        let checkpoints = Self { root, keep_last };
        checkpoints.put_back()?;
        Ok(checkpoints)
    }

    /// The newest checkpoint, through the link or else by name.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn latest(&self) -> Result<Option<PathBuf>> {
        let link = self.root.join(LATEST);
        match fs::canonicalize(&link) {
            Ok(target) => Ok(Some(target)),
            // A kill between the rename of a checkpoint and of the link, in the first checkpoint of all.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(self.steps()?.pop().map(|(_, path)| path)),
            Err(error) => Err(Error::from(command::Error::Io { path: link, source: error })),
        }
    }

    /// Makes `checkpoint` (a canonical path) the newest, so that a kill before the next one is saved comes back to it
    /// and not to one of the abandoned ones after it.
    ///
    /// # Errors
    /// When the link cannot be replaced.
    pub fn rewind(&self, checkpoint: &Path) -> Result<()> {
        let root = fs::canonicalize(&self.root).map_err(Error::io(&self.root))?;
        if checkpoint.parent() == Some(&root) { self.link(LATEST, &file_name(checkpoint)) } else { Ok(()) }
    }

    /// Whether the checkpoint of a step is there.
    pub(crate) fn has(&self, step: u64) -> bool {
        self.root.join(Self::name(step)).is_dir()
    }

    /// Points `best` at the best checkpoint, or removes the link where there is none.
    ///
    /// # Errors
    /// When the link cannot be replaced.
    pub(crate) fn link_best(&self, best: Option<&Best>) -> Result<()> {
        let link = self.root.join(BEST);
        match best {
            Some(best) => self.link(BEST, &Self::name(best.step)),
            None if fs::symlink_metadata(&link).is_ok() => remove(&link),
            None => Ok(()),
        }
    }

    /// Name of the checkpoint of a step.
    pub(super) fn name(step: u64) -> String {
        format!("step_{step:06}")
    }

    /// Fills a temporary folder, adds the sums of its files, syncs it, and gives it the name of `step`.
    pub(super) fn publish(
        &self,
        step: u64,
        best: Option<&Best>,
        fill: &dyn Fn(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let name = Self::name(step);
        let (temporary, path) = (self.root.join(format!("{TEMPORARY}{name}")), self.root.join(&name));
        fs::create_dir(&temporary).map_err(Error::io(&temporary))?;
        let summed = || sums::write(&temporary).map_err(Error::from);
        let written = fill(&temporary).and_then(|()| summed()).and_then(|()| sync_tree(&temporary));
        if let Err(error) = written {
            remove(&temporary)?;
            return Err(error);
        }
        let aside = self.root.join(format!("{ASIDE}{name}"));
        if path.exists() {
            // Left by a run that went further than the checkpoint which this one was resumed from.
            fs::rename(&path, &aside).map_err(Error::io(&path))?;
        }
        let renamed = fs::rename(&temporary, &path).map_err(Error::io(&path));
        self.put_back()?;
        renamed?;
        sync_folder(&self.root)?;
        self.link(LATEST, &name)?;
        self.link_best(best)?;
        self.drop_old(step, best)?;
        Ok(path)
    }

    /// Gives checkpoints that are aside their names again, or removes those that have been replaced.
    fn put_back(&self) -> Result<()> {
        for entry in fs::read_dir(&self.root).map_err(Error::io(&self.root))? {
            let aside = entry.map_err(Error::io(&self.root))?.path();
            let Some(path) = file_name(&aside).strip_prefix(ASIDE).map(|name| self.root.join(name)) else { continue };
            if path.exists() {
                self.discard(&aside)?;
            } else {
                fs::rename(&aside, &path).map_err(Error::io(&aside))?;
            }
        }
        Ok(())
    }

    /// Replaces a link in one step.
    fn link(&self, link: &str, name: &str) -> Result<()> {
        let (temporary, link) = (self.root.join(format!("{TEMPORARY}{link}")), self.root.join(link));
        std::os::unix::fs::symlink(name, &temporary).map_err(Error::io(&temporary))?;
        fs::rename(&temporary, &link).map_err(Error::io(&link))?;
        sync_folder(&self.root)
    }

    /// Removes checkpoints after `step` (of an abandoned continuation) and all but the newest `keep_last` and the best.
    fn drop_old(&self, step: u64, best: Option<&Best>) -> Result<()> {
        let steps = self.steps()?.into_iter().filter(|(saved, _)| best.is_none_or(|best| *saved != best.step));
        let (kept, abandoned): (Vec<_>, Vec<_>) = steps.partition(|(saved, _)| *saved <= step);
        let surplus = kept.len().saturating_sub(self.keep_last);
        for (_, path) in kept.into_iter().take(surplus).chain(abandoned) {
            self.discard(&path)?;
        }
        Ok(())
    }

    /// Renames first, so that a kill during the removal leaves nothing that looks like a checkpoint.
    fn discard(&self, path: &Path) -> Result<()> {
        let temporary = self.root.join(format!("{TEMPORARY}old-{}", file_name(path)));
        fs::rename(path, &temporary).map_err(Error::io(path))?;
        remove(&temporary)
    }

    /// Complete checkpoints by rising step.
    fn steps(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut steps = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(Error::io(&self.root))? {
            let path = entry.map_err(Error::io(&self.root))?.path();
            if let Some(step) = file_name(&path).strip_prefix("step_").and_then(|step| step.parse().ok()) {
                steps.push((step, path));
            }
        }
        steps.sort_unstable();
        Ok(steps)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Gives the files below `from` with such names a second name below `to`, or copies them where that cannot be.
pub(super) fn link_files(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    for name in sums::files_below(from)?.iter().filter(|name| wanted(name)) {
        let (path, target) = (from.join(name), to.join(name));
        let folder = target.parent().unwrap_or(to);
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        fs::hard_link(&path, &target).or_else(|_| fs::copy(&path, &target).map(drop)).map_err(Error::io(&target))?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let is_folder = fs::symlink_metadata(path).map_err(Error::io(path))?.is_dir();
    if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) }.map_err(Error::io(path))
}

/// Makes the files of a folder, and their names, durable.
fn sync_tree(folder: &Path) -> Result<()> {
    for name in sums::files_below(folder)? {
        let path = folder.join(name);
        File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io(&path))?;
        path.parent().map_or(Ok(()), sync_folder)?;
    }
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(Error::io(folder))
}
