//! The kernel files of `autograd/kernels`, part of the program.

/// A file and what it defines.
pub(super) struct File {
    /// Below `autograd/kernels`.
    pub(super) name: &'static str,
    /// Its text.
    pub(super) source: &'static str,
    /// Its `extern "C" __global__` functions. A test compares them with the compiled code.
    pub(super) kernels: &'static [&'static str],
}

/// Files that others include, with the name they are included by.
pub(super) const HEADERS: &[(&str, &str)] = &[];

/// All kernels. To add a file, add its entry here.
pub(super) const FILES: &[File] = &[];
