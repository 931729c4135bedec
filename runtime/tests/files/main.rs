//! Whole model directories, as transformers saves them.

mod adapters;
mod damaged;
mod special_tokens;
mod twice;

use std::path::{Path, PathBuf};

use runtime::Error;
use runtime::files::{GenerationRules, ModelFiles};
use runtime::source::ModelSource;
use runtime::weights::check_finite;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn models() -> PathBuf {
    fixtures().join("models")
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
    let read = &files.generation;
    assert_eq!(
        (read.do_sample, read.temperature, read.top_p, read.top_k),
        (Some(true), Some(0.6), Some(0.95), Some(20))
    );
    assert_eq!((read.min_p, read.repetition_penalty), (None, None));
    assert_eq!((&read.rules, &files.config.eos_token_ids), (&GenerationRules::default(), &vec![3]));
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

#[test]
fn random_weights_have_the_shapes_of_the_configuration() {
    let config = models().join("qwen3-gqa-tied/config.json");
    let files = ModelFiles::random(&config).unwrap();
    let saved = ModelFiles::open(config.parent().unwrap()).unwrap();
    assert_eq!(files.weights.tensors(), saved.weights.tensors());
    assert!(files.tokenizer.is_none());

    let name = "model.embed_tokens.weight";
    let values = files.weights.read(name).unwrap();
    let width = files.config.hidden_size;
    assert_eq!(files.weights.read_rows(name, 3..5).unwrap(), values[3 * width..5 * width]);
    let other = files.weights.read("model.layers.0.mlp.gate_proj.weight").unwrap();
    assert_ne!(values[..100], other[..100]);
    let norm = files.weights.read("model.layers.1.self_attn.k_norm.weight").unwrap();
    assert!(norm.iter().all(|&v| v == 1.0));

    let count = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
    let deviation = (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count).sqrt();
    // Within five standard errors of both estimates.
    assert!(mean.abs() < 5.0 * 0.02 / count.sqrt(), "mean {mean}");
    assert!((deviation - 0.02).abs() < 5.0 * 0.02 / (2.0 * count).sqrt(), "deviation {deviation}");
}

#[test]
fn published_shapes_are_read() {
    for (name, parameters) in [("0.6b", 596_049_920), ("1.7b", 1_720_574_976), ("4b", 4_022_468_096_usize)] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../configs/models/qwen3-{name}.json"));
        let files = ModelFiles::random(&path).unwrap();
        let sizes = files.weights.tensors().values().map(|shape| shape.iter().product::<usize>());
        assert_eq!(sizes.sum::<usize>(), parameters, "{name}");
    }
}

#[test]
fn a_configuration_that_is_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |text: &str| {
        std::fs::write(dir.path().join("c.json"), text).unwrap();
        let source = format!("random:{}", dir.path().join("c.json").display());
        ModelSource::parse(&source).unwrap().open(&|_| ()).err().expect("refused").to_string()
    };
    assert!(refused("{").contains("c.json"));
    assert!(refused("{}").contains("model_type"));
    assert!(refused(r#"{"model_type": "mamba"}"#).contains("mamba"));
    let absent = ModelSource::parse("random:no/such.json").unwrap().open(&|_| ()).err().expect("refused").to_string();
    assert!(absent.contains("no/such.json"), "{absent}");
}
