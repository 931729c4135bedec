//! The runtime: models, weights, KV memory, the batched scheduler, and the one thread that owns the device.
//!
//! [`RuntimeHandle`] is the only entrypoint. Rollouts, scoring, training steps, evaluation and (in `serve`)
//! HTTP requests all go through it; nothing else touches a device.
//!
//! ```
//! use std::path::Path;
//! use std::sync::Arc;
//!
//! use autograd::Device;
//! use runtime::RuntimeHandle;
//! use runtime::files::ModelFiles;
//! use runtime::request::{CompletionText, GenerateRequest, ModelId, ModelSpec, RuntimeSpec};
//! use runtime::sampler::SamplingParams;
//!
//! # fn main() -> runtime::Result<()> {
//! let files = Arc::new(ModelFiles::open(Path::new("../tests/fixtures/tiny-chat"))?);
//! let prompt = files.tokenizer()?.encode("What is seven times six?", true)?;
//! let spec = RuntimeSpec::for_device(Device::Cpu, ModelSpec::new(files));
//! let runtime = RuntimeHandle::start(&spec, &|_, _| {})?;
//! let params = SamplingParams { temperature: 0.0, max_tokens: 8, ..SamplingParams::default() };
//! let model = ModelId::STUDENT;
//! let request = GenerateRequest { model, prompt, params, index: 0, text: CompletionText::AfterPrompt };
//! let generated = runtime.generate(request)?.collect()?;
//! assert!((1..=8).contains(&generated.tokens.len()));
//! # Ok(())
//! # }
//! ```

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
