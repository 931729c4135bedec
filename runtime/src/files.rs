//! A model's files, opened: configuration, weights, tokenizer, chat template, sampling defaults.

mod generation;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::config::ModelConfig;
use crate::text::{ChatTemplate, Tokenizer};
use crate::weights::gguf::GgufFile;
use crate::weights::{GgufWeights, RandomWeights, SafetensorsWeights, WeightSource};
use crate::{Error, Result, read};

pub use generation::{GenerationDefaults, GenerationRules};

/// Everything that one directory or GGUF file says about a model.
pub struct ModelFiles {
    /// The directory or file.
    pub path: PathBuf,
    /// Shape and constants.
    pub config: ModelConfig,
    /// Weights, read on demand.
    pub weights: Arc<dyn WeightSource>,
    /// Absent from checkpoints that are used with token ids only.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Absent from base models.
    pub chat_template: Option<ChatTemplate>,
    /// What the authors recommend for sampling.
    pub generation: GenerationDefaults,
    /// `config.json`; for a GGUF file, one from which transformers builds the same model.
    pub hf_config: Value,
}

impl ModelFiles {
    /// Opens a Hugging Face directory or a `.gguf` file.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::open_dir(path);
        }
        Self::open_gguf(path)
    }

    /// The tokenizer, or an error that says why there is none.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        let missing = || Error::bad_file(&self.path, "there is no tokenizer.json, so only token ids can be used");
        self.tokenizer.as_ref().ok_or_else(missing)
    }

    /// The chat template, or an error that says why there is none.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        let missing = || {
            Error::bad_file(
                &self.path,
                "there is no chat template (chat_template.jinja or tokenizer_config.json), so only plain prompts can be used",
            )
        };
        self.chat_template.as_ref().ok_or_else(missing)
    }

    /// A model of the shape that the `config.json` `path` gives, with random weights and without a tokenizer.
    ///
    /// # Errors
    /// A file that is not there, or not a configuration that the decoder can honour.
    pub fn random(path: &Path) -> Result<Self> {
        let hf_config: Value = read::json(path)?;
        let config = ModelConfig::from_hf(path, &hf_config, None)?;
        Ok(Self {
            weights: Arc::new(RandomWeights::new(path, &config)),
            chat_template: None,
            tokenizer: None,
            generation: GenerationDefaults::default(),
            config,
            hf_config,
            path: path.to_owned(),
        })
    }

    fn open_dir(dir: &Path) -> Result<Self> {
        let hf_config: Value = read::json(&dir.join("config.json"))?;
        let generation_path = dir.join("generation_config.json");
        let generation: Option<Value> = read::if_there(read::json(&generation_path))?;
        let tokenizer =
            dir.join("tokenizer.json").exists().then(|| Tokenizer::from_dir(dir)).transpose()?.map(Arc::new);
        Ok(Self {
            config: ModelConfig::from_hf(&dir.join("config.json"), &hf_config, generation.as_ref())?,
            weights: Arc::new(SafetensorsWeights::open(dir)?),
            chat_template: ChatTemplate::from_dir(dir, tokenizer.as_deref())?,
            tokenizer,
            generation: GenerationDefaults::from_hf(&generation_path, generation.as_ref())?,
            hf_config,
            path: dir.to_owned(),
        })
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let file = Arc::new(GgufFile::open(path)?);
        let config = ModelConfig::from_gguf(&file)?;
        let tokenizer =
            file.get("tokenizer.ggml.model").map(|_| Tokenizer::from_gguf(&file)).transpose()?.map(Arc::new);
        Ok(Self {
            chat_template: ChatTemplate::from_gguf(&file, tokenizer.as_deref())?,
            tokenizer,
            generation: GenerationDefaults::from_gguf(&file)?,
            hf_config: config.to_hf(),
            config,
            weights: Arc::new(GgufWeights::new(file)?),
            path: path.to_owned(),
        })
    }
}
