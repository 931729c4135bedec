//! `arle-train`

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use serve::{Keys, LogprobsMode, MetricNames, SamplingDefaults, ServeConfig, TlsFiles};
use telemetry::Traces;

use super::print;
use crate::{Error, Result};
use command::interrupt::{Interrupt, TRAINING};
use command::progress::{Progress, eprint_line};
use opd::memory;
use opd::recipe::{Override, RecipeSource};
use opd::run::{self, Resume, RunOptions};

const EXAMPLES: &str = "Examples:
  arle-train recipes/quickstart.toml                            run a recipe; results go to runs/quickstart
  arle-train recipes/quickstart.toml --set optim.lr=2e-4 --out runs/faster
  arle-train recipes/quickstart.toml --dry-run                  check it and print it with every default
  arle-train --resume runs/quickstart                           continue where it was stopped
  arle-train recipes/quickstart.toml --serve 127.0.0.1:8000     answer and be steered over HTTP meanwhile
  arle-train --resume runs/quickstart --set schedule.max_steps=200

Ctrl-C stops after the current step and writes a checkpoint; a second Ctrl-C stops at once.
Exit codes: 0 done, 1 failed, 2 bad usage or recipe, 3 the GPU was lost, 4 a remote teacher
was lost, 130 interrupted.";

/// Longest answer of the model in training where the request names no length: rollouts go on beside it.
const DEFAULT_ANSWER: usize = 1024;
/// Sequences that HTTP clients of a run may have at a time, besides its own.
const SERVED_SEQUENCES: usize = 256;

/// Distil a language model on its own completions.
#[derive(Debug, Parser)]
#[command(name = "arle-train", version, after_help = EXAMPLES)]
pub struct TrainArgs {
    /// The recipe, a TOML file. With --resume PATH it may be left out: the run's folder has it.
    #[arg(required_unless_present = "resume")]
    recipe: Option<PathBuf>,
    /// Change one key of it; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Check recipe, data, tokenizers, templates, prompt lengths and memory without loading weights; print the recipe with
    /// every default filled in, and stop.
    #[arg(long)]
    dry_run: bool,
    /// Continue the run in its folder from the newest checkpoint, or from the checkpoint (or run folder) at PATH. What the run
    /// was started with holds on, so that only changes are given.
    #[arg(long, value_name = "PATH", num_args = 0..=1)]
    resume: Option<Option<PathBuf>>,
    /// With --resume: go on although data, models, adapters or tokenizers are not what they were at the checkpoint.
    #[arg(long, requires = "resume")]
    accept_changed_inputs: bool,
    /// Folder of the run [default: runs/NAME].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print metrics as JSON lines on stdout and nothing on stderr.
    #[arg(long)]
    json: bool,
    /// Answer over HTTP while it trains: the student, the teacher and /v1/train, at an address such as 127.0.0.1:8000.
    #[arg(long, value_name = "HOST:PORT")]
    serve: Option<String>,
    /// With --serve: file with one bearer key a line, for routes that read or write data.
    #[arg(long, value_name = "FILE", requires = "serve")]
    api_key_file: Option<PathBuf>,
    /// With --serve: file with one bearer key a line, for routes that steer the run too.
    #[arg(long, value_name = "FILE", requires = "serve")]
    admin_key_file: Option<PathBuf>,
    /// With --serve: certificate chain, PEM; answer over TLS.
    #[arg(long, value_name = "FILE", requires = "serve", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// With --serve: the certificate's private key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// With --serve: name that requests may use for the server besides those of this machine, or *; may be given several times.
    #[arg(long, value_name = "NAME", requires = "serve")]
    allowed_host: Vec<String>,
    /// OpenTelemetry collector for traces (OTLP over HTTP), such as http://localhost:4318 [default: the environment's].
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
}

impl TrainArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever stops it.
    pub fn run(self) -> Result<()> {
        let overrides: Vec<Override> = self.set.iter().map(|text| Override::parse(text)).collect::<Result<_>>()?;
        let (given, folder, resume) = self.given(&overrides)?;
        let recipe = given.resolve()?;
        if self.dry_run {
            run::dry_run(&recipe, Progress::new(self.json))?;
            return print(&recipe.to_toml());
        }
        let interrupt = Interrupt::listen(&TRAINING).map_err(command::Error::Signals)?;
        let traces = Traces::from_environment(self.otlp_endpoint.as_deref(), "arle-train")?;
        let serve = self.serving(&traces)?;
        let options = RunOptions {
            recipe,
            given,
            folder,
            resume,
            accept_changed_inputs: self.accept_changed_inputs,
            json: self.json,
            serve,
            traces: traces.clone(),
        };
        let result = run::run(&options, &interrupt);
        let lost = traces.end();
        if lost > 0 && !self.json {
            eprint_line(&format!("{lost} spans were not delivered to the OpenTelemetry collector"));
        }
        result
    }

    /// What the run is made of, its folder, and what to continue from.
    fn given(&self, changes: &[Override]) -> Result<(RecipeSource, PathBuf, Option<Resume>)> {
        let fresh = self.recipe.as_ref().map(|path| RecipeSource::new(path, changes)).transpose()?;
        let name = fresh.as_ref().map(|given| given.resolve().map(|recipe| recipe.name)).transpose()?;
        let default = || -> Result<PathBuf> {
            let rule =
                "followed by the run's folder, as in `arle-train --resume runs/quickstart`, where no recipe is given";
            let unnamed = || Error::value("--resume", "alone", rule);
            self.out.clone().map_or_else(|| Ok(Path::new("runs").join(name.clone().ok_or_else(unnamed)?)), Ok)
        };
        let (folder, resume) = match &self.resume {
            None => (default()?, None),
            Some(None) => (default()?, Some(Resume::Latest)),
            Some(Some(path)) if path.join("checkpoints").is_dir() || path.join("config.toml").is_file() => {
                (self.out.clone().unwrap_or_else(|| path.clone()), Some(Resume::Latest))
            }
            Some(Some(path)) => {
                // RUN/checkpoints/step_000123
                let run = path.parent().and_then(Path::parent).map(Path::to_owned);
                let run = run.filter(|run| run.join("config.toml").is_file());
                if run.is_none() && self.out.is_none() && self.recipe.is_none() {
                    return Err(run::no_run(path));
                }
                (self.out.clone().or(run).map_or_else(default, Ok)?, Some(Resume::From(path.clone())))
            }
        };
        let given = match (&resume, fresh) {
            // Where there is no run, the refusal comes with its folder.
            (Some(_), _) if folder.join("config.toml").is_file() => {
                RecipeSource::reload(&folder, self.recipe.as_deref(), changes, &run::may_change)?
            }
            (_, Some(fresh)) => fresh,
            (_, None) => return Err(run::no_run(&folder)),
        };
        Ok((given, folder, resume))
    }

    fn serving(&self, traces: &Traces) -> Result<Option<ServeConfig>> {
        let Some(address) = &self.serve else { return Ok(None) };
        let wrong = || Error::value("--serve", address, "HOST:PORT, such as 127.0.0.1:8000 (port 0 takes a free one)");
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let keys = |path: &Option<PathBuf>| path.as_deref().map(Keys::read).transpose();
        Ok(Some(ServeConfig {
            host: host.to_owned(),
            port: port.parse().map_err(|_| wrong())?,
            api_keys: keys(&self.api_key_file)?,
            admin_keys: keys(&self.admin_key_file)?,
            tls: self.tls_cert.clone().zip(self.tls_key.clone()).map(|(cert, key)| TlsFiles { cert, key }),
            train_control_url: None,
            traces: traces.clone(),
            max_sequences: SERVED_SEQUENCES,
            max_adapters: 0,
            max_body_bytes: 16 << 20,
            max_score_bytes: 256 << 20,
            request_memory: ServeConfig::REQUEST_MEMORY,
            release_memory: memory::release_freed_pages,
            request_timeout: Duration::from_secs(600),
            drain_timeout: Duration::from_secs(5),
            cors_origins: Vec::new(),
            allowed_hosts: self.allowed_host.clone(),
            sampling_defaults: SamplingDefaults::Model,
            logprobs_mode: LogprobsMode::Raw,
            default_max_tokens: Some(DEFAULT_ANSWER),
            metric_names: MetricNames::Arle,
        }))
    }
}
