//! `config.json` as transformers 4 and 5 write it, and what is refused.

use std::path::Path;

use runtime::config::{Family, ModelConfig, RopeConfig, RopeScaling};
use serde_json::{Value, json};

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/config").join(format!("{name}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn parse(config: &Value) -> runtime::Result<ModelConfig> {
    ModelConfig::from_hf(Path::new("dir/config.json"), config, None)
}

/// A llama of transformers 4 with some keys changed; `null` removes a key.
fn llama(changes: Value) -> Value {
    let mut config = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 20000.0, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn error(changes: Value) -> String {
    parse(&llama(changes)).unwrap_err().to_string()
}

#[test]
fn a_llama_of_transformers_4() {
    let config = parse(&llama(json!({}))).unwrap();
    let expected = ModelConfig {
        family: Family::Llama,
        hidden_size: 64,
        intermediate_size: 96,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        vocab_size: 100,
        token_ids: 100,
        rms_norm_eps: 1e-5,
        rope: RopeConfig { theta: 20_000.0, scaling: RopeScaling::None },
        tie_word_embeddings: false,
        attention_bias: false,
        attention_dropout: 0.0,
        sliding_window: vec![],
        max_position_embeddings: 512,
        eos_token_ids: vec![2],
        bos_token_id: Some(1),
    };
    assert_eq!(config, expected);
}

#[test]
fn what_transformers_5_writes() {
    let llama = parse(&fixture("llama")).unwrap();
    assert_eq!((llama.eos_token_ids.as_slice(), llama.tie_word_embeddings), (&[2, 3][..], true));
    assert_eq!(llama.rope, RopeConfig { theta: 10_000.0, scaling: RopeScaling::None });

    let llama3 = parse(&fixture("llama-llama3")).unwrap();
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position: 1024 };
    assert_eq!((llama3.rope, llama3.head_dim), (RopeConfig { theta: 500_000.0, scaling }, 32));

    let linear = parse(&fixture("llama-linear")).unwrap();
    assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 2.0 });

    let sliding = parse(&fixture("qwen2-sliding")).unwrap();
    assert_eq!(sliding.sliding_window, [None, None, Some(512), Some(512)]);
    assert!(sliding.attention_bias);

    let yarn = |beta_fast, beta_slow, attention_factor| RopeConfig {
        theta: 1e6,
        scaling: RopeScaling::Yarn { factor: 4.0, beta_fast, beta_slow, original_max_position: 1024, attention_factor },
    };
    let qwen2 = parse(&fixture("qwen2-yarn")).unwrap();
    assert_eq!((qwen2.rope, qwen2.eos_token_ids), (yarn(32.0, 1.0, None), vec![7]));
    assert_eq!(parse(&fixture("qwen3-yarn")).unwrap().rope, yarn(16.0, 2.0, Some(1.25)));

    let qwen3 = parse(&fixture("qwen3")).unwrap();
    assert_eq!((qwen3.family, qwen3.head_dim, qwen3.sliding_window.len()), (Family::Qwen3, 32, 0));
}

#[test]
fn writing_and_reading_gives_the_same_model() {
    for name in ["llama", "llama-llama3", "llama-linear", "qwen2-sliding", "qwen2-yarn", "qwen3", "qwen3-yarn"] {
        let config = parse(&fixture(name)).unwrap();
        assert_eq!(parse(&config.to_hf()).unwrap(), config, "{name}");
    }
}

#[test]
fn the_generation_config_decides_what_ends_a_text() {
    let eos = |generation: Value| {
        ModelConfig::from_hf(Path::new("config.json"), &llama(json!({})), Some(&generation)).map(|c| c.eos_token_ids)
    };
    assert_eq!(eos(json!({"eos_token_id": [5, 6]})).unwrap(), [5, 6]);
    assert_eq!(eos(json!({"eos_token_id": 9})).unwrap(), [9]);
    assert_eq!(eos(json!({"temperature": 1.0})).unwrap(), [2]);
    assert!(eos(json!({"eos_token_id": -1})).unwrap_err().to_string().contains("eos_token_id"));
}

#[test]
fn defaults_are_those_of_transformers() {
    let config = parse(&llama(json!({"num_key_value_heads": null, "rms_norm_eps": null, "rope_theta": null}))).unwrap();
    assert_eq!((config.num_kv_heads, config.rms_norm_eps, config.rope.theta), (4, 1e-6, 10_000.0));
    let qwen3 = parse(&llama(json!({"model_type": "qwen3"}))).unwrap();
    assert_eq!(qwen3.head_dim, 128);
    let unused =
        parse(&llama(json!({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": false}))).unwrap();
    assert!(unused.sliding_window.is_empty());
}

#[test]
fn rope_scaling_of_transformers_4() {
    let rope = |scaling: Value| parse(&llama(json!({"rope_scaling": scaling}))).map(|c| c.rope.scaling);
    assert_eq!(rope(json!({"type": "linear", "factor": 4.0})).unwrap(), RopeScaling::Linear { factor: 4.0 });
    let yarn = rope(json!({"type": "yarn", "factor": 8.0, "mscale": 1.0, "mscale_all_dim": 0.5})).unwrap();
    let RopeScaling::Yarn { original_max_position: 512, attention_factor: Some(factor), .. } = yarn else {
        panic!("{yarn:?}")
    };
    let (one, half) = (0.1 * 8f64.ln() + 1.0, 0.05 * 8f64.ln() + 1.0);
    assert!((factor - one / half).abs() < 1e-12);
    for (scaling, want) in [
        (json!({"rope_type": "dynamic", "factor": 2.0}), "\"dynamic\" is not supported"),
        (json!({"rope_type": "longrope", "factor": 2.0}), "\"longrope\" is not supported"),
        (json!({"rope_type": "llama3", "factor": 2.0}), "\"low_freq_factor\" is missing"),
        (json!({"rope_type": "linear"}), "\"factor\" is missing"),
        (json!({"rope_type": "linear", "factor": 0.5}), "at least 1"),
        (json!({"rope_type": "yarn", "factor": 2.0, "truncate": false}), "truncate"),
        (json!({"rope_type": "linear", "factor": 2.0, "long_factor": [1]}), "\"long_factor\""),
        (
            json!({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}),
            "low_freq_factor",
        ),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!("yarn"), "JSON object"),
    ] {
        let message = rope(scaling).unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
    }
    let both = json!({"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {"rope_type": "default"}});
    assert!(error(both).contains("rope_parameters"));
}

#[test]
fn missing_keys_are_named() {
    for key in [
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
    ] {
        let message = error(json!({key: null}));
        assert!(message.contains(&format!("\"{key}\" is missing")) && message.contains("config.json"), "{message}");
    }
}

#[test]
fn what_the_decoder_cannot_do_is_refused() {
    for (changes, want) in [
        (json!({"model_type": "gemma3"}), "llama, qwen2, qwen3"),
        (json!({"hidden_act": "gelu"}), "\"gelu\""),
        (json!({"attention_bias": true}), "o_proj"),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (json!({"quantization_config": {"quant_method": "gptq"}}), "\"gptq\""),
        (json!({"sliding_window": 128}), "sliding_window"),
        (json!({"num_key_value_heads": 3}), "divide the 4"),
        (json!({"num_key_value_heads": 0}), "num_key_value_heads"),
        (json!({"num_attention_heads": 0}), "num_attention_heads"),
        (json!({"num_attention_heads": 5}), "hidden_size 64"),
        (json!({"head_dim": 15}), "even"),
        (json!({"hidden_size": "64"}), "hidden_size"),
        (json!({"hidden_size": -64}), "hidden_size"),
        (json!({"rope_theta": 0.0}), "rope_theta"),
        (json!({"layer_types": ["full_attention"]}), "2 layers"),
        (json!({"layer_types": ["full_attention", "linear_attention"]}), "linear_attention"),
        (json!({"layer_types": ["full_attention", "sliding_attention"]}), "use_sliding_window"),
    ] {
        let message = error(changes.clone());
        assert!(message.contains(want), "{changes}: {message}");
    }
}
