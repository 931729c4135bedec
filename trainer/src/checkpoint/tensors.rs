//! Named f32 tensors in safetensors files.

use std::collections::HashMap;
use std::path::Path;

use runtime::read;
use runtime::request::NamedTensor;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};

use crate::{Error, Result};

/// The most that the crate accepts of a header, with its length.
const MOST_HEADER: u64 = 100_000_008;

fn malformed(path: &Path, what: impl ToString) -> Error {
    Error::RunFolder { path: path.to_owned(), what: what.to_string() }
}

pub(super) fn write(path: &Path, tensors: &[NamedTensor]) -> Result<()> {
    let views: Result<Vec<_>, _> = tensors
        .iter()
        .map(|tensor| {
            let bytes = bytemuck::cast_slice(&tensor.values);
            Ok((tensor.name.as_str(), TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)?))
        })
        .collect();
    let views = views.map_err(|e: safetensors::SafeTensorError| malformed(path, e))?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    serialize_to_file(views, Some(metadata), path).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(source) => Error::Io { path: path.to_owned(), source },
        other => malformed(path, other),
    })
}

/// Reads the tensors that `like` names, in its order; the file has to hold these and no others.
pub(super) fn read(path: &Path, like: &[NamedTensor]) -> Result<Vec<NamedTensor>> {
    let expected: u64 = like.iter().map(|tensor| (4 * tensor.shape.iter().product::<usize>()) as u64).sum();
    let bytes = read::bytes(path, expected + MOST_HEADER)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| malformed(path, e))?;
    if file.len() != like.len() {
        return Err(malformed(path, format!("holds {} tensors, the run trains {}", file.len(), like.len())));
    }
    like.iter()
        .map(|want| {
            let view = file.tensor(&want.name).map_err(|e| malformed(path, format!("tensor `{}`: {e}", want.name)))?;
            if view.dtype() != Dtype::F32 || view.shape() != want.shape {
                let what = format!(
                    "tensor `{}` is {:?} {:?}, not F32 {:?}",
                    want.name,
                    view.dtype(),
                    view.shape(),
                    want.shape
                );
                return Err(malformed(path, what));
            }
            let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            Ok(NamedTensor { values, ..want.clone() })
        })
        .collect()
}
