//! f32 values that wait in pinned memory of the host for a GPU.

use std::sync::Arc;

use super::gpu::Gpu;
use super::staging::Pinned;
use crate::Result;

/// Values of one GPU's optimizer; clones share them.
#[derive(Clone)]
pub(crate) struct HostArray {
    gpu: &'static Gpu,
    memory: Arc<Pinned>,
    len: usize,
}

impl std::fmt::Debug for HostArray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} values on the host for cuda:{}", self.len, self.gpu.info().ordinal)
    }
}

impl HostArray {
    /// Copies of the values.
    pub(crate) fn new(gpu: &'static Gpu, values: &[f32]) -> Result<Self> {
        let array = Self { gpu, memory: Arc::new(gpu.pin(size_of_val(values))?), len: values.len() };
        array.write(values)?;
        Ok(array)
    }

    pub(crate) fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn memory(&self) -> &Pinned {
        &self.memory
    }

    /// The values after all work so far.
    pub(crate) fn read(&self) -> Result<Vec<f32>> {
        self.gpu.synchronize()?;
        let values = self.memory.at(0, self.len * size_of::<f32>()).cast::<f32>();
        // SAFETY: `len` values that were written when the array was made; the GPU writes them only inside an update,
        // which the wait has seen the end of. Pinned memory is aligned to pages.
        Ok(unsafe { std::slice::from_raw_parts(values, self.len) }.to_vec())
    }

    /// Overwrites the values, after all work so far.
    ///
    /// # Panics
    /// When there are more or fewer.
    pub(crate) fn write(&self, values: &[f32]) -> Result<()> {
        assert_eq!(values.len(), self.len, "values of another array");
        self.gpu.synchronize()?;
        let target = self.memory.at(0, size_of_val(values)).cast::<f32>();
        // SAFETY: room for `len` values, which nothing reads now.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), target, values.len()) };
        Ok(())
    }
}
