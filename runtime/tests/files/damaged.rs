//! Damaged files and absurd sizes are errors that name the file: no panic, no hang, no memory beyond the plan.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use autograd::Device;
use proptest::prelude::*;
use runtime::files::ModelFiles;
use runtime::memory::{Checkpointing, KvWish, MemoryPlan, Workload};
use runtime::model::Adapter;
use runtime::request::{EngineConfig, ModelSpec, RuntimeSpec};
use runtime::text::Tokenizer;
use serde_json::{Value, json};

use crate::{fixtures, models};

/// One change of a file's bytes.
#[derive(Debug, Clone)]
enum Damage {
    Cut(prop::sample::Index),
    Flip(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    /// A JSON value in the place of the one at this place of the text's numbers.
    Number(prop::sample::Index, &'static str),
}

const NUMBERS: [&str; 10] = [
    "0",
    "-1",
    "134217728",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "1e300",
    "4.5",
    "null",
    "\"8\"",
];

fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        index().prop_map(Damage::Cut),
        (index(), 1u8..).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        (index(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (index(), prop::sample::select(NUMBERS.to_vec())).prop_map(|(at, number)| Damage::Number(at, number)),
    ]
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Self::Flip(at, bits) => {
                let at = at.index(bytes.len());
                bytes[at] ^= bits;
            }
            Self::Insert(at, more) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Number(at, number) => {
                let starts: Vec<usize> =
                    (1..bytes.len()).filter(|&i| bytes[i].is_ascii_digit() && !bytes[i - 1].is_ascii_digit()).collect();
                if starts.is_empty() {
                    return;
                }
                let start = starts[at.index(starts.len())];
                let length = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                bytes.splice(start..start + length, number.bytes());
            }
        }
    }
}

/// A copy of a fixture's folder with its file `name` damaged.
fn damaged(folder: &Path, name: &str, damage: &Damage) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join(name);
    let mut bytes = fs::read(&path).unwrap();
    damage.apply(&mut bytes);
    fs::write(path, bytes).unwrap();
    dir
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn model_folders(damage in damage(), which in 0usize..6) {
        let (folder, name) = [
            ("models/llama-sharded", "config.json"),
            ("models/llama-sharded", "model.safetensors.index.json"),
            ("models/llama-sharded", "model-00001-of-00002.safetensors"),
            ("tiny-chat", "tokenizer.json"),
            ("tiny-chat", "tokenizer_config.json"),
            ("tiny-chat", "generation_config.json"),
        ][which];
        let dir = damaged(&fixtures().join(folder), name, &damage);
        if let Ok(files) = ModelFiles::open(dir.path()) {
            for name in files.weights.tensors().keys() {
                let _ = files.weights.read(name);
            }
            plan(files);
        }
    }

    #[test]
    fn adapters(damage in damage(), which in 0usize..2) {
        let name = ["adapter_config.json", "adapter_model.safetensors"][which];
        let dir = damaged(&fixtures().join("adapters/llama-all-linear"), name, &damage);
        let base = ModelFiles::open(&models().join("llama-gqa-tied")).unwrap();
        let _ = Adapter::load(dir.path(), &base.config, Device::Cpu);
    }

    #[test]
    fn gguf_files(damage in damage(), which in 0usize..3) {
        let name = ["formats.gguf", "spm.gguf", "bpe-qwen2.gguf"][which];
        let mut bytes = fs::read(fixtures().join("gguf").join(name)).unwrap();
        damage.apply(&mut bytes);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        if let Ok(file) = runtime::weights::gguf::GgufFile::open(&path) {
            let _ = Tokenizer::from_gguf(&file);
            let _ = ModelFiles::open(&path).map(plan);
        }
    }
}

/// A plan for this model; what it says does not matter.
fn plan(files: ModelFiles) {
    let mut spec = RuntimeSpec::for_device(Device::Cpu, ModelSpec::new(Arc::new(files)));
    spec.engine =
        EngineConfig { token_budget: 1 << 24, max_running: 1 << 16, max_waiting: 1, kv_bytes: 0, ..spec.engine };
    let longest = spec.student().files.config.max_position_embeddings;
    let workload = Workload {
        kv: KvWish::Sequences(vec![longest; 1 << 10]),
        longest,
        micro_batch: 1 << 24,
        checkpointing: Checkpointing::Off,
        given_bytes: 1 << 20,
        adapters: vec![],
    };
    if let Ok(plan) = MemoryPlan::of(&spec, &workload, Some(1 << 30)) {
        assert!(plan.check().is_err(), "{plan} does not fit a GiB");
    }
}

#[test]
fn absurd_sizes_are_refused_by_name() {
    let source = models().join("qwen3-gqa-tied/config.json");
    let config: Value = serde_json::from_slice(&fs::read(&source).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let keys = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
    ];
    for key in keys {
        for power in [29, 32, 40, 63] {
            let mut config = config.clone();
            config[key] = json!(1u64 << power);
            config.as_object_mut().unwrap().shift_remove("layer_types");
            fs::write(&path, config.to_string()).unwrap();
            match ModelFiles::random(&path) {
                Ok(files) => plan(files),
                Err(error) => assert!(error.to_string().contains(key), "{error}"),
            }
        }
    }
    // A long context costs nothing until it is used.
    let mut long = config;
    long["max_position_embeddings"] = json!(i32::MAX);
    fs::write(&path, long.to_string()).unwrap();
    ModelFiles::random(&path).unwrap();
}

#[test]
fn what_the_tokenizer_library_panics_at_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixtures().join("tiny-chat")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json["decoder"] = json!({"type": "Strip", "content": "a", "start": 0, "stop": 9});
    fs::write(&path, json.to_string()).unwrap();
    let refused = ModelFiles::open(dir.path()).err().expect("refused").to_string();
    assert!(refused.contains("tokenizer.json") && refused.contains("tokenizers library"), "{refused}");
}
