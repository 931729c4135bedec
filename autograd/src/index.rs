//! Row numbers, token ids and positions.

use std::sync::{Arc, OnceLock};

use crate::Result;
use crate::cuda::{Gpu, WordRange};

/// A list of numbers that an op looks things up by. Clones share it, and what a device made of it.
#[derive(Debug, Clone, Default)]
pub struct Index(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// None where only a GPU has them.
    values: Vec<u32>,
    len: usize,
    /// The copy on a GPU, made when an op first asks for it.
    device: OnceLock<WordRange>,
}

impl Index {
    /// The numbers.
    #[must_use]
    pub fn values(&self) -> &[u32] {
        &self.0.values
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// The numbers as places in a slice.
    pub(crate) fn places(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.values.iter().map(|&i| i as usize)
    }

    /// Address of the numbers on `gpu`.
    pub(crate) fn on(&self, gpu: &'static Gpu) -> Result<u64> {
        if let Some(part) = self.0.device.get() {
            debug_assert_eq!(part.buffer.gpu().info().ordinal, gpu.info().ordinal, "one device a process");
            return Ok(part.ptr());
        }
        let buffer = Arc::new(gpu.upload(&self.0.values)?);
        Ok(self.0.device.get_or_init(|| WordRange { buffer, offset: 0 }).ptr())
    }

    /// `len` numbers that only the GPU has and that change from run to run of a graph. Ops cannot check them.
    pub(crate) fn on_device(part: WordRange, len: usize) -> Self {
        Self(Arc::new(Inner { values: vec![], len, device: OnceLock::from(part) }))
    }
}

impl From<&[u32]> for Index {
    fn from(values: &[u32]) -> Self {
        Self::from(values.to_vec())
    }
}

impl From<Vec<u32>> for Index {
    fn from(values: Vec<u32>) -> Self {
        Self(Arc::new(Inner { len: values.len(), values, device: OnceLock::new() }))
    }
}

impl<const N: usize> From<[u32; N]> for Index {
    fn from(values: [u32; N]) -> Self {
        Self::from(values.to_vec())
    }
}

impl FromIterator<u32> for Index {
    fn from_iter<I: IntoIterator<Item = u32>>(values: I) -> Self {
        Self::from(values.into_iter().collect::<Vec<_>>())
    }
}
