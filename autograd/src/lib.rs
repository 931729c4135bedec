//! Tensors, a tape and the fused ops of language-model training and serving.
//!
//! Every activation is a packed `[T, H]` matrix: T counts the tokens of all sequences in the batch, there is no
//! padding. An op is one file in [`ops`]: its native forward, its native backward, and the same mathematics as one
//! expression of burn tensors, which serves every device burn knows and checks the native code (see
//! [`Device`]).
//!
//! ```
//! use autograd::{Device, Tape, Tensor, ops};
//!
//! # fn main() -> autograd::Result<()> {
//! // Two tokens of width 3 through a linear layer of 2 outputs, and a gradient of one for each output.
//! let x = Tensor::new(Device::Cpu, vec![1.0, 2.0, 3.0, 0.0, 1.0, 0.0], [2, 3])?;
//! let w = Tensor::weight(Device::Cpu, vec![1.0, 0.0, 0.0, 0.0, 1.0, 1.0], [2, 3])?;
//! let mut tape = Tape::recording();
//! tape.require_grad(&x);
//! let y = ops::linear(&mut tape, &x, &w, None)?;
//! assert_eq!(y.to_vec(), [1.0, 5.0, 0.0, 1.0]);
//! let gradients = tape.backward(&y, Tensor::new(Device::Cpu, vec![1.0; 4], [2, 2])?)?;
//! assert_eq!(gradients.get(&x).map(Tensor::to_vec), Some(vec![1.0, 1.0, 1.0, 1.0, 1.0, 1.0]));
//! # Ok(())
//! # }
//! ```

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
