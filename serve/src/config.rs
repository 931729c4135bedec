//! What a server is told when it starts.

use std::time::Duration;

use crate::{Keys, TlsFiles};
use telemetry::Traces;

/// Settings of a [`crate::Server`].
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// Name or address to listen on.
    pub host: String,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// Keys for routes that read or write data; `None` leaves them open, which only a loopback address may.
    pub api_keys: Option<Keys>,
    /// Keys for routes that change the server's state; `None` closes those routes where there are `api_keys`.
    pub admin_keys: Option<Keys>,
    /// Certificate and key; without them requests and keys travel as plain text.
    pub tls: Option<TlsFiles>,
    /// Where a training run serves whose `/v1/train/*` this server passes on.
    pub train_control_url: Option<String>,
    /// Where spans of requests go.
    pub traces: Traces,
    /// Sequences that may run or wait at a time; more are refused with 429.
    pub max_sequences: usize,
    /// Adapters that may be loaded at a time; KV memory is planned for as many.
    pub max_adapters: usize,
    /// Longest body of a request.
    pub max_body_bytes: usize,
    /// Longest answer with log-probabilities, logits or hidden states of given tokens.
    pub max_score_bytes: usize,
    /// Bytes that all requests may take together: for bodies, tokenizations, grammars and answers that are not sent yet.
    pub request_memory: u64,
    /// Gives memory that was freed back to the system; called when what requests took is free again.
    pub release_memory: fn(),
    /// A request that takes longer ends with 504, or with an error in its stream.
    pub request_timeout: Duration,
    /// How long a stopping server lets running requests go on.
    pub drain_timeout: Duration,
    /// Origins whose pages may call the server from a browser.
    pub cors_origins: Vec<String>,
    /// Names that requests may use for the server besides `host` and those that stand for this machine; `*` is any.
    pub allowed_hosts: Vec<String>,
    /// Where sampling settings that a request leaves out come from.
    pub sampling_defaults: SamplingDefaults,
    /// What the log-probabilities of sampled tokens are of.
    pub logprobs_mode: LogprobsMode,
    /// Longest answer to a conversation that names no length; `None` is the rest of the context.
    pub default_max_tokens: Option<usize>,
    /// Under which names `/metrics` has what vLLM counts, too.
    pub metric_names: MetricNames,
}

/// What the log-probabilities of sampled tokens are of, under vLLM's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogprobsMode {
    /// The model's own distribution: temperature 1, before bias, penalties and truncation.
    Raw,
    /// The distribution at the request's temperature, which must be the one that is drawn from.
    Processed,
}

/// Under which names `/metrics` has what vLLM counts, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricNames {
    /// `arle_...`
    Arle,
    /// `vllm:...`, where a metric means the same there.
    Vllm,
}

impl ServeConfig {
    /// Bytes that requests usually may take: an answer of 256 MiB, or making tokens of 3 MB of text, leaves room for others.
    pub const REQUEST_MEMORY: u64 = 768 << 20;
}

/// Where sampling settings that a request leaves out come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SamplingDefaults {
    /// The model's `generation_config.json`, then OpenAI's.
    Model,
    /// OpenAI's: temperature 1 and nothing else.
    OpenAi,
}
