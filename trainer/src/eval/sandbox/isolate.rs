//! What a child does between `fork` and `exec` to be alone. Only system calls here: the process was forked from one with
//! threads, so nothing may allocate or lock.

#[cfg(target_os = "linux")]
pub(super) use linux::Root;
#[cfg(not(target_os = "linux"))]
pub(super) use other::Root;

#[cfg(target_os = "linux")]
mod linux;

#[cfg(not(target_os = "linux"))]
mod other {
    use std::io;
    use std::path::PathBuf;

    /// No namespaces here.
    #[derive(Debug)]
    pub(in super::super) enum Root {}

    impl Root {
        pub(in super::super) fn new(_prefixes: &[PathBuf], _bytes: u64) -> io::Result<Self> {
            Err(io::Error::new(io::ErrorKind::Unsupported, "this is not Linux"))
        }

        pub(in super::super) fn enter(&self) -> io::Result<()> {
            match *self {}
        }
    }
}
