//! The one error type of this crate.

/// Result of an op.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an op or the tape refuses.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Operands do not fit together.
    #[error("{op}: {what}, got {got:?}")]
    Shape {
        /// The op that refused.
        op: &'static str,
        /// What it expected of them.
        what: &'static str,
        /// Shapes of the operands, in order.
        got: Vec<[usize; 2]>,
    },
    /// Host data does not fill the shape.
    #[error("tensor of shape {shape:?} needs {} values, got {len}", shape[0] * shape[1])]
    Length {
        /// Rows and columns asked for.
        shape: [usize; 2],
        /// Values given.
        len: usize,
    },
    /// Operands live on different devices.
    #[error("{op}: operands on different devices: {left} and {right}")]
    DeviceMismatch {
        /// The op that refused.
        op: &'static str,
        /// Device of the first operand.
        left: String,
        /// Device of the operand that differs.
        right: String,
    },
    /// An operand has the wrong memory layout.
    #[error("{op}: operand {index} must be {expected}")]
    Layout {
        /// The op that refused.
        op: &'static str,
        /// Position among the op's inputs.
        index: usize,
        /// The layout it needs.
        expected: &'static str,
    },
    /// An index points outside its table.
    #[error("{op}: {what} {index} is outside 0..{limit}")]
    Index {
        /// The op that refused.
        op: &'static str,
        /// What the index names.
        what: &'static str,
        /// The index.
        index: usize,
        /// First value that is too large.
        limit: usize,
    },
    /// A constant of an op is outside its domain.
    #[error("{op}: {what} is {value}, must be {expected}")]
    Domain {
        /// The op that refused.
        op: &'static str,
        /// Name of the constant.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The domain.
        expected: &'static str,
    },
    /// Backward was asked of a tensor that no recorded op produced.
    #[error("backward: the root tensor was not recorded on this tape; nothing it depends on is watched")]
    NotRecorded,
    /// The named device cannot be used in this build or on this machine.
    #[error("device `{name}`: {why}")]
    Device {
        /// What was asked for.
        name: String,
        /// Why it cannot be had, and what can.
        why: String,
    },
    /// A library of NVIDIA's is not on this machine, or cannot be loaded.
    #[error("{library} {why}; looked in {searched}. {remedy}")]
    MissingLibrary {
        /// Its file name.
        library: String,
        /// Whether it is absent, or what the loader said.
        why: String,
        /// Where it was looked for.
        searched: String,
        /// What carries it.
        remedy: String,
    },
    /// The NVIDIA driver is older than what it has to run.
    #[error("the NVIDIA driver supports CUDA {found}, but {needs}. {remedy}")]
    DriverTooOld {
        /// The CUDA version of the driver.
        found: String,
        /// Who needs which version.
        needs: String,
        /// What to install.
        remedy: String,
    },
    /// The GPU lacks what the kernels are written for.
    #[error("{name} has compute capability {}.{}; at least 8.0 (Ampere) is needed", found.0, found.1)]
    UnsupportedCard {
        /// Name of the GPU.
        name: String,
        /// Its compute capability.
        found: (u32, u32),
    },
    /// The GPU, or the limit that was set, has no room left.
    #[error(
        "out of memory on {device}: {asked} bytes asked for; {in_use} in use here, {cached} cached in pieces too small, \
         {free} of {total} free on the GPU{}",
        limit.map(|bytes| format!(", limit {bytes}")).unwrap_or_default()
    )]
    OutOfMemory {
        /// The device, `cuda:0`.
        device: String,
        /// Bytes of the request.
        asked: usize,
        /// Bytes of live buffers of this process.
        in_use: usize,
        /// Bytes that this process holds without using them.
        cached: usize,
        /// Bytes that the driver could still give.
        free: usize,
        /// Bytes of the GPU.
        total: usize,
        /// Bytes that this process may take, if that was limited.
        limit: Option<usize>,
    },
    /// The host has no memory left that can be locked for a GPU.
    #[error(
        "{asked} bytes of the host's memory cannot be pinned for the GPU; free memory, or raise the limit of locked \
         memory (ulimit -l), or keep more on the GPU"
    )]
    HostMemory {
        /// Bytes of the request.
        asked: usize,
    },
    /// The GPU is lost to this process: work on it failed in a way after which no call succeeds.
    #[error(
        "the GPU is lost to this process: {call}: {code}: {text}; start the program again (a training run continues with \
         --resume); if that does not help, see the kernel's log for the GPU's own message (dmesg, Xid)"
    )]
    DeviceLost {
        /// The call that showed it.
        call: String,
        /// The status by name.
        code: String,
        /// What it means.
        text: String,
    },
    /// A call into the driver or cuBLASLt failed.
    #[error("{call}: {code}: {text}")]
    Cuda {
        /// The function, or the kernel that was launched.
        call: String,
        /// The status by name.
        code: String,
        /// What it means.
        text: String,
    },
    /// A kernel file does not compile.
    #[error("{file} does not compile for {arch}: {log}")]
    KernelCompile {
        /// File below `autograd/kernels`.
        file: String,
        /// Architecture, `sm_90a`.
        arch: String,
        /// The compiler's words.
        log: String,
    },
    /// A kernel was asked for, or launched, in a way it does not have.
    #[error("kernel `{name}`: {why}")]
    Kernel {
        /// The kernel.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The directory of compiled kernels cannot be used.
    #[error("kernel cache {path}: {why}; set ARLE_CACHE to a directory that can be written")]
    KernelCache {
        /// The file or directory.
        path: String,
        /// What the system said.
        why: String,
    },
    /// Work that a graph cannot hold was asked for while one is captured.
    #[error("{what} inside the capture of a graph: the host would have to wait for work that has not been started")]
    Capturing {
        /// The work.
        what: &'static str,
    },
}

impl Error {
    /// Whether the device is lost: nothing can be asked of it any more.
    #[must_use]
    pub fn is_device_lost(&self) -> bool {
        matches!(self, Self::DeviceLost { .. })
    }
}
