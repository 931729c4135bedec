//! What an adapter's configuration says is honoured or refused by name.

use std::fs;
use std::path::Path;

use autograd::Device;
use runtime::files::ModelFiles;
use runtime::model::Adapter;
use serde_json::{Value, json};

use crate::{fixtures, models};

/// The fixture's adapter with `change` made to its configuration, loaded.
fn loaded(change: impl FnOnce(&mut Value)) -> Result<Adapter, String> {
    let dir = tempfile::tempdir().unwrap();
    let source = fixtures().join("adapters/llama-all-linear");
    fs::copy(source.join("adapter_model.safetensors"), dir.path().join("adapter_model.safetensors")).unwrap();
    let mut config = serde_json::from_slice(&fs::read(source.join("adapter_config.json")).unwrap()).unwrap();
    change(&mut config);
    fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    let base = ModelFiles::open(&models().join("llama-gqa-tied")).unwrap();
    Adapter::load(dir.path(), &base.config, Device::Cpu).map_err(|e| e.to_string())
}

fn refusal(key: &str, value: Value) -> String {
    loaded(|config| config[key] = value.clone()).err().unwrap_or_else(|| panic!("{key} = {value} was accepted"))
}

#[test]
fn initializations_that_changed_the_base_are_refused() {
    for name in ["pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "lora_ga", "something"] {
        let refused = refusal("init_lora_weights", json!(name));
        assert!(refused.contains("init_lora_weights") && refused.contains(name), "{refused}");
    }
    for value in [json!(true), json!(false), json!("gaussian"), json!("eva"), json!("orthogonal"), Value::Null] {
        loaded(|config| config["init_lora_weights"] = value.clone()).unwrap_or_else(|e| panic!("{value}: {e}"));
    }
}

#[test]
fn ranks_have_to_be_those_of_the_tensors() {
    assert!(refusal("r", json!(16)).contains("rank 4, but the configuration (r, rank_pattern) has 16"));
    assert!(refusal("rank_pattern", json!({"q_proj": 2})).contains("q_proj"));
    for value in [json!(0), json!(-4), json!(4.5), json!("4"), json!(1u64 << 40)] {
        assert!(refusal("r", value).contains('r'));
    }
    assert!(refusal("rank_pattern", json!({"q_proj": 4.5})).contains("rank_pattern"));
    assert!(refusal("alpha_pattern", json!({"(": 4})).contains("alpha_pattern"));
    loaded(|config| {
        config["r"] = json!(2);
        config["rank_pattern"] = json!({"_proj": 4, ".*": 4});
    })
    .unwrap();
}

#[test]
fn the_first_pattern_that_matches_decides_as_in_peft() {
    let scale = |patterns: &str| {
        let patterns: Value = serde_json::from_str(patterns).unwrap();
        let adapter = loaded(|config| config["alpha_pattern"] = patterns).unwrap();
        adapter.modules.values().next().unwrap().scale
    };
    assert_eq!(scale(r#"{"q_proj": 4, ".*": 16}"#), 1.0);
    assert_eq!(scale(r#"{".*": 16, "q_proj": 4}"#), 4.0);
}

#[test]
fn modules_have_to_be_those_that_are_selected() {
    let selected = |key: &'static str, value: Value| move |config: &mut Value| config[key] = value;
    for value in [json!("all-linear"), json!(r".*\.(q|k|v|o|gate|up|down)_proj")] {
        loaded(selected("target_modules", value.clone())).unwrap_or_else(|e| panic!("{value}: {e}"));
    }
    for (key, value) in [
        ("target_modules", json!(["q_proj", "v_proj"])),
        ("target_modules", Value::Null),
        ("exclude_modules", json!(["down_proj"])),
        ("exclude_modules", json!(r".*\.layers\.1\..*")),
        ("layers_to_transform", json!([0])),
        ("layers_to_transform", json!(1)),
    ] {
        let refused = refusal(key, value);
        assert!(refused.contains(key) && refused.contains("has tensors"), "{refused}");
    }
    loaded(selected("layers_to_transform", json!([0, 1]))).unwrap();
    for pattern in ["blocks", "layers"] {
        assert!(refusal("layers_pattern", json!(pattern)).contains("layers_pattern"), "without layers_to_transform");
    }
}

#[test]
fn keys_of_other_versions_are_harmless_or_refused() {
    assert!(refusal("use_new_thing", json!(true)).contains("use_new_thing"));
    loaded(|config| config["use_new_thing"] = json!(false)).unwrap();
    assert!(refusal("alora_invocation_tokens", json!([1, 2])).contains("alora_invocation_tokens"));
    // In PEFT an empty configuration is one.
    for key in ["kasa_config", "use_bdlora", "arrow_config", "velora_config", "monteclora_config"] {
        assert!(refusal(key, json!({})).contains(key));
    }
    assert!(refusal("task_type", json!("SEQ_CLS")).contains("task_type"));
    loaded(|config| {
        let config = config.as_object_mut().unwrap();
        config.retain(|key, _| ["peft_type", "r", "lora_alpha", "target_modules"].contains(&key.as_str()));
    })
    .unwrap();
}

#[test]
fn a_folder_with_an_adapter_is_no_model() {
    let adapter = fixtures().join("adapters/llama-all-linear");
    let error = |path: &Path| ModelFiles::open(path).err().unwrap().to_string();
    assert!(error(&adapter).contains("this is an adapter"));
    let both = crate::copy();
    fs::copy(adapter.join("adapter_config.json"), both.path().join("adapter_config.json")).unwrap();
    let refused = error(both.path());
    assert!(refused.contains("config.json") && refused.contains("adapter_config.json"), "{refused}");
}
