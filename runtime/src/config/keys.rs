//! Keys of `config.json`: those that transformers reads are honoured, known to change nothing here, or refused by name.

use serde_json::Value;

use super::hf::Object;
use crate::{Error, Result};

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// `config` reads it, or its meaning is in another key that it reads.
    Read,
    /// It changes no value that the decoder computes.
    Harmless,
    /// It switches on what the decoder does not have, unless it is absent, null, false, 0 or empty.
    Off,
    /// It switches off what the decoder always has, unless it is absent, null or true.
    On,
}

use Rule::{Harmless, Off, On, Read};

/// Keys of transformers' llama, qwen2 and qwen3 configurations, and keys by which other architectures change these families.
/// What is not listed is not read by transformers either.
const KEYS: [(&str, Rule); 76] = [
    ("model_type", Read),
    ("hidden_size", Read),
    ("intermediate_size", Read),
    ("num_hidden_layers", Read),
    ("num_attention_heads", Read),
    ("num_key_value_heads", Read),
    ("head_dim", Read),
    ("vocab_size", Read),
    ("max_position_embeddings", Read),
    ("hidden_act", Read),
    ("rms_norm_eps", Read),
    ("rope_theta", Read),
    ("rope_scaling", Read),
    ("rope_parameters", Read),
    ("partial_rotary_factor", Read),
    ("tie_word_embeddings", Read),
    ("attention_bias", Read),
    ("mlp_bias", Read),
    ("use_sliding_window", Read),
    ("sliding_window", Read),
    ("max_window_layers", Read),
    ("layer_types", Read),
    ("bos_token_id", Read),
    ("eos_token_id", Read),
    ("quantization_config", Read),
    // Of training only, where it is refused: see `ModelConfig::attention_dropout`.
    ("attention_dropout", Read),
    ("architectures", Harmless),
    ("transformers_version", Harmless),
    ("torch_dtype", Harmless),
    ("dtype", Harmless),
    ("initializer_range", Harmless),
    ("use_cache", Harmless),
    // A split of the same sums.
    ("pretraining_tp", Harmless),
    // The families have no feed-forward that is cut.
    ("chunk_size_feed_forward", Harmless),
    ("pad_token_id", Harmless),
    ("id2label", Harmless),
    ("label2id", Harmless),
    ("problem_type", Harmless),
    ("return_dict", Harmless),
    ("output_attentions", Harmless),
    ("output_hidden_states", Harmless),
    ("is_encoder_decoder", Off),
    ("add_cross_attention", Off),
    ("cross_attention_hidden_size", Off),
    ("tie_encoder_decoder", Off),
    ("pruned_heads", Off),
    ("per_layer_config", Off),
    ("quantization", Off),
    ("compression_config", Off),
    ("use_mrope", Off),
    ("use_qk_norm", Off),
    ("qk_norm", Off),
    ("qk_layernorm", Off),
    ("use_bidirectional_attention", Off),
    // Embedding models that attend both ways.
    ("is_causal", On),
    ("attn_logit_softcapping", Off),
    ("final_logit_softcapping", Off),
    ("logit_scale", Off),
    ("logits_scaling", Off),
    ("embedding_multiplier", Off),
    ("residual_multiplier", Off),
    ("attention_multiplier", Off),
    ("query_pre_attn_scalar", Off),
    ("scale_emb", Off),
    ("scale_depth", Off),
    ("dim_model_base", Off),
    ("no_rope_layers", Off),
    ("attention_chunk_size", Off),
    ("attn_temperature_tuning", Off),
    ("num_experts", Off),
    ("num_local_experts", Off),
    ("n_routed_experts", Off),
    ("parallel_attn", Off),
    ("use_parallel_residual", Off),
    ("alibi", Off),
    ("text_config", Off),
];

/// Refuses keys that switch on what the decoder does not have.
pub(super) fn check(object: &Object) -> Result<()> {
    let refused = KEYS.iter().find_map(|(key, rule)| {
        let value = object.get(key)?;
        let accepted = match rule {
            Read | Harmless => true,
            Off => is_off(value),
            On => value == &Value::Bool(true),
        };
        (!accepted).then_some((*key, value))
    });
    match refused {
        None => Ok(()),
        Some((key, value)) => {
            let want =
                "the decoder of llama, qwen2 and qwen3 does not do this; remove the key if the model does not need it";
            Err(Error::bad_key(object.path, key, value, want))
        }
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    /// transformers' own lists of keys, see `scripts/fixtures/make_key.py`.
    #[test]
    fn every_key_of_transformers_has_a_rule() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/keys.json");
        let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for family in ["llama", "qwen2", "qwen3"] {
            let keys = fixture[family].as_object().unwrap();
            assert!(keys.len() > 30);
            let known = |key: &String| KEYS.iter().any(|(known, _)| known == key);
            assert_eq!(keys.keys().find(|key| !known(key)), None, "{family}: a key without a rule");
            check(&Object { path: Path::new("config.json"), map: keys }).unwrap();
        }
    }

    #[test]
    fn a_feature_that_is_on_is_refused_by_name() {
        let path = Path::new("config.json");
        for (key, _) in KEYS.iter().filter(|(_, rule)| *rule == Off) {
            let with = |value: Value| json!({*key: value});
            let refusal = check(&Object::new(path, &with(json!(true))).unwrap()).unwrap_err().to_string();
            assert!(refusal.contains(&format!("\"{key}\"")), "{refusal}");
            check(&Object::new(path, &with(json!(false))).unwrap()).unwrap();
        }
    }
}
