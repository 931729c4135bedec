//! GGUF files against values of the `gguf` package, and what damaged files get.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::Error;
use runtime::config::{Family, ModelConfig};
use runtime::files::ModelFiles;
use runtime::weights::gguf::GgufFile;
use runtime::weights::{GgufWeights, SafetensorsWeights, WeightSource, check_finite};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf").join(name)
}

fn open(path: &Path) -> Result<GgufWeights, Error> {
    GgufWeights::new(Arc::new(GgufFile::open(path)?))
}

/// A copy of a fixture with some bytes changed.
fn changed(dir: &tempfile::TempDir, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = std::fs::read(fixture(name)).unwrap();
    change(&mut bytes);
    let path = dir.path().join("changed.gguf");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Position right behind the first occurrence of `needle`.
fn behind(bytes: &[u8], needle: &str) -> usize {
    bytes.windows(needle.len()).position(|w| w == needle.as_bytes()).unwrap() + needle.len()
}

#[test]
fn every_format_equals_the_gguf_package_bit_for_bit() {
    let ours = open(&fixture("formats.gguf")).unwrap();
    let expected = SafetensorsWeights::open(&fixture("formats.safetensors")).unwrap();
    assert_eq!(ours.tensors(), expected.tensors());
    for (name, shape) in expected.tensors() {
        let (got, want) = (ours.read(name).unwrap(), expected.read(name).unwrap());
        assert_eq!(want.len(), shape.iter().product::<usize>());
        assert!(got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}");
        let rows = ours.read_rows(name, 1..3).unwrap();
        let row_len = want.len() / shape[0];
        assert_eq!(rows, want[row_len..3 * row_len], "rows of {name}");
    }
}

#[test]
fn rows_and_names_outside_are_refused() {
    let weights = open(&fixture("formats.gguf")).unwrap();
    let name = "model.embed_tokens.weight";
    assert!(matches!(weights.read_rows(name, 3..6), Err(Error::RowsOutOfRange { start: 3, end: 6, rows: 5, .. })));
    assert!(
        matches!(weights.read("lm_head.weight"), Err(Error::MissingTensor { name, .. }) if name == "lm_head.weight")
    );
}

#[test]
fn configuration_comes_from_metadata() {
    let files = ModelFiles::open(&fixture("formats.gguf")).unwrap();
    let config = &files.config;
    assert_eq!(
        (config.family, config.hidden_size, config.intermediate_size, config.num_layers),
        (Family::Llama, 256, 8, 3)
    );
    assert_eq!((config.num_heads, config.num_kv_heads, config.head_dim, config.vocab_size), (2, 1, 4, 5));
    assert_eq!((config.rms_norm_eps, config.rope.theta, config.max_position_embeddings), (1e-5, 10_000.0, 64));
    assert!(config.tie_word_embeddings && !config.attention_bias);
    assert!(files.tokenizer.is_none() && files.tokenizer().is_err() && files.chat_template().is_err());
    assert_eq!(ModelConfig::from_hf(Path::new("config.json"), &files.hf_config, None).unwrap(), *config);
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["formats.gguf", "bpe-smollm.gguf"] {
        let path = changed(&dir, name, |_| ());
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        // The last tensor ends within 32 bytes of padding; a cut there loses nothing.
        let has_tensors = name == "formats.gguf";
        for cut in (0..len - 32).rev().step_by(7) {
            file.set_len(cut).unwrap();
            let opened = GgufFile::open(&path);
            assert!(opened.is_err() || !has_tensors && cut > len - 64, "{name} cut at {cut} of {len}");
        }
    }
}

#[test]
fn random_damage_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let original = std::fs::read(fixture("bpe-llama-bpe.gguf")).unwrap();
    let path = dir.path().join("damaged.gguf");
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut refused = 0;
    for _ in 0..1000 {
        let mut bytes = original.clone();
        for _ in 0..1 + next() % 4 {
            let at = next() % bytes.len();
            bytes[at] = [next() as u8, 0, 0xFF][next() % 3];
        }
        std::fs::write(&path, bytes).unwrap();
        if ModelFiles::open(&path).is_err() {
            refused += 1;
        }
    }
    assert!(refused > 0);
}

#[test]
fn what_is_not_supported_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = |change: fn(&mut Vec<u8>)| {
        let path = changed(&dir, "formats.gguf", change);
        ModelFiles::open(&path).err().unwrap().to_string()
    };
    type Change = fn(&mut Vec<u8>);
    let cases: [(Change, &str); 7] = [
        (|b| b[0] = b'X', "not a GGUF file"),
        (|b| b[4] = 1, "GGUF version \"1\""),
        (
            |b| {
                let at = behind(b, "general.architecture") + 12;
                b[at..at + 5].copy_from_slice(b"gemma");
            },
            "architecture \"gemma\"",
        ),
        (
            |b| {
                // Behind the name: rank, two dimensions, then the format.
                let at = behind(b, "blk.0.attn_q.weight") + 4 + 16;
                b[at] = 19;
            },
            "format number \"19 of tensor blk.0.attn_q.weight\"",
        ),
        (
            |b| {
                let at = behind(b, "blk.1.ffn_up.weigh");
                b[at] = b's';
            },
            "tensor \"blk.1.ffn_up.weighs\"",
        ),
        (
            |b| {
                let at = behind(b, "blk.2.ffn_up.weight") + 4 + 16 + 4 + 5;
                b[at] = 1;
            },
            "tensor \"blk.2.ffn_up.weight\" needs",
        ),
        (
            |b| {
                let at = behind(b, "llama.embedding_lengt");
                b[at] = b'x';
            },
            "\"llama.embedding_length\" is missing",
        ),
    ];
    for (change, want) in cases {
        let got = error(change);
        assert!(got.contains(want) && got.contains("changed.gguf"), "{got}");
    }
}

#[test]
fn a_nan_is_named_with_its_place() {
    let mut values = vec![0.0; 100];
    check_finite("w", &values).unwrap();
    values[42] = f32::NAN;
    let error = check_finite("model.norm.weight", &values).unwrap_err().to_string();
    assert!(error.contains("model.norm.weight") && error.contains("42") && error.contains("NaN"), "{error}");
}

#[test]
fn formats_of_the_fixture_are_all_formats() {
    let bytes = std::fs::read(fixture("formats.gguf")).unwrap();
    let mut seen = BTreeSet::new();
    for layer in 0..3 {
        for part in ["attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "attn_norm"] {
            let at = behind(&bytes, &format!("blk.{layer}.{part}.weight"));
            let rank = bytes[at] as usize;
            seen.insert(bytes[at + 4 + rank * 8]);
        }
    }
    assert_eq!(seen, BTreeSet::from([0, 1, 30, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14]));
}
