//! Weights under Hugging Face names and in `[out, in]` order, whichever format holds them.
//!
//! A source knows every tensor's shape from the headers alone and decodes values to `f32` on demand,
//! so a loader can read one tensor, or the rows of one shard, at a time.

pub mod gguf;
mod quant;
mod safetensors;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

pub use self::gguf::GgufWeights;
pub use self::safetensors::SafetensorsWeights;

use crate::{Error, Result, read};

/// Named tensors that can be read as `f32`.
pub trait WeightSource: Send + Sync {
    /// The file or directory, for messages.
    fn path(&self) -> &Path;

    /// Name to shape, matrices as `[out, in]`.
    fn tensors(&self) -> &BTreeMap<String, Vec<usize>>;

    /// Rows (indices of the first axis) of one tensor, row-major.
    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>>;

    /// A whole tensor, row-major.
    fn read(&self, name: &str) -> Result<Vec<f32>> {
        self.read_rows(name, 0..row_count(self.shape(name)?))
    }

    /// Shape of one tensor.
    fn shape(&self, name: &str) -> Result<&[usize]> {
        match self.tensors().get(name) {
            Some(shape) => Ok(shape),
            None => Err(Error::MissingTensor { path: self.path().to_owned(), name: name.to_owned() }),
        }
    }
}

/// Refuses NaN and infinities.
pub fn check_finite(name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::NonFiniteWeight { name: name.to_owned(), index, value: values[index] }),
    }
}

/// A scalar counts as one row.
fn row_count(shape: &[usize]) -> usize {
    shape.first().copied().unwrap_or(1)
}

/// Elements in one index of the first axis.
pub(crate) fn row_len(shape: &[usize]) -> usize {
    shape.iter().skip(1).product()
}

pub(crate) fn check_rows(name: &str, shape: &[usize], rows: &Range<usize>) -> Result<()> {
    let count = row_count(shape);
    if rows.start <= rows.end && rows.end <= count {
        return Ok(());
    }
    Err(Error::RowsOutOfRange { name: name.to_owned(), start: rows.start, end: rows.end, rows: count })
}

/// Maps a file read-only.
fn map_file(path: &Path) -> Result<memmap2::Mmap> {
    let file = read::open(path)?;
    // SAFETY: the map is read-only and private to this process's reads; a weight file that another
    // process truncates while it is mapped is outside what any loader can defend against.
    unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path))
}
