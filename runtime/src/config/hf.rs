//! Hugging Face's `config.json` and `generation_config.json`, as transformers 4 and 5 write them.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Family, ModelConfig};
use super::{keys, rope};
use crate::{Error, Result};

/// One JSON object of a file; `null` counts as absent, as it does in transformers.
pub(super) struct Object<'a> {
    pub(super) path: &'a Path,
    pub(super) map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    pub(super) fn new(path: &'a Path, value: &'a Value) -> Result<Self> {
        match value.as_object() {
            Some(map) => Ok(Self { path, map }),
            None => Err(Error::bad_file(path, "a JSON object is needed")),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// An optional value of one kind.
    pub(super) fn read<T>(
        &self,
        key: &str,
        kind: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::bad_key(self.path, key, value, format!("{kind} is needed"))),
        }
    }

    pub(super) fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.read(key, "a count", |v| v.as_u64().and_then(|v| usize::try_from(v).ok()))
    }

    pub(super) fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number", Value::as_f64)
    }

    pub(super) fn bool(&self, key: &str) -> Result<bool> {
        Ok(self.read(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<&'a str>> {
        self.read(key, "a string", Value::as_str)
    }

    pub(super) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::missing_key(self.path, key))
    }

    fn required_usize(&self, key: &str) -> Result<usize> {
        self.required(key, self.usize(key)?)
    }

    /// One token id or a list of them.
    fn token_ids(&self, key: &str) -> Result<Option<Vec<u32>>> {
        let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
        self.read(key, "a token id or a list of them", |v| match v {
            Value::Array(ids) => ids.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        })
    }
}

impl ModelConfig {
    /// From `config.json` (of which `path` is the name for messages) and, if there is one,
    /// `generation_config.json`.
    pub fn from_hf(path: &Path, config: &Value, generation: Option<&Value>) -> Result<Self> {
        let object = Object::new(path, config)?;
        let family = match object.required("model_type", object.str("model_type")?)? {
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            other => return Err(Error::unsupported(path, "model_type", other, "llama, qwen2, qwen3")),
        };
        refuse_variants(&object, family)?;
        let hidden_size = object.required_usize("hidden_size")?;
        let num_heads = object.required_usize("num_attention_heads")?;
        let num_layers = object.required_usize("num_hidden_layers")?;
        super::within(path, "num_hidden_layers", num_layers, super::MOST_LAYERS)?;
        let max_position_embeddings = object.required_usize("max_position_embeddings")?;
        let generation = generation.map(|value| Object::new(path, value)).transpose()?;
        let eos_token_ids = match generation.map(|g| g.token_ids("eos_token_id")).transpose()?.flatten() {
            Some(ids) => ids,
            None => object.token_ids("eos_token_id")?.unwrap_or_default(),
        };
        let bos_token_id = object.token_ids("bos_token_id")?.and_then(|ids| ids.first().copied());
        Self {
            family,
            hidden_size,
            intermediate_size: object.required_usize("intermediate_size")?,
            num_layers,
            num_heads,
            num_kv_heads: num_kv_heads(&object, family, num_heads)?,
            head_dim: head_dim(&object, family, hidden_size, num_heads)?,
            vocab_size: object.required_usize("vocab_size")?,
            token_ids: object.required_usize("vocab_size")?,
            rms_norm_eps: object.f64("rms_norm_eps")?.unwrap_or(1e-6),
            rope: rope::from_hf(&object, max_position_embeddings)?,
            tie_word_embeddings: object.bool("tie_word_embeddings")?,
            attention_bias: family == Family::Qwen2,
            attention_dropout: object.f64("attention_dropout")?.unwrap_or(0.0),
            sliding_window: sliding_window(&object, family, num_layers)?,
            max_position_embeddings,
            eos_token_ids,
            bos_token_id,
        }
        .check(path)
    }

    /// A `config.json` from which transformers builds the same model.
    pub fn to_hf(&self) -> Value {
        let (model_type, class) = match self.family {
            Family::Llama => ("llama", "LlamaForCausalLM"),
            Family::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
            Family::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
        };
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        };
        let mut config = json!({
            "architectures": [class],
            "model_type": model_type,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "vocab_size": self.vocab_size,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope.theta,
            "rope_scaling": rope::to_hf(&self.rope),
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
        });
        if let Some(window) = self.sliding_window.iter().flatten().next() {
            let kind = |w: &Option<usize>| if w.is_some() { "sliding_attention" } else { "full_attention" };
            config["use_sliding_window"] = json!(true);
            config["sliding_window"] = json!(window);
            config["layer_types"] = self.sliding_window.iter().map(kind).collect();
        }
        config
    }
}

/// Fields that change the computation in ways the decoder does not have.
fn refuse_variants(object: &Object, family: Family) -> Result<()> {
    let refuse =
        |what, got: &dyn std::fmt::Display, supported| Err(Error::unsupported(object.path, what, got, supported));
    keys::check(object)?;
    // Two names of one function in transformers.
    if let Some(act) = object.str("hidden_act")?
        && !matches!(act, "silu" | "swish")
    {
        return refuse("hidden_act", &act, "silu");
    }
    if family != Family::Qwen2 && object.bool("attention_bias")? {
        return refuse("attention_bias", &true, "false (it would put a bias on o_proj too)");
    }
    if object.bool("mlp_bias")? {
        return refuse("mlp_bias", &true, "false");
    }
    if let Some(quantization) = object.get("quantization_config") {
        let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
        return refuse("quantization_config", &method, "F32, F16 and BF16 weights, or a GGUF file");
    }
    if let Some(factor) = object.f64("partial_rotary_factor")?
        && factor != 1.0
    {
        return refuse("partial_rotary_factor", &factor, "1.0");
    }
    Ok(())
}

/// transformers reads null as the number of heads, and an absent key so only for llama; qwen's default is 32.
fn num_kv_heads(object: &Object, family: Family, num_heads: usize) -> Result<usize> {
    let absent = !object.map.contains_key("num_key_value_heads");
    let default = if absent && family != Family::Llama { 32 } else { num_heads };
    Ok(object.usize("num_key_value_heads")?.unwrap_or(default))
}

fn head_dim(object: &Object, family: Family, hidden_size: usize, num_heads: usize) -> Result<usize> {
    if let Some(head_dim) = object.usize("head_dim")? {
        return Ok(head_dim);
    }
    if family == Family::Qwen3 {
        return Ok(128); // transformers' default for this family
    }
    match hidden_size.checked_div(num_heads) {
        Some(head_dim) if head_dim * num_heads == hidden_size => Ok(head_dim),
        _ => {
            let want = format!("hidden_size {hidden_size} must be divisible by it when head_dim is not given");
            Err(Error::bad_key(object.path, "num_attention_heads", num_heads, want))
        }
    }
}

/// The window of each layer; `layer_types` decides, else layers from `max_window_layers` on slide.
fn sliding_window(object: &Object, family: Family, num_layers: usize) -> Result<Vec<Option<usize>>> {
    let window = object.usize("sliding_window")?;
    let window = match family {
        // transformers' llama has no window; a file that names one means another architecture.
        Family::Llama if window.is_some() => {
            return Err(Error::unsupported(object.path, "sliding_window of a llama", window.unwrap_or(0), "none"));
        }
        Family::Llama => None,
        Family::Qwen2 | Family::Qwen3 if object.bool("use_sliding_window")? => Some(window.unwrap_or(4096)),
        Family::Qwen2 | Family::Qwen3 => None,
    };
    if window == Some(0) {
        return Err(Error::bad_key(object.path, "sliding_window", 0, "at least 1 is needed"));
    }
    let windows: Vec<_> = match object.read("layer_types", "a list", Value::as_array)? {
        Some(types) if types.len() != num_layers => {
            return Err(Error::bad_key(
                object.path,
                "layer_types",
                format!("{} entries", types.len()),
                format!("one for each of {num_layers} layers is needed"),
            ));
        }
        Some(types) => types.iter().map(|kind| layer_window(object, kind, window)).collect::<Result<_>>()?,
        None => {
            let first = object.usize("max_window_layers")?.unwrap_or(28);
            (0..num_layers).map(|layer| window.filter(|_| layer >= first)).collect()
        }
    };
    Ok(if windows.iter().any(Option::is_some) { windows } else { Vec::new() })
}

fn layer_window(object: &Object, kind: &Value, window: Option<usize>) -> Result<Option<usize>> {
    match (kind.as_str(), window) {
        (Some("full_attention"), _) => Ok(None),
        (Some("sliding_attention"), Some(_)) => Ok(window),
        (Some("sliding_attention"), None) => {
            Err(Error::bad_key(object.path, "layer_types", kind, "a sliding layer needs use_sliding_window = true"))
        }
        _ => Err(Error::unsupported(object.path, "layer type", kind, "full_attention, sliding_attention")),
    }
}
