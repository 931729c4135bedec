//! The GGUF container: metadata and tensors, <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
//!
//! Everything is checked when the file is opened: counts, strings, shapes, formats and byte ranges.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::value::{Cursor, Value};
use crate::weights::map_file;
use crate::weights::quant::Format;
use crate::{Error, Result};

/// An opened file: metadata in memory, tensors mapped.
pub struct GgufFile {
    path: PathBuf,
    map: memmap2::Mmap,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<TensorInfo>,
}

/// A tensor as the header describes it.
#[derive(Debug, Clone)]
pub(in crate::weights) struct TensorInfo {
    pub(in crate::weights) name: String,
    /// Fastest-varying first: the reverse of `[out, in]`.
    pub(in crate::weights) dims: Vec<usize>,
    pub(in crate::weights) format: &'static Format,
    /// Byte range in the file.
    start: usize,
    end: usize,
}

impl GgufFile {
    /// Opens and checks a file.
    pub fn open(path: &Path) -> Result<Self> {
        let map = map_file(path)?;
        let mut cursor = Cursor { path, bytes: &map, at: 0 };
        let (tensor_count, metadata_count) = preamble(&mut cursor)?;
        let metadata = metadata(&mut cursor, metadata_count)?;
        if let Some(parts) = metadata.get("split.count").and_then(Value::as_u64)
            && parts > 1
        {
            return Err(Error::unsupported(
                path,
                "split file of",
                format!("{parts} parts"),
                "one file; join them with llama-gguf-split --merge",
            ));
        }
        let tensors = tensors(&mut cursor, tensor_count, &metadata)?;
        Ok(Self { path: path.to_owned(), metadata, tensors, map })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A metadata value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub(in crate::weights) fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Stored bytes of a tensor of this file.
    pub(super) fn bytes(&self, info: &TensorInfo) -> &[u8] {
        &self.map[info.start..info.end]
    }

    /// Dimensions of a tensor by its GGUF name, fastest-varying first.
    pub(crate) fn dims(&self, name: &str) -> Option<&[usize]> {
        self.tensors.iter().find(|t| t.name == name).map(|t| t.dims.as_slice())
    }

    /// A tensor's values in stored order, under its GGUF name.
    pub(crate) fn stored_values(&self, name: &str) -> Option<Vec<f32>> {
        let info = self.tensors.iter().find(|t| t.name == name)?;
        let mut out = vec![0.0; info.dims.iter().product()];
        info.format.decode(self.bytes(info), &mut out);
        Some(out)
    }

    /// A required text.
    pub fn str(&self, key: &str) -> Result<&str> {
        self.required(key, Value::as_str, "a string is needed")
    }

    /// A required count.
    pub fn usize(&self, key: &str) -> Result<usize> {
        self.required(key, |v| v.as_u64().and_then(|v| usize::try_from(v).ok()), "a count is needed")
    }

    /// A required number.
    pub fn f64(&self, key: &str) -> Result<f64> {
        self.required(key, Value::as_f64, "a number is needed")
    }

    /// An optional number.
    pub fn f64_or(&self, key: &str, default: f64) -> Result<f64> {
        if self.get(key).is_some() { self.f64(key) } else { Ok(default) }
    }

    /// An optional count.
    pub fn usize_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_some() { self.usize(key) } else { Ok(default) }
    }

    /// Keys that begin with `prefix`.
    pub fn keys_under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.metadata.keys().filter_map(move |key| key.strip_prefix(prefix))
    }

    /// A required list.
    pub fn array(&self, key: &str) -> Result<&[Value]> {
        self.required(key, Value::as_array, "a list is needed")
    }

    /// An optional flag.
    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        if self.get(key).is_none() {
            return Ok(default);
        }
        self.required(key, Value::as_bool, "true or false is needed")
    }

    fn required<'a, T>(&'a self, key: &str, read: impl FnOnce(&'a Value) -> Option<T>, want: &str) -> Result<T> {
        let value = self.get(key).ok_or_else(|| Error::missing_key(&self.path, key))?;
        read(value).ok_or_else(|| Error::bad_key(&self.path, key, format_args!("{value:.80?}"), want))
    }
}

/// Magic, version, and the counts of tensors and of metadata pairs.
fn preamble(cursor: &mut Cursor) -> Result<(usize, usize)> {
    let magic = cursor.u32()?.to_le_bytes();
    if &magic != b"GGUF" {
        return Err(cursor.error("this is not a GGUF file"));
    }
    let version = cursor.u32()?;
    if !matches!(version, 2 | 3) {
        return Err(Error::unsupported(cursor.path, "GGUF version", version, "2 and 3, little-endian"));
    }
    // A tensor takes at least a name length, a rank, a format and an offset; a pair a name length and a type.
    Ok((cursor.count(8 + 4 + 4 + 8)?, cursor.count(8 + 4)?))
}

fn metadata(cursor: &mut Cursor, count: usize) -> Result<BTreeMap<String, Value>> {
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.string()?;
        let value = cursor.value()?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(cursor.error(format!("metadata key \"{key}\" is there twice")));
        }
    }
    Ok(metadata)
}

fn tensors(cursor: &mut Cursor, count: usize, metadata: &BTreeMap<String, Value>) -> Result<Vec<TensorInfo>> {
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(value) => match value.as_u64().and_then(|v| usize::try_from(v).ok()) {
            Some(v) if v.is_power_of_two() => v,
            _ => {
                return Err(Error::bad_key(
                    cursor.path,
                    "general.alignment",
                    format_args!("{value:?}"),
                    "a power of two is needed",
                ));
            }
        },
    };
    let mut tensors = (0..count).map(|_| tensor(cursor, alignment)).collect::<Result<Vec<_>>>()?;
    let len = cursor.bytes.len();
    let data_start = cursor.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    for t in &mut tensors {
        let place = |at: usize| data_start.checked_add(at).filter(|&at| at <= len);
        let (Some(start), Some(end)) = (place(t.start), place(t.end)) else {
            return Err(Error::bad_file(
                cursor.path,
                format!(
                    "tensor \"{}\" needs {} bytes at {} of {len} in the file: truncated or corrupt",
                    t.name,
                    t.end - t.start,
                    data_start.saturating_add(t.start)
                ),
            ));
        };
        (t.start, t.end) = (start, end);
    }
    Ok(tensors)
}

/// One tensor header; its range still counts from the start of the data.
fn tensor(cursor: &mut Cursor, alignment: usize) -> Result<TensorInfo> {
    let name = cursor.string()?;
    let rank = cursor.u32()?;
    if rank == 0 || rank > 4 {
        return Err(cursor.error(format!("tensor \"{name}\" has {rank} dimensions; 1 to 4 are possible")));
    }
    let dims = (0..rank).map(|_| cursor.u64()).collect::<Result<Vec<_>>>()?;
    let format_id = cursor.u32()?;
    let offset = cursor.u64()?;
    let Some(format) = Format::from_ggml(format_id) else {
        let known = Format::all().map(|f| f.name).collect::<Vec<_>>().join(", ");
        return Err(Error::unsupported(cursor.path, "format number", format!("{format_id} of tensor {name}"), known));
    };
    let sized = || {
        let dims = dims.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>()?;
        let len = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        let bytes = format.bytes_for(len).filter(|_| dims[0].is_multiple_of(format.block_len))?;
        let start = usize::try_from(offset).ok().filter(|at| at.is_multiple_of(alignment))?;
        Some((dims, start, start.checked_add(bytes)?))
    };
    let Some((dims, start, end)) = sized() else {
        return Err(cursor
            .error(format!("tensor \"{name}\" of shape {dims:?} {} at offset {offset} is malformed", format.name)));
    };
    Ok(TensorInfo { name, dims, format, start, end })
}
