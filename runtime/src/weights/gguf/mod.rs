//! GGUF weights under Hugging Face names, dequantized as they are read.

mod file;
mod names;
mod value;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

pub use self::file::GgufFile;
pub use self::value::Value;

use self::file::TensorInfo;
use super::{WeightSource, check_rows, row_len};
use crate::{Error, Result};

/// Weights of one GGUF file.
pub struct GgufWeights {
    file: Arc<GgufFile>,
    shapes: BTreeMap<String, Vec<usize>>,
    places: BTreeMap<String, TensorLocation>,
}

struct TensorLocation {
    info: TensorInfo,
    /// `Some(head_dim)`: rows are stored for interleaved rotation, see [`stored_row`].
    interleaved: Option<usize>,
}

impl GgufWeights {
    /// The weights in an opened file.
    pub fn new(file: Arc<GgufFile>) -> Result<Self> {
        let interleaves = file.str("general.architecture")? == "llama";
        let mut weights = Self { shapes: BTreeMap::new(), places: BTreeMap::new(), file: file.clone() };
        for info in file.tensors() {
            if info.name == ROPE_FACTORS {
                continue;
            }
            let Some(name) = names::hugging_face_name(&info.name) else {
                return Err(Error::unsupported(
                    file.path(),
                    "tensor",
                    &info.name,
                    "the tensors of llama, qwen2 and qwen3 decoders",
                ));
            };
            let shape: Vec<usize> = info.dims.iter().rev().copied().collect();
            let interleaved = interleaves.then(|| heads_of(&file, &name, &shape)).transpose()?.flatten();
            if weights.shapes.insert(name.clone(), shape).is_some() {
                return Err(Error::bad_file(file.path(), format!("two tensors are both \"{name}\"")));
            }
            weights.places.insert(name, TensorLocation { info: info.clone(), interleaved });
        }
        Ok(weights)
    }
}

/// The tensor of per-frequency divisors that stands for Llama 3's rotary scaling.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Width of one head if `name` is a query or key projection, whose rows `llama` files store interleaved.
fn heads_of(file: &GgufFile, name: &str, shape: &[usize]) -> Result<Option<usize>> {
    let key = if name.contains(".q_proj.") {
        "llama.attention.head_count"
    } else if name.contains(".k_proj.") && file.get("llama.attention.head_count_kv").is_some() {
        "llama.attention.head_count_kv"
    } else if name.contains(".k_proj.") {
        "llama.attention.head_count"
    } else {
        return Ok(None);
    };
    let heads = file.usize(key)?;
    let head_dim = shape[0].checked_div(heads).unwrap_or(0);
    if head_dim * heads != shape[0] || head_dim % 2 != 0 || head_dim == 0 {
        return Err(Error::bad_file(
            file.path(),
            format!("tensor \"{name}\" has {} rows, not {heads} heads of an even width ({key})", shape[0]),
        ));
    }
    Ok(Some(head_dim))
}

/// Where row `row` of Hugging Face's order is stored. Within a head Hugging Face puts the first members of
/// all rotated pairs before the second members (`[half][pair]`); `llama` files keep pairs together
/// (`[pair][half]`).
fn stored_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
    head * head_dim + pair * 2 + half
}

impl WeightSource for GgufWeights {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn tensors(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let shape = self.shape(name)?;
        check_rows(name, shape, &rows)?;
        let TensorLocation { info, interleaved } = &self.places[name];
        let (bytes, row_len) = (self.file.bytes(info), row_len(shape));
        let Some(row_bytes) = info.format.bytes_for(row_len) else {
            return Err(Error::unsupported(
                self.path(),
                "vector format",
                format!("{} of {name}", info.format.name),
                "F32, F16, BF16",
            ));
        };
        let mut out = vec![0.0; rows.len() * row_len];
        if row_len > 0 {
            out.par_chunks_mut(row_len).zip(rows).with_min_len(16).for_each(|(out, row)| {
                let row = interleaved.map_or(row, |head_dim| stored_row(row, head_dim));
                info.format.decode(&bytes[row * row_bytes..(row + 1) * row_bytes], out);
            });
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::stored_row;

    #[test]
    fn pairs_are_split_into_halves() {
        let order: Vec<_> = (0..12).map(|row| stored_row(row, 6)).collect();
        assert_eq!(order, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}
