//! Weights that no file holds, for measuring a shape without its download.
//!
//! A value is a function of its tensor's name and its index alone, so any part of a tensor can be made by itself.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{TensorRole, Vector, tensors};
use crate::Result;
use crate::config::ModelConfig;
use crate::weights::{WeightSource, check_rows, row_len};

/// Standard deviation of projections, biases and embeddings: transformers' `initializer_range`.
const STD: f32 = 0.02;
/// Elements that one task makes.
const CHUNK: usize = 1 << 16;

/// Every tensor of a configuration, with random values; norm weights are 1.
pub struct RandomWeights {
    path: PathBuf,
    shapes: BTreeMap<String, Vec<usize>>,
    /// Names of the norms' weights.
    norms: Vec<String>,
}

impl RandomWeights {
    /// Weights for `config`, which came from the file `path`.
    #[must_use]
    pub fn new(path: &Path, config: &ModelConfig) -> Self {
        let specs = tensors(config);
        let is_norm = |part| match part {
            TensorRole::FinalNorm => true,
            TensorRole::Vector(vector) => !matches!(vector, Vector::Bias(_)),
            TensorRole::Embedding | TensorRole::Head | TensorRole::Linear(_) => false,
        };
        Self {
            path: path.to_owned(),
            norms: specs.iter().filter(|spec| is_norm(spec.part)).map(|spec| spec.name.clone()).collect(),
            shapes: specs.into_iter().map(|spec| (spec.name, spec.shape)).collect(),
        }
    }
}

impl WeightSource for RandomWeights {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let shape = self.shape(name)?;
        check_rows(name, shape, &rows)?;
        let len = rows.len() * row_len(shape);
        if self.norms.iter().any(|norm| norm == name) {
            return Ok(vec![1.0; len]);
        }
        let (key, first) = (key(name), (rows.start * row_len(shape)) as u64);
        let mut out = vec![0.0; len];
        out.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, out)| {
            let start = first + (chunk * CHUNK) as u64;
            for (index, value) in (start..).zip(out) {
                *value = draw(key, index);
            }
        });
        Ok(out)
    }
}

/// FNV-1a of a tensor's name.
fn key(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// Mean 0 and deviation [`STD`], near a normal distribution: the sum of the four 16-bit parts of a SplitMix64 word
/// (Steele et al. 2014). Its tails end at 3.5 deviations. Philox would be the better generator and take several times as
/// long, and four billion values are wanted.
#[inline]
fn draw(key: u64, index: u64) -> f32 {
    let mut z = key.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    let sum = (z & 0xFFFF) + (z >> 16 & 0xFFFF) + (z >> 32 & 0xFFFF) + (z >> 48);
    // The parts are uniform with variance 65536^2 / 12 each.
    const SCALE: f32 = STD / (65536.0 * 0.577_350_26);
    (sum as f32 - 131_070.0) * SCALE
}
