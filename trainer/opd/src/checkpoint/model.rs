//! The files around a whole model's weights.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use runtime::files::ModelFiles;
use runtime::text::ChatTemplate;
use serde_json::{Value, json};

use crate::recipe::SavedDtype;
use crate::{Error, Result};

/// Lists in `config.json` with one entry a layer.
const PER_LAYER: [&str; 2] = ["layer_types", "mlp_layer_types"];

/// A fully trained student, in the form that transformers loads.
pub struct ModelExport {
    files: Arc<ModelFiles>,
    layers: Option<Vec<usize>>,
    dtype: SavedDtype,
}

impl ModelExport {
    /// `layers`: those kept of the source model; `dtype`: `None` is the source's.
    #[must_use]
    pub fn new(files: Arc<ModelFiles>, layers: Option<Vec<usize>>, dtype: Option<SavedDtype>) -> Self {
        let named = ["dtype", "torch_dtype"].into_iter().find_map(|key| files.hf_config.get(key)?.as_str());
        let source = match named {
            Some("bfloat16") => SavedDtype::Bfloat16,
            Some("float16") => SavedDtype::Float16,
            _ => SavedDtype::Float32,
        };
        Self { files, layers, dtype: dtype.unwrap_or(source) }
    }

    /// Type of the written weights.
    pub(super) fn dtype(&self) -> SavedDtype {
        self.dtype
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        write_json(&folder.join("config.json"), &self.config())?;
        write_json(&folder.join("generation_config.json"), &self.generation())?;
        if !self.files.text.is_empty() {
            self.files.text.write(folder)?;
        } else if let Some(tokenizer) = &self.files.tokenizer {
            tokenizer.save_files(folder, self.files.chat_template.as_ref().map(ChatTemplate::to_json).as_ref())?;
        }
        Ok(())
    }

    /// The source's configuration with the kept layers and the type of the written weights.
    fn config(&self) -> Value {
        let mut config = self.files.hf_config.clone();
        for key in ["torch_dtype", "dtype"] {
            if config.get(key).is_some() {
                config[key] = json!(self.dtype);
            }
        }
        if let Some(layers) = &self.layers {
            config["num_hidden_layers"] = json!(layers.len());
            for key in PER_LAYER {
                if let Some(Value::Array(all)) = config.get(key) {
                    config[key] = layers.iter().filter_map(|&layer| all.get(layer).cloned()).collect();
                }
            }
        }
        config
    }

    /// The source's own, or a GGUF file's.
    fn generation(&self) -> Value {
        if let Some(generation) = &self.files.hf_generation {
            return generation.clone();
        }
        let (config, defaults) = (&self.files.config, &self.files.generation);
        let mut generation = json!({ "eos_token_id": config.eos_token_ids });
        let optional = [
            ("bos_token_id", config.bos_token_id.map(Value::from)),
            ("do_sample", defaults.do_sample.map(Value::from)),
            ("temperature", defaults.temperature.map(Value::from)),
            ("top_p", defaults.top_p.map(Value::from)),
            ("top_k", defaults.top_k.map(Value::from)),
            ("min_p", defaults.min_p.map(Value::from)),
            ("repetition_penalty", defaults.repetition_penalty.map(Value::from)),
        ];
        for (key, value) in optional {
            if let Some(value) = value {
                generation[key] = value;
            }
        }
        generation
    }
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).expect("plain JSON");
    fs::write(path, text).map_err(Error::io(path))
}
