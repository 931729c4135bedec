//! Damaged, foreign and incomplete model files: a clear error each, from the program itself.

use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::command_line::assert_close;
use crate::support::{Ended, Model, arle, fixture, fixtures, read_json};

const LLAMA: &str = "models/llama-gqa-tied";
const WEIGHTS: &str = "model.safetensors";

fn score(model: &str) -> Ended {
    arle(&["score", "--model", model, "--tokens", "1,2,3", "--json"])
}

/// Damages a copy of the llama fixture's weights and returns what scoring with it says.
fn with_weights(change: impl FnOnce(&mut Map<String, Value>, &mut Vec<u8>)) -> Ended {
    let model = Model::copy(LLAMA);
    model.edit_weights(WEIGHTS, change);
    score(&model.path())
}

fn with_config(key: &str, value: Value) -> Ended {
    let model = Model::copy(LLAMA);
    model.set("config.json", key, value);
    score(&model.path())
}

#[test]
fn an_undamaged_copy_is_scored() {
    assert_eq!(with_weights(|_, _| {}).object(), score(&fixture(LLAMA)).object());
}

#[test]
fn a_folder_without_an_adapter_is_named() {
    let model = Model::copy(LLAMA);
    let folder = model.path();
    let with = ["score", "--model", &folder, "--tokens", "1,2,3", "--adapter", &folder];
    arle(&with).refused(1, &[&folder, "adapter_model.safetensors", "PEFT"]);
}

#[test]
fn missing_files_are_named() {
    for (name, words) in [("config.json", ["config.json", "No such file"]), (WEIGHTS, [WEIGHTS, "neither"])] {
        let model = Model::copy(LLAMA);
        fs::remove_file(model.file(name)).expect("removed");
        score(&model.path()).refused(1, &words);
    }
    let model = Model::copy("models/llama-sharded");
    fs::remove_file(model.file("model-00002-of-00002.safetensors")).expect("removed");
    score(&model.path()).refused(1, &["index.json", "model-00002-of-00002.safetensors", "missing"]);
    let empty = tempfile::tempdir().expect("a folder");
    score(&empty.path().display().to_string()).refused(1, &["config.json"]);
}

#[test]
fn truncated_safetensors_are_refused_at_every_length() {
    let length = fs::metadata(fixtures().join(LLAMA).join(WEIGHTS)).expect("a fixture").len() as usize;
    for keep in [0, 7, 8, 100, length / 2, length - 1] {
        let model = Model::copy(LLAMA);
        model.edit(WEIGHTS, |bytes| bytes.truncate(keep));
        score(&model.path()).refused(1, &[WEIGHTS]);
    }
}

#[test]
fn corrupt_safetensors_are_refused() {
    let model = Model::copy(LLAMA);
    model.edit(WEIGHTS, |bytes| bytes[7] = 0x7f);
    score(&model.path()).refused(1, &[WEIGHTS, "header"]);
    let model = Model::copy(LLAMA);
    model.edit(WEIGHTS, |bytes| bytes[8] = b'!');
    score(&model.path()).refused(1, &[WEIGHTS, "header"]);
    let model = Model::copy(LLAMA);
    model.edit(WEIGHTS, |bytes| bytes.extend([0; 4]));
    score(&model.path()).refused(1, &[WEIGHTS, "the tensors end at byte"]);
    with_weights(|header, _| header["model.norm.weight"]["dtype"] = json!("F8_E4M3"))
        .refused(1, &["F8_E4M3", "model.norm.weight", "F32, F16, BF16"]);
    with_weights(|header, _| header["model.norm.weight"]["data_offsets"] = json!([0, u64::MAX]))
        .refused(1, &["model.norm.weight"]);
}

#[test]
fn tensors_that_do_not_fit_the_configuration_are_named() {
    let norm = "model.norm.weight";
    with_weights(|header, _| header[norm]["shape"] = json!([4, 8])).refused(1, &[norm, "[4, 8]", "[32]"]);
    with_config("intermediate_size", json!(25)).refused(1, &["mlp.", "[24, 32]", "[25, 32]"]);
    with_config("num_hidden_layers", json!(3)).refused(1, &["no tensor", "model.layers.2."]);
    with_config("num_hidden_layers", json!(1)).refused(1, &["model.layers.1.", "not part of"]);
    with_weights(|header, _| {
        let norm = header.remove(norm).expect("it is there");
        header.insert("model.norm.strange".to_owned(), norm);
    })
    .refused(1, &["no tensor", norm]);
    with_weights(|header, data| {
        let at = data.len();
        data.extend(1.0f32.to_le_bytes());
        header.insert(
            "model.extra.weight".to_owned(),
            json!({ "dtype": "F32", "shape": [1], "data_offsets": [at, at + 4] }),
        );
    })
    .refused(1, &["model.extra.weight", "not part of"]);
}

#[test]
fn weights_that_are_not_numbers_are_refused() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let ended = with_weights(|header, data| {
            let start = header["model.norm.weight"]["data_offsets"][0].as_u64().expect("an offset") as usize;
            data[start + 20..start + 24].copy_from_slice(&value.to_le_bytes());
        });
        ended.refused(1, &["model.norm.weight", "element 5", &value.to_string()]);
    }
}

#[test]
fn unsupported_configurations_are_named() {
    with_config("model_type", json!("mamba")).refused(1, &["model_type", "mamba", "llama, qwen2, qwen3"]);
    with_config("hidden_act", json!("gelu")).refused(1, &["hidden_act", "gelu", "silu"]);
    with_config("quantization_config", json!({ "quant_method": "gptq" })).refused(1, &["gptq"]);
    with_config("num_key_value_heads", json!(3)).refused(1, &["num_key_value_heads", "3"]);
    with_config("hidden_size", json!("wide")).refused(1, &["hidden_size", "wide"]);
    with_config("rope_parameters", json!({ "rope_type": "spiral", "rope_theta": 1e4 })).refused(1, &["spiral"]);
    let model = Model::copy(LLAMA);
    fs::write(model.file("config.json"), "{").expect("written");
    score(&model.path()).refused(1, &["config.json"]);
}

#[test]
fn a_damaged_adapter_is_refused() {
    let with = |change: &dyn Fn(&Model)| {
        let adapter = Model::copy("adapters/llama-all-linear");
        change(&adapter);
        arle(&["score", "--model", &fixture(LLAMA), "--tokens", "1,2", "--adapter", &adapter.path()])
    };
    with(&|_| {}).ok();
    let weights = "adapter_model.safetensors";
    with(&|adapter| fs::remove_file(adapter.file(weights)).expect("removed")).refused(1, &[weights]);
    with(&|adapter| adapter.edit(weights, |bytes| bytes.truncate(bytes.len() - 4))).refused(1, &[weights]);
    with(&|adapter| adapter.set("adapter_config.json", "use_dora", json!(true))).refused(1, &["use_dora"]);
    with(&|adapter| adapter.set("adapter_config.json", "peft_type", json!("IA3"))).refused(1, &["IA3"]);
    with(&|adapter| {
        adapter.edit_weights(weights, |header, _| {
            let (name, entry) = header
                .iter()
                .find(|(name, _)| *name != "__metadata__")
                .map(|(n, e)| (n.clone(), e.clone()))
                .expect("a tensor");
            header.remove(&name);
            header.insert(format!("{name}.strange"), entry);
        });
    })
    .refused(1, &["adapter"]);
    with(&|adapter| {
        adapter.edit_weights(weights, |_, data| data[..4].copy_from_slice(&f32::NAN.to_le_bytes()));
    })
    .refused(1, &["NaN"]);
}

#[test]
fn a_damaged_tokenizer_is_refused() {
    let model = Model::copy("tiny-chat");
    model.edit("tokenizer.json", |bytes| bytes.truncate(bytes.len() / 2));
    arle(&["score", "--model", &model.path(), "--text", "Hi"]).refused(1, &["tokenizer"]);
    let model = Model::copy("tiny-chat");
    fs::write(model.file("chat_template.jinja"), "{% for %}").expect("written");
    arle(&["generate", "--model", &model.path(), "--chat", "Hi"]).refused(1, &["template"]);
}

/// A GGUF file in the making; <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
struct Gguf {
    metadata: Vec<(String, Meta)>,
    tensors: Vec<GgufTensor>,
}

enum Meta {
    Text(String),
    Count(u32),
    Number(f32),
}

struct GgufTensor {
    name: String,
    /// The fastest dimension first.
    dims: Vec<u64>,
    /// Number of the format; 0 is F32.
    format: u32,
    data: Vec<u8>,
}

impl Gguf {
    /// The Qwen3 fixture, tensor by tensor.
    fn qwen3() -> Self {
        let folder = fixtures().join("models/qwen3-gqa-tied");
        let bytes = fs::read(folder.join(WEIGHTS)).expect("weights");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        let mut tensors: Vec<GgufTensor> = tensors
            .iter()
            .map(|(name, view)| {
                assert_eq!(view.dtype(), safetensors::Dtype::F32);
                let dims = view.shape().iter().rev().map(|&d| d as u64).collect();
                GgufTensor { name: gguf_name(name), dims, format: 0, data: view.data().to_vec() }
            })
            .collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let config = read_json(&folder.join("config.json"));
        let count = |key: &str| Meta::Count(config[key].as_u64().expect("a count") as u32);
        let metadata = [
            ("general.architecture", Meta::Text("qwen3".to_owned())),
            ("qwen3.attention.head_count", count("num_attention_heads")),
            ("qwen3.attention.head_count_kv", count("num_key_value_heads")),
            ("qwen3.attention.key_length", count("head_dim")),
            ("qwen3.attention.value_length", count("head_dim")),
            ("qwen3.attention.layer_norm_rms_epsilon", Meta::Number(1e-6)),
            ("qwen3.rope.freq_base", Meta::Number(1e6)),
            ("qwen3.embedding_length", count("hidden_size")),
            ("qwen3.feed_forward_length", count("intermediate_size")),
            ("qwen3.block_count", count("num_hidden_layers")),
            ("qwen3.context_length", count("max_position_embeddings")),
        ];
        Self { metadata: metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(), tensors }
    }

    fn set(&mut self, key: &str, value: Meta) {
        self.metadata.iter_mut().find(|(known, _)| known == key).expect("a known key").1 = value;
    }

    fn tensor(&mut self, name: &str) -> &mut GgufTensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("a known tensor")
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_text(&mut out, key);
            match value {
                Meta::Count(count) => out.extend([4u32.to_le_bytes(), count.to_le_bytes()].concat()),
                Meta::Number(number) => out.extend([6u32.to_le_bytes(), number.to_le_bytes()].concat()),
                Meta::Text(text) => {
                    out.extend(8u32.to_le_bytes());
                    put_text(&mut out, text);
                }
            }
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            put_text(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.format.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += tensor.data.len().next_multiple_of(32);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&tensor.data);
        }
        out
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn gguf_name(name: &str) -> String {
    let pairs = [
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// Scores with the file of `bytes`.
fn score_gguf(bytes: &[u8]) -> Ended {
    let folder = tempfile::tempdir().expect("a folder");
    let path: PathBuf = folder.path().join("model.gguf");
    fs::write(&path, bytes).expect("written");
    score(&path.display().to_string())
}

fn with_gguf(change: impl FnOnce(&mut Gguf)) -> Ended {
    let mut file = Gguf::qwen3();
    change(&mut file);
    score_gguf(&file.bytes())
}

#[test]
fn a_gguf_file_scores_like_the_safetensors_of_the_same_weights() {
    let (got, want) = (with_gguf(|_| {}).object(), score(&fixture("models/qwen3-gqa-tied")).object());
    assert_close(&got["logprobs"], &want["logprobs"]);
}

#[test]
fn truncated_and_corrupt_gguf_files_are_refused() {
    let whole = Gguf::qwen3().bytes();
    for keep in [0, 3, 20, 300, whole.len() / 2, whole.len() - 1] {
        score_gguf(&whole[..keep]).refused(1, &["model.gguf"]);
    }
    let with = |at: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        score_gguf(&bytes)
    };
    with(0, b'X').refused(1, &["model.gguf", "not a GGUF file"]);
    with(4, 9).refused(1, &["GGUF version", "9"]);
    with(14, 0xff).refused(1, &["model.gguf", "truncated or corrupt"]);
    with(31, 0x7f).refused(1, &["model.gguf", "truncated or corrupt"]);
}

#[test]
fn foreign_gguf_files_are_refused() {
    with_gguf(|file| file.set("general.architecture", Meta::Text("mamba".to_owned())))
        .refused(1, &["architecture", "mamba", "llama, qwen2, qwen3"]);
    // 16 is IQ2_XXS.
    with_gguf(|file| file.tensor("output_norm.weight").format = 16)
        .refused(1, &["16 of tensor output_norm.weight", "Q4_K"]);
    with_gguf(|file| file.tensor("output_norm.weight").name = "output_norm.strange".to_owned())
        .refused(1, &["output_norm.strange"]);
    with_gguf(|file| file.tensor("output_norm.weight").dims = vec![8, 4])
        .refused(1, &["model.norm.weight", "[4, 8]", "[32]"]);
    with_gguf(|file| file.tensors.retain(|tensor| tensor.name != "output_norm.weight"))
        .refused(1, &["no tensor", "model.norm.weight"]);
    with_gguf(|file| file.set("qwen3.block_count", Meta::Count(1))).refused(1, &["model.layers.1.", "not part of"]);
    with_gguf(|file| file.set("qwen3.block_count", Meta::Count(0))).refused(1, &["0", "at least 1"]);
    with_gguf(|file| file.metadata.retain(|(key, _)| key != "qwen3.embedding_length"))
        .refused(1, &["qwen3.embedding_length", "missing"]);
    with_gguf(|file| file.tensor("output_norm.weight").data[8..12].copy_from_slice(&f32::NAN.to_le_bytes()))
        .refused(1, &["model.norm.weight", "element 2", "NaN"]);
}
