//! Named f32 tensors in safetensors files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use half::{bf16, f16};
use runtime::read;
use runtime::request::NamedTensor;
use safetensors::tensor::{Dtype, SafeTensors, View, serialize_to_file};

use crate::recipe::SavedDtype;
use crate::{Error, Result};

/// The most that the crate accepts of a header, with its length.
const MOST_HEADER: u64 = 100_000_008;

fn malformed(path: &Path, what: impl ToString) -> Error {
    Error::from(command::Error::RunFolder { path: path.to_owned(), what: what.to_string() })
}

/// Writes tensors in `dtype`, rounded to the nearest value of it.
pub(super) fn write(path: &Path, tensors: &[NamedTensor], dtype: SavedDtype) -> Result<()> {
    let mut views = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let bytes = encode(tensor, dtype).ok_or_else(|| {
            let what = format!(
                "tensor `{}` has values beyond float16; set `checkpoint.dtype` to bfloat16 or float32",
                tensor.name
            );
            malformed(path, what)
        })?;
        views.push((tensor.name.as_str(), Encoded { dtype: of(dtype), shape: &tensor.shape, bytes }));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    serialize_to_file(views, Some(metadata), path).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(source) => {
            Error::from(command::Error::Io { path: path.to_owned(), source })
        }
        other => malformed(path, other),
    })
}

/// A tensor's bytes in the file.
struct Encoded<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    bytes: Cow<'a, [u8]>,
}

impl View for Encoded<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn of(dtype: SavedDtype) -> Dtype {
    match dtype {
        SavedDtype::Float32 => Dtype::F32,
        SavedDtype::Bfloat16 => Dtype::BF16,
        SavedDtype::Float16 => Dtype::F16,
    }
}

/// `None` where a finite value has no finite one of `dtype`.
fn encode(tensor: &NamedTensor, dtype: SavedDtype) -> Option<Cow<'_, [u8]>> {
    let values = &tensor.values;
    match dtype {
        SavedDtype::Float32 => Some(Cow::Borrowed(bytemuck::cast_slice(values))),
        SavedDtype::Bfloat16 => {
            Some(Cow::Owned(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()))
        }
        SavedDtype::Float16 => {
            let halves: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
            let fits = halves.iter().zip(values).all(|(half, value)| half.is_finite() || !value.is_finite());
            fits.then(|| Cow::Owned(halves.iter().flat_map(|half| half.to_le_bytes()).collect()))
        }
    }
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
