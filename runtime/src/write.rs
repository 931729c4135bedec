//! Writing files that other programs may read, or a kill may cut short, at any time.

use std::fs;
use std::path::Path;

use crate::{Error, Result};

/// Puts `contents` in place of the file at `path`: written beside it as `NAME.tmp`, then renamed, so that there is always a whole one.
///
/// # Errors
/// A folder that cannot be written.
pub fn replace(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = Path::new(&temporary);
    fs::write(temporary, contents).map_err(Error::io(temporary))?;
    fs::rename(temporary, path).map_err(Error::io(path))
}
