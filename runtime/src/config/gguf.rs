//! GGUF metadata of llama, qwen2 and qwen3 files.

use super::{Family, ModelConfig, rope};
use crate::weights::gguf::{GgufFile, Value};
use crate::{Error, Result};

/// The family of a file's `general.architecture`.
fn family(file: &GgufFile) -> Result<Family> {
    match file.str("general.architecture")? {
        "llama" => Ok(Family::Llama),
        "qwen2" => Ok(Family::Qwen2),
        "qwen3" => Ok(Family::Qwen3),
        other => Err(Error::unsupported(file.path(), "architecture", other, "llama, qwen2, qwen3")),
    }
}

impl ModelConfig {
    /// From the metadata of a GGUF file and the shape of its embedding.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let family = family(file)?;
        let arch = file.str("general.architecture")?;
        let key = |name: &str| format!("{arch}.{name}");
        let num_heads = uniform(file, &key("attention.head_count"))?;
        let num_kv_heads = match file.get(&key("attention.head_count_kv")) {
            Some(_) => uniform(file, &key("attention.head_count_kv"))?,
            None => num_heads,
        };
        let hidden_size = file.usize(&key("embedding_length"))?;
        let head_dim = match file.get(&key("attention.key_length")) {
            Some(_) => file.usize(&key("attention.key_length"))?,
            None => hidden_size.checked_div(num_heads).unwrap_or(0),
        };
        super::within(file.path(), "attention.key_length", head_dim, super::MOST_COLUMNS)?;
        let max_position_embeddings = file.usize(&key("context_length"))?;
        refuse_variants(file, arch, head_dim, max_position_embeddings)?;
        let has_bias = file.dims("blk.0.attn_q.bias").is_some();
        if has_bias != (family == Family::Qwen2) {
            return Err(Error::unsupported(
                file.path(),
                "bias on q, k, v of architecture",
                arch,
                "qwen2 with, llama and qwen3 without",
            ));
        }
        Self {
            family,
            hidden_size,
            intermediate_size: uniform(file, &key("feed_forward_length"))?,
            num_layers: file.usize(&key("block_count"))?,
            num_heads,
            num_kv_heads,
            head_dim,
            vocab_size: vocab_size(file)?,
            token_ids: vocab_size(file)?,
            rms_norm_eps: file.f64(&key("attention.layer_norm_rms_epsilon")).map(shortest)?,
            rope: rope::from_gguf(file, arch, head_dim)?,
            tie_word_embeddings: file.dims("output.weight").is_none(),
            attention_bias: has_bias,
            attention_dropout: 0.0,
            sliding_window: Vec::new(),
            max_position_embeddings,
            eos_token_ids: eos_token_ids(file)?,
            bos_token_id: token_id(file, "tokenizer.ggml.bos_token_id")?,
        }
        .check(file.path())
    }
}

/// The decimal that an `f32` was written for: 1e-5, not 9.999999747378752e-6.
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

/// A count that may be given per layer, if all layers agree.
fn uniform(file: &GgufFile, key: &str) -> Result<usize> {
    let Some(layers) = file.get(key).and_then(|v| v.as_array()) else {
        return file.usize(key);
    };
    match layers.first().and_then(|v| v.as_u64()).and_then(|v| usize::try_from(v).ok()) {
        Some(first) if layers.iter().all(|v| v.as_u64() == Some(first as u64)) => Ok(first),
        _ => Err(Error::unsupported(file.path(), "per-layer value of", key, "the same in every layer")),
    }
}

/// Keys below the architecture's name that change the computation in ways the decoder does not have, unless they are 0,
/// false or empty.
const OFF: [&str; 11] = [
    "attention.scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "use_parallel_residual",
    "rope.dimension_sections",
    "pooling_type",
];

fn is_off(value: &Value) -> bool {
    match value {
        Value::Bool(on) => !on,
        Value::Str(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        number => number.as_f64() == Some(0.0),
    }
}

/// Fields that change the computation in ways the decoder does not have.
fn refuse_variants(file: &GgufFile, arch: &str, head_dim: usize, max_position: usize) -> Result<()> {
    let key = |name: &str| format!("{arch}.{name}");
    let not_done = |key: String, value: &Value| {
        let want = "the decoder of llama, qwen2 and qwen3 does not do this";
        Error::bad_key(file.path(), key, format_args!("{value:.60?}"), want)
    };
    for name in OFF {
        if let Some(value) = file.get(&key(name)).filter(|value| !is_off(value)) {
            return Err(not_done(key(name), value));
        }
    }
    if let Some(value @ Value::Bool(false)) = file.get(&key("attention.causal")) {
        return Err(not_done(key("attention.causal"), value));
    }
    let experts = file.usize_or(&key("expert_count"), 0)?;
    if experts > 0 {
        return Err(Error::unsupported(file.path(), "mixture of experts of", experts, "dense models"));
    }
    for name in ["rope.dimension_count", "attention.value_length"] {
        let width = file.usize_or(&key(name), head_dim)?;
        if width != head_dim {
            return Err(Error::unsupported(
                file.path(),
                "partial head width",
                format!("{} = {width}", key(name)),
                format!("the head width, {head_dim}"),
            ));
        }
    }
    let window = file.usize_or(&key("attention.sliding_window"), 0)?;
    if window > 0 && window < max_position {
        return Err(Error::unsupported(file.path(), "sliding window", window, "none, or the whole context"));
    }
    Ok(())
}

fn vocab_size(file: &GgufFile) -> Result<usize> {
    let Some(&[_, rows]) = file.dims("token_embd.weight") else {
        return Err(Error::MissingTensor { path: file.path().to_owned(), name: "token_embd.weight".into() });
    };
    if let Some(tokens) = file.get("tokenizer.ggml.tokens").and_then(|v| v.as_array())
        && tokens.len() > rows
    {
        return Err(Error::bad_file(
            file.path(),
            format!("{} tokens, but token_embd.weight has {rows} rows", tokens.len()),
        ));
    }
    Ok(rows)
}

/// End of sequence, of turn and of message, where the file names them.
fn eos_token_ids(file: &GgufFile) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        if let Some(id) = token_id(file, &format!("tokenizer.ggml.{name}_token_id"))?
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn token_id(file: &GgufFile, key: &str) -> Result<Option<u32>> {
    if file.get(key).is_none() {
        return Ok(None);
    }
    let id = file.usize(key)?;
    match u32::try_from(id) {
        Ok(id) => Ok(Some(id)),
        Err(_) => Err(Error::bad_key(file.path(), key, id, "a token id is needed")),
    }
}
