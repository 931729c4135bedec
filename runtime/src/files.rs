//! A model's files, opened: configuration, weights, tokenizer, chat template, sampling defaults.

mod generation;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::config::ModelConfig;
use crate::model::{RandomWeights, check_shapes};
use crate::text::{ChatTemplate, TextFiles, Tokenizer};
use crate::weights::gguf::GgufFile;
use crate::weights::{GgufWeights, SafetensorsWeights, WeightSource};
use crate::{Error, Result, read};

pub use generation::{GenerationDefaults, GenerationRules};

/// Everything that one directory or GGUF file has about a model.
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
    /// `generation_config.json`, where there is one.
    pub hf_generation: Option<Value>,
    /// The files of tokenizer and templates; none of a GGUF file.
    pub text: TextFiles,
    /// What the user should know of these files.
    pub notes: Vec<String>,
}

impl ModelFiles {
    /// Opens a Hugging Face directory or a `.gguf` file.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::open_dir(path);
        }
        Self::open_gguf(path)
    }

    /// The tokenizer, or an error with the reason why there is none.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        let missing = || Error::bad_file(&self.path, "there is no tokenizer.json, so only token ids can be used");
        self.tokenizer.as_ref().ok_or_else(missing)
    }

    /// The chat template, or an error with the reason why there is none.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        let missing = || {
            Error::bad_file(
                &self.path,
                "there is no chat template (chat_template.jinja or tokenizer_config.json), so only plain prompts can be used",
            )
        };
        self.chat_template.as_ref().ok_or_else(missing)
    }

    /// Ends completions with these tokens instead of those that the files name: in generation, in the chat template's
    /// `eos_token` (the first of them), and in what is written of the model.
    ///
    /// # Errors
    /// A model without a tokenizer; [`Error::Tokenizer`] for a token that the vocabulary has not.
    pub fn set_end_tokens(&mut self, tokens: &[String]) -> Result<()> {
        if tokens.is_empty() {
            return Ok(());
        }
        let tokenizer = self.tokenizer()?;
        let id = |token: &String| {
            let unknown = || Error::Tokenizer(format!("the vocabulary has no token {token:?} to end completions with"));
            tokenizer.id(token).filter(|&id| (id as usize) < self.config.vocab_size).ok_or_else(unknown)
        };
        let ids: Vec<u32> = tokens.iter().map(id).collect::<Result<_>>()?;
        let (Some(first), [only, rest @ ..]) = (tokens.first(), &ids[..]) else { return Ok(()) };
        let written = if rest.is_empty() { json!(only) } else { json!(ids) };
        if let Some(generation) = &mut self.hf_generation {
            generation["eos_token_id"] = written.clone();
        }
        self.hf_config["eos_token_id"] = written;
        if let Some(template) = &mut self.chat_template {
            template.set_special("eos_token", first);
        }
        if let Some(tokenizer) = self.tokenizer.as_mut().and_then(Arc::get_mut) {
            tokenizer.set_eos(first);
        }
        self.config.eos_token_ids = ids;
        Ok(())
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
            hf_generation: None,
            text: TextFiles::default(),
            notes: vec![],
            path: path.to_owned(),
        })
    }

    fn open_dir(dir: &Path) -> Result<Self> {
        refuse_adapter(dir)?;
        let mut hf_config: Value = read::json(&dir.join("config.json"))?;
        let generation_path = dir.join("generation_config.json");
        let hf_generation: Option<Value> = read::if_there(read::json(&generation_path))?;
        let mut config = ModelConfig::from_hf(&dir.join("config.json"), &hf_config, hf_generation.as_ref())?;
        let mut weights = SafetensorsWeights::open(dir)?;
        let notes = untie(&mut config, &mut hf_config, &mut weights)?;
        check_shapes(&config, &weights)?;
        let text = TextFiles::read(dir)?;
        let has_tokenizer = text.has_tokenizer();
        let tokenizer = has_tokenizer.then(|| Tokenizer::from_files(dir, &text)).transpose()?.map(Arc::new);
        Ok(Self {
            config,
            weights: Arc::new(weights),
            chat_template: ChatTemplate::from_files(dir, &text, tokenizer.as_deref())?,
            tokenizer,
            generation: GenerationDefaults::from_hf(&generation_path, hf_generation.as_ref())?,
            hf_config,
            hf_generation,
            text,
            notes,
            path: dir.to_owned(),
        })
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let file = Arc::new(GgufFile::open(path)?);
        let config = ModelConfig::from_gguf(&file)?;
        let weights = GgufWeights::new(Arc::clone(&file))?;
        check_shapes(&config, &weights)?;
        let tokenizer =
            file.get("tokenizer.ggml.model").map(|_| Tokenizer::from_gguf(&file)).transpose()?.map(Arc::new);
        Ok(Self {
            chat_template: ChatTemplate::from_gguf(&file, tokenizer.as_deref())?,
            tokenizer,
            generation: GenerationDefaults::from_gguf(&file)?,
            hf_config: config.to_hf(),
            hf_generation: None,
            text: TextFiles::default(),
            notes: vec![],
            config,
            weights: Arc::new(weights),
            path: path.to_owned(),
        })
    }
}

/// A folder that holds an adapter is not a model, or is one of two, of which transformers takes the adapter's base.
fn refuse_adapter(dir: &Path) -> Result<()> {
    const ADAPTER: &str = "adapter_config.json";
    if !dir.join(ADAPTER).exists() {
        return Ok(());
    }
    let what = if dir.join("config.json").exists() {
        format!(
            "there are a model (config.json) and an adapter ({ADAPTER}), and transformers would load the adapter onto its base; \
             move one of them to a folder of its own, and give an adapter as such, beside its base"
        )
    } else {
        format!(
            "this is an adapter ({ADAPTER}), not a model; give its base as the model and this folder as the adapter"
        )
    };
    Err(Error::bad_file(dir, what))
}

/// Makes a configuration that ties the output head to the embedding true to its weights, as transformers 5 does: a head of
/// its own with other values stays one, and the tensor that is there stands for one that is not.
fn untie(config: &mut ModelConfig, hf_config: &mut Value, weights: &mut SafetensorsWeights) -> Result<Vec<String>> {
    const EMBEDDING: &str = "model.embed_tokens.weight";
    const HEAD: &str = "lm_head.weight";
    let there = |name: &str| weights.tensors().contains_key(name);
    if !config.tie_word_embeddings || !there(HEAD) {
        return Ok(vec![]);
    }
    if !there(EMBEDDING) {
        weights.rename(HEAD, EMBEDDING);
        return Ok(vec![]);
    }
    if weights.equal(EMBEDDING, HEAD)? {
        return Ok(vec![]);
    }
    config.tie_word_embeddings = false;
    hf_config["tie_word_embeddings"] = Value::Bool(false);
    Ok(vec![format!(
        "note: {}: tie_word_embeddings is true, but {HEAD} differs from {EMBEDDING}; both are used, as transformers 5 does; \
         set tie_word_embeddings to false in config.json",
        weights.path().display()
    )])
}
