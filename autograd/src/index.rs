//! Row numbers, token ids and positions.

use std::sync::Arc;

/// A list of numbers that an op looks things up by. Clones share it, and what a device made of it.
#[derive(Debug, Clone, Default)]
pub struct Index(Arc<[u32]>);

impl Index {
    /// The numbers.
    #[must_use]
    pub fn values(&self) -> &[u32] {
        &self.0
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The numbers as places in a slice.
    pub(crate) fn places(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().map(|&i| i as usize)
    }
}

impl From<&[u32]> for Index {
    fn from(values: &[u32]) -> Self {
        Self(values.into())
    }
}

impl From<Vec<u32>> for Index {
    fn from(values: Vec<u32>) -> Self {
        Self(values.into())
    }
}

impl<const N: usize> From<[u32; N]> for Index {
    fn from(values: [u32; N]) -> Self {
        Self(values.into())
    }
}

impl FromIterator<u32> for Index {
    fn from_iter<I: IntoIterator<Item = u32>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}
