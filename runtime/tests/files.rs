//! Whole model directories, as transformers saves them.

use std::path::{Path, PathBuf};

use runtime::Error;
use runtime::files::{GenerationDefaults, ModelFiles};
use runtime::weights::check_finite;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models")
}

#[test]
fn every_saved_model_opens_and_reads() {
    let mut count = 0;
    for entry in std::fs::read_dir(models()).unwrap() {
        let path = entry.unwrap().path();
        if !path.join("config.json").is_file() {
            continue;
        }
        let files = ModelFiles::open(&path).unwrap();
        let embedding = files.weights.shape("model.embed_tokens.weight").unwrap();
        assert_eq!(embedding, [files.config.vocab_size, files.config.hidden_size], "{}", path.display());
        for (name, shape) in files.weights.tensors() {
            let values = files.weights.read(name).unwrap();
            assert_eq!(values.len(), shape.iter().product::<usize>());
            check_finite(name, &values).unwrap();
        }
        assert_eq!(files.weights.tensors().contains_key("lm_head.weight"), !files.config.tie_word_embeddings);
        count += 1;
    }
    assert!(count >= 5, "{count} models");
}

/// A copy of one fixture model.
fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(models().join("llama-gqa-tied")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

#[test]
fn sampling_defaults_are_read_or_refused() {
    let dir = copy();
    let path = dir.path().join("generation_config.json");
    std::fs::write(&path, r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": 3}"#)
        .unwrap();
    let files = ModelFiles::open(dir.path()).unwrap();
    let expected = GenerationDefaults {
        do_sample: Some(true),
        temperature: Some(0.6),
        top_p: Some(0.95),
        top_k: Some(20),
        min_p: None,
        repetition_penalty: None,
    };
    assert_eq!((files.generation, files.config.eos_token_ids), (expected, vec![3]));
    std::fs::write(&path, r#"{"top_k": "all"}"#).unwrap();
    assert!(matches!(ModelFiles::open(dir.path()), Err(Error::BadKey { key, .. }) if key == "top_k"));
}

#[test]
fn missing_and_broken_files_are_named() {
    let error = |path: &Path| ModelFiles::open(path).err().unwrap().to_string();
    assert!(error(Path::new("/no/such/model")).contains("/no/such/model"));
    let dir = copy();
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(error(dir.path()).contains("tokenizer.json"));
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(error(dir.path()).contains("config.json"));
    std::fs::write(dir.path().join("config.json"), "{").unwrap();
    assert!(error(dir.path()).contains("config.json"));
    std::fs::write(dir.path().join("text.gguf"), "hello").unwrap();
    assert!(error(&dir.path().join("text.gguf")).contains("not a GGUF file"));
}
