//! The runtime: models, weights, KV memory, the batched scheduler, and the one thread that owns the device.
//!
//! [`RuntimeHandle`] is the only entrypoint. Rollouts, scoring, training steps, evaluation and (in `serve`)
//! HTTP requests all submit work through it; nothing else touches a device.

mod bytes;
mod caught;
pub mod config;
mod engine;
pub mod error;
pub mod files;
mod handle;
mod ids;
pub mod kv;
pub mod memory;
pub mod model;
pub mod read;
pub mod request;
pub mod sampler;
pub mod scheduler;
mod sink;
pub mod source;
pub mod sums;
pub mod text;
pub mod train;
pub mod weights;
mod wire;
pub mod write;

pub use caught::caught;
pub use error::{Error, ErrorKind, Result};
pub use handle::{Generation, RequestGuard, RuntimeHandle};
pub use sink::{Closed, Sink};
