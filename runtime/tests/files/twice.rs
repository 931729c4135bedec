//! Folders that offer their weights twice, or otherwise than their configuration says.

use std::fs;
use std::path::Path;

use runtime::files::ModelFiles;
use serde_json::{Value, json};

use crate::{copy, models};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Copies `names` of the sharded fixture into a copy of the single one, which has other values.
fn with_shards(names: &[&str]) -> tempfile::TempDir {
    let dir = copy();
    for name in names {
        fs::copy(models().join("llama-sharded").join(name), dir.path().join(name)).unwrap();
    }
    dir
}

fn first_value(path: &Path) -> f32 {
    ModelFiles::open(path).unwrap().weights.read(EMBEDDING).unwrap()[0]
}

#[test]
fn a_single_file_comes_before_an_index_that_was_left() {
    let dir = with_shards(&["model.safetensors.index.json"]);
    assert_eq!(first_value(dir.path()), first_value(copy().path()));
    // Other formats and other tools' files beside it are not read, as transformers does not read them.
    for name in ["pytorch_model.bin", "consolidated.safetensors", "model.gguf", "adapter_model.safetensors"] {
        fs::write(dir.path().join(name), "other weights").unwrap();
    }
    assert_eq!(first_value(dir.path()), first_value(copy().path()));
}

#[test]
fn two_whole_sets_of_weights_are_refused() {
    let dir = with_shards(&["model.safetensors.index.json", "model-00002-of-00002.safetensors"]);
    let refused = ModelFiles::open(dir.path()).err().unwrap().to_string();
    for part in ["model.safetensors and", "model.safetensors.index.json", "model-00002-of-00002.safetensors"] {
        assert!(refused.contains(part), "{refused}");
    }
}

#[test]
fn an_index_and_its_shards_have_to_name_the_same_tensors() {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(models().join("llama-sharded")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let removed = index["weight_map"].as_object_mut().unwrap().shift_remove("model.norm.weight");
    assert!(removed.is_some());
    fs::write(&path, index.to_string()).unwrap();
    let refused = ModelFiles::open(dir.path()).err().unwrap().to_string();
    assert!(refused.contains("model.norm.weight") && refused.contains("out of date"), "{refused}");
}

#[test]
fn a_folder_without_weights_says_what_is_there() {
    for (name, word) in
        [("x.gguf", "x.gguf"), ("consolidated.safetensors", "convert"), ("pytorch_model.bin", "convert")]
    {
        let dir = copy();
        fs::rename(dir.path().join("model.safetensors"), dir.path().join(name)).unwrap();
        let refused = ModelFiles::open(dir.path()).err().unwrap().to_string();
        assert!(refused.contains(name) && refused.contains(word), "{refused}");
    }
}

/// A copy of the tied fixture whose file has a head: the embedding plus `more`; and without the embedding, if so wanted.
fn with_head(more: f32, embedding: bool) -> tempfile::TempDir {
    let dir = copy();
    let source = ModelFiles::open(dir.path()).unwrap().weights;
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut write = |name: &str, shape: &[usize], values: &[f32]| {
        let start = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        header.insert(name.to_owned(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    };
    for (name, shape) in source.tensors() {
        let values = source.read(name).unwrap();
        if name == EMBEDDING {
            write(HEAD, shape, &values.iter().map(|v| v + more).collect::<Vec<f32>>());
        }
        if name != EMBEDDING || embedding {
            write(name, shape, &values);
        }
    }
    let header = Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    fs::write(dir.path().join("model.safetensors"), file).unwrap();
    dir
}

#[test]
fn a_head_other_than_the_embedding_is_used_although_the_configuration_ties_them() {
    let dir = with_head(1.0, true);
    let files = ModelFiles::open(dir.path()).unwrap();
    assert!(!files.config.tie_word_embeddings);
    assert_eq!(files.hf_config["tie_word_embeddings"], json!(false));
    assert!(files.notes[0].contains("tie_word_embeddings") && files.notes[0].contains(HEAD), "{:?}", files.notes);

    let files = ModelFiles::open(with_head(0.0, true).path()).unwrap();
    assert!(files.config.tie_word_embeddings && files.notes.is_empty(), "the same values are tied");

    let dir = with_head(1.0, false);
    let files = ModelFiles::open(dir.path()).unwrap();
    assert!(files.config.tie_word_embeddings && !files.weights.tensors().contains_key(HEAD));
    assert_eq!(files.weights.read(EMBEDDING).unwrap()[0], first_value(copy().path()) + 1.0);
}
