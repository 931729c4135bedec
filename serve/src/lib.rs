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

mod access;
mod admission;
mod api;
mod api_error;
mod app;
mod event_queue;
mod closed_objects;
mod config;
mod connections;
mod error;
mod fields;
mod grammar_limits;
mod generation;
mod grammar;
mod constraint;
mod ids;
mod json_text;
mod keys;
mod response_grammar;
mod logprobs;
mod memory;
mod metrics;
mod models;
mod blocking_pool;
mod openapi;
mod cross_origin;
mod output;
mod write_timeout;
mod client_stream;
mod prompt;
mod prompt_logprobs;
mod output_reader;
mod request_id;
mod router;
mod sampling;
mod server;
mod sse;
mod structured_outputs;
mod telemetry;
mod reasoning;
mod tls;
mod tools;
mod train;
mod train_proxy;

pub use config::{LogprobsMode, MetricNames, SamplingDefaults, ServeConfig};
pub use error::{Error, Result};
pub use keys::Keys;
pub use models::ServedModel;
pub use server::{Server, Stop};
pub use telemetry::{KeyValue, Scope, Traces};
pub use tls::TlsFiles;
pub use train::{Bell, TrainControl, TrainEvent, TrainStatus};
