//! safetensors files: one, or the shards that `model.safetensors.index.json` names.
//!
//! A file is `u64` header length, a JSON header (name -> dtype, shape, byte range), then the data.
//! Every range is checked against the file when it is opened; <https://github.com/huggingface/safetensors>.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Deserialize;

use super::quant::{self, Format};
use super::{WeightSource, check_rows, map_file, row_len};
use crate::{Error, Result, read};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Elements that one task decodes.
const CHUNK: usize = 1 << 16;

/// Weights of a Hugging Face directory, or of one safetensors file.
pub struct SafetensorsWeights {
    path: PathBuf,
    files: Vec<DataFile>,
    shapes: BTreeMap<String, Vec<usize>>,
    places: BTreeMap<String, TensorLocation>,
}

struct DataFile {
    path: PathBuf,
    map: memmap2::Mmap,
}

/// Where a tensor's bytes are.
struct TensorLocation {
    file: usize,
    /// The dtype as the header spells it; formats that cannot be decoded are refused when they are read.
    dtype: String,
    bytes: Range<usize>,
}

/// A tensor as the header of a file describes it; `data_offsets` count from the end of the header.
#[derive(Deserialize)]
struct HeaderEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsWeights {
    /// Opens a `.safetensors` file, or a directory that holds `model.safetensors` or the shards of its index.
    ///
    /// # Errors
    /// Files that are missing or damaged; a directory that offers two sets of weights, of which one is stale.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Self::open_single(path, path);
        }
        if !path.join(INDEX).is_file() {
            if path.join(SINGLE).is_file() {
                return Self::open_single(path, &path.join(SINGLE));
            }
            return Err(no_weights(path));
        }
        let index = read_index(path)?;
        if !path.join(SINGLE).is_file() {
            return Self::open_sharded(path, &index);
        }
        // transformers reads the single file first, and leaves an index behind when it saves whole what was in shards.
        match index.values().find(|shard| *shard != SINGLE && path.join(shard).is_file()) {
            None => Self::open_single(path, &path.join(SINGLE)),
            Some(shard) => Err(Error::bad_file(
                path,
                format!(
                    "there are two sets of weights, {SINGLE} and the shards of {INDEX} (\"{shard}\"); transformers would \
                     read {SINGLE}; remove the set that is out of date"
                ),
            )),
        }
    }

    /// Gives the tensor `from` the name `to`.
    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        if let (Some(shape), Some(place)) = (self.shapes.remove(from), self.places.remove(from)) {
            self.insert(to.to_owned(), shape, place);
        }
    }

    /// Whether two tensors hold the same values.
    ///
    /// # Errors
    /// A tensor that is not there or cannot be decoded.
    pub(crate) fn equal(&self, one: &str, other: &str) -> Result<bool> {
        if self.shape(one)? != self.shape(other)? {
            return Ok(false);
        }
        let [a, b] = [one, other].map(|name| &self.places[name]);
        if a.dtype == b.dtype {
            let [a, b] = [a, b].map(|place| &self.files[place.file].map[place.bytes.clone()]);
            return Ok(a == b);
        }
        Ok(self.read(one)? == self.read(other)?)
    }

    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), files: Vec::new(), shapes: BTreeMap::new(), places: BTreeMap::new() }
    }

    fn open_single(path: &Path, file: &Path) -> Result<Self> {
        let mut weights = Self::new(path);
        let (data, header) = open_file(file)?;
        for (name, (dtype, shape, bytes)) in header {
            weights.insert(name, shape, TensorLocation { file: 0, dtype, bytes });
        }
        weights.files.push(data);
        Ok(weights)
    }

    fn open_sharded(dir: &Path, index: &BTreeMap<String, String>) -> Result<Self> {
        let index_path = dir.join(INDEX);
        let mut weights = Self::new(dir);
        for shard in index.values().collect::<BTreeSet<_>>() {
            let shard_path = dir.join(shard);
            if !shard_path.is_file() {
                return Err(Error::bad_file(
                    &index_path,
                    format!("shard \"{shard}\" is missing from {}", dir.display()),
                ));
            }
            let (data, mut header) = open_file(&shard_path)?;
            let file = weights.files.len();
            for (name, _) in index.iter().filter(|(_, s)| *s == shard) {
                let Some((dtype, shape, bytes)) = header.remove(name) else {
                    return Err(Error::bad_file(
                        &shard_path,
                        format!("tensor \"{name}\" is not here, though {INDEX} names it"),
                    ));
                };
                weights.insert(name.clone(), shape, TensorLocation { file, dtype, bytes });
            }
            if let Some(name) = header.keys().next() {
                let detail =
                    format!("tensor \"{name}\" is here, but {INDEX} does not say so: one of them is out of date");
                return Err(Error::bad_file(&shard_path, detail));
            }
            weights.files.push(data);
        }
        Ok(weights)
    }

    fn insert(&mut self, name: String, shape: Vec<usize>, place: TensorLocation) {
        self.shapes.insert(name.clone(), shape);
        self.places.insert(name, place);
    }
}

/// The file of every tensor, by the index of a directory.
fn read_index(dir: &Path) -> Result<BTreeMap<String, String>> {
    let path = dir.join(INDEX);
    let index: Index = read::json(&path)?;
    let plain = |shard: &String| Path::new(shard).components().count() == 1 && !shard.contains("..");
    match index.weight_map.values().find(|shard| !plain(shard)) {
        None => Ok(index.weight_map),
        Some(shard) => Err(Error::bad_file(&path, format!("shard \"{shard}\" is not a plain file name"))),
    }
}

/// Why a directory has no weights, with what is there instead.
fn no_weights(dir: &Path) -> Error {
    let named = |ending: &str| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names.into_iter().find(|name| name.ends_with(ending))
    };
    let instead = if let Some(name) = named(".gguf") {
        format!("; for {name} give the path of that file")
    } else if let Some(name) = named("adapter_model.safetensors").or_else(|| named("adapter_model.bin")) {
        format!("; {name} is an adapter, which goes onto a base model")
    } else if let Some(name) = named(".safetensors").or_else(|| named(".bin")).or_else(|| named(".pth")) {
        format!("; {name} is not read: convert it, or save the model again with transformers")
    } else {
        String::new()
    };
    Error::bad_file(dir, format!("neither {SINGLE} nor {INDEX} is here{instead}"))
}

type Header = BTreeMap<String, (String, Vec<usize>, Range<usize>)>;

fn open_file(path: &Path) -> Result<(DataFile, Header)> {
    let map = map_file(path)?;
    let header = parse_header(path, &map)?;
    Ok((DataFile { path: path.to_owned(), map }, header))
}

fn parse_header(path: &Path, file: &[u8]) -> Result<Header> {
    let bad = |detail: String| Error::bad_file(path, detail);
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(bad(format!("{} bytes cannot hold a safetensors header", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    let Some(json) = usize::try_from(length).ok().and_then(|n| rest.get(..n)) else {
        return Err(bad(format!(
            "a header of {length} bytes does not fit a file of {}: truncated, or not safetensors",
            file.len()
        )));
    };
    let mut entries: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(json).map_err(|e| bad(format!("header: {e}")))?;
    entries.remove("__metadata__");

    let data_start = 8 + json.len();
    let data_len = file.len() - data_start;
    let mut header = Header::new();
    for (name, entry) in entries {
        let entry: HeaderEntry =
            serde_json::from_value(entry).map_err(|e| bad(format!("header of tensor \"{name}\": {e}")))?;
        let [start, end] = entry.data_offsets;
        if start > end || end > data_len {
            return Err(bad(format!(
                "tensor \"{name}\" lies at {start}..{end} of {data_len} data bytes: truncated or corrupt"
            )));
        }
        if let Some(format) = format_of(&entry.dtype) {
            let want = entry.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).and_then(|n| format.bytes_for(n));
            if want != Some(end - start) {
                return Err(bad(format!(
                    "tensor \"{name}\" of shape {:?} {} has {} bytes",
                    entry.shape,
                    entry.dtype,
                    end - start
                )));
            }
        }
        header.insert(name, (entry.dtype, entry.shape, data_start + start..data_start + end));
    }
    check_covered(path, &header, data_start..file.len())?;
    Ok(header)
}

/// The ranges must follow each other and fill the file, so a file with bytes cut out or added is noticed.
fn check_covered(path: &Path, header: &Header, data: Range<usize>) -> Result<()> {
    let mut ranges: Vec<_> = header.iter().map(|(name, (.., bytes))| (bytes.start, bytes.end, name)).collect();
    ranges.sort_unstable();
    let mut at = data.start;
    for (start, end, name) in ranges {
        if start != at {
            return Err(Error::bad_file(
                path,
                format!("tensor \"{name}\" starts at byte {start}, but the one before it ends at {at}"),
            ));
        }
        at = end;
    }
    if at != data.end {
        return Err(Error::bad_file(path, format!("the tensors end at byte {at} of {}", data.end)));
    }
    Ok(())
}

fn format_of(dtype: &str) -> Option<&'static Format> {
    [&quant::F32, &quant::F16, &quant::BF16].into_iter().find(|f| f.name == dtype)
}

impl WeightSource for SafetensorsWeights {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let shape = self.shape(name)?;
        check_rows(name, shape, &rows)?;
        let place = &self.places[name];
        let file = &self.files[place.file];
        let Some(format) = format_of(&place.dtype) else {
            return Err(Error::unsupported(
                &file.path,
                "dtype",
                format!("{} of tensor {name}", place.dtype),
                "F32, F16, BF16",
            ));
        };
        let row_bytes = row_len(shape) * format.block_bytes;
        let start = place.bytes.start + rows.start * row_bytes;
        let bytes = &file.map[start..start + rows.len() * row_bytes];
        let mut out = vec![0.0; rows.len() * row_len(shape)];
        out.par_chunks_mut(CHUNK)
            .zip(bytes.par_chunks(CHUNK * format.block_bytes))
            .for_each(|(out, bytes)| format.decode(bytes, out));
        Ok(out)
    }
}
