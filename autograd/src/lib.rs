//! Tensors, a tape and the fused ops of language-model training and serving.
//!
//! Every activation is a packed `[T, H]` matrix: T counts the tokens of all sequences in the batch, there is no
//! padding. An op is one file in [`ops`]: its native forward, its native backward, and the same mathematics as one
//! expression of burn tensors, which serves every device burn knows and checks the native code (see
//! [`Device`]).

pub mod adamw;
mod capabilities;
mod cpu;
pub mod cuda;
pub mod decode;
pub mod device;
mod error;
mod index;
pub mod kv;
mod op;
pub mod ops;
mod page;
mod reference;
pub mod rng;
pub mod stream;
pub mod tape;
pub mod tensor;

pub use capabilities::{BatchInvariance, Capabilities, Defaults};
pub use device::Device;
pub use error::{Error, Result};
pub use index::Index;
pub use tape::{Gradients, Tape};
pub use tensor::{Layout, Tensor, TensorId};
