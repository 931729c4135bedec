//! A model's files, opened: configuration, weights, tokenizer, chat template, sampling defaults.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::config::ModelConfig;
use crate::text::{ChatTemplate, Tokenizer};
use crate::weights::gguf::GgufFile;
use crate::weights::{GgufWeights, RandomWeights, SafetensorsWeights, WeightSource};
use crate::{Error, Result, read};

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

/// Sampling settings of `generation_config.json` or GGUF metadata.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// `false` means greedy.
    pub do_sample: Option<bool>,
    /// Divisor of the logits.
    pub temperature: Option<f64>,
    /// Mass of the nucleus.
    pub top_p: Option<f64>,
    /// Number of candidates.
    pub top_k: Option<usize>,
    /// Least probability relative to the best.
    pub min_p: Option<f64>,
    /// Divisor of the logits of tokens that were seen.
    pub repetition_penalty: Option<f64>,
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

impl GenerationDefaults {
    fn from_hf(path: &Path, generation: Option<&Value>) -> Result<Self> {
        let Some(generation) = generation else { return Ok(Self::default()) };
        let value = |key: &str| generation.get(key).filter(|v| !v.is_null());
        let bad = |key: &str, v: &Value| Error::bad_key(path, key, v, "a number is needed");
        let number = |key: &str| value(key).map(|v| v.as_f64().ok_or_else(|| bad(key, v))).transpose();
        let flag =
            |v: &Value| v.as_bool().ok_or_else(|| Error::bad_key(path, "do_sample", v, "true or false is needed"));
        let count = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| bad("top_k", v));
        Ok(Self {
            do_sample: value("do_sample").map(flag).transpose()?,
            temperature: number("temperature")?,
            top_p: number("top_p")?,
            top_k: value("top_k").map(count).transpose()?,
            min_p: number("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
        })
    }

    fn from_gguf(file: &GgufFile) -> Result<Self> {
        let number = |name: &str| {
            let key = format!("general.sampling.{name}");
            file.get(&key).map(|_| file.f64(&key)).transpose()
        };
        Ok(Self {
            do_sample: None,
            temperature: number("temp")?,
            top_p: number("top_p")?,
            top_k: file.get("general.sampling.top_k").map(|_| file.usize("general.sampling.top_k")).transpose()?,
            min_p: number("min_p")?,
            repetition_penalty: number("penalty_repeat")?,
        })
    }
}
