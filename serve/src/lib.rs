//! HTTP over the runtime: OpenAI's API, scoring for remote students, metrics and access.
//!
//! Everything here submits work through [`runtime::RuntimeHandle`]; nothing knows a device, a kernel or a loss.
//!
//! # The life of a request
//! 1. [`Server`] accepts a connection; `request_id` names the request, `origin` checks its host and page, `access` its key, and
//!    the router picks the endpoint.
//! 2. An endpoint in `api` reads its body field by field (`fields`): what its description (`openapi`) does not have or what cannot be
//!    honoured is refused by name.
//!    `memory` has the bytes that it takes, or it is refused.
//! 3. `prompt` and `sampling` turn it into token ids and sampler parameters, off the event loop.
//! 4. `admission` takes a place for every sequence, or answers 429; `generation` submits them.
//! 5. The device thread hands events to a sink, which never waits; the endpoint turns them into one object or into `sse` chunks.
//! 6. Whoever leaves drops the response, the response drops the generation, and its tickets cancel: pages are free at once.

mod api;
mod api_error;
mod app;
mod config;
mod credentials;
mod error;
mod fields;
mod generation;
mod ids;
mod limits;
mod logprobs;
mod metrics;
mod middleware;
mod models;
mod openapi;
mod output;
mod output_reader;
mod prompt;
mod prompt_logprobs;
mod reasoning;
mod response_grammar;
mod router;
mod sampling;
mod sse;
mod structured;
mod tools;
mod train;
mod train_proxy;
mod transport;

pub use config::{LogprobsMode, MetricNames, SamplingDefaults, ServeConfig};
pub use credentials::keys::Keys;
pub use credentials::tls::TlsFiles;
pub use error::{Error, Result};
pub use models::ServedModel;
pub use train::{Bell, TrainControl, TrainEvent, TrainStatus};
pub use transport::server::{Server, Stop};
