//! NVIDIA GPUs: driver, memory, kernels, matrix products and graphs.
//!
//! Nothing of NVIDIA's is needed to build or to start: the driver, cuBLASLt and NVRTC are looked for when the first
//! [`Gpu`] is asked for (`library.rs`). A [`Gpu`] has one stream, so its work runs in the order of the calls; that order
//! is what makes the reuse of memory ([`Buffer`]) and of staging memory safe. Any thread may call. While a thread
//! captures a [`Graph`], the others wait.

mod arena;
mod array;
pub(crate) mod attention;
mod batch_invariant;
mod cache;
mod compile;
mod copy_stream;
mod cublaslt;
mod driver;
mod event;
mod gemm_plans;
mod gpu;
mod graph;
pub(crate) mod grouped_lora;
mod host;
mod kernels;
mod launch;
pub(crate) mod library;
pub(crate) mod linear;
mod matmul;
mod mode;
mod nvrtc;
pub(crate) mod optimizer;
mod pool;
pub(crate) mod rows;
pub(crate) mod side_stream;
pub(crate) mod skinny_gemm;
mod staging;
mod table;
mod transfer;
mod word_range;

pub(crate) use array::{Array, to_bf16};
pub use attention::DECODE_CHUNK;
pub use cache::{cache_dir, kernel_dir};
pub use compile::{ARCHES, Built, KNOWN_ARCHES, compile, compile_all};
pub(crate) use copy_stream::CopyStream;
pub use event::Event;
pub use gemm_plans::WORKSPACES as GEMM_WORKSPACES;
pub use gpu::{Gpu, GpuInfo};
pub use graph::{Graph, GraphMemory};
pub(crate) use host::HostArray;
pub use kernels::{Function, Module};
pub use launch::Arg;
pub use matmul::{DType, MatMul};
pub use mode::Mode;
pub use optimizer::OFFLOAD_BYTES;
pub use pool::{Buffer, MemoryStats, block_bytes};
pub(crate) use staging::Pinned;
pub use transfer::{Pending, Plain};
pub(crate) use word_range::WordRange;

use crate::capabilities::{BatchInvariance, Capabilities, Defaults};

/// What an NVIDIA GPU can do with these kernels, in bf16.
pub(crate) const CAPABILITIES: Capabilities = Capabilities {
    value_bytes: 2,
    own_memory: true,
    graphs: true,
    samples: true,
    asynchronous: true,
    copies_trained_weights: true,
    block_bytes,
    batch_invariance: BatchInvariance::Mode,
    defaults: Defaults {
        step_tokens: 16384,
        served_sequences: 256,
        batch_sequences: 256,
        batch_tokens: 1 << 18,
        lora_micro_batch: 8192,
        full_micro_batch: 4096,
        interruptible_tokens: usize::MAX,
        answer_tokens: None,
    },
};
