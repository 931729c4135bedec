//! One output buffer written by several threads.

/// A raw view of a buffer whose parts are written by different tasks.
///
/// Kernels cut their output into disjoint pieces that are not contiguous (column blocks of a row-major matrix), which
/// `chunks_mut` cannot express.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut {
    start: *mut f32,
    len: usize,
}

// SAFETY: tasks write disjoint parts; the `unsafe` accessors carry that obligation.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    pub(crate) fn new(buffer: &mut [f32]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len() }
    }

    /// `len` values from `at`.
    ///
    /// # Safety
    /// No other task reads or writes these values while the slice lives.
    pub(crate) unsafe fn part<'a>(self, at: usize, len: usize) -> &'a mut [f32] {
        assert!(at + len <= self.len, "part {at}+{len} of a buffer of {}", self.len);
        // SAFETY: in bounds; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
