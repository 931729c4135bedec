//! safetensors files: formats, shards, and what damaged files get.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use runtime::weights::{SafetensorsWeights, WeightSource};

/// Writes a file with the given header entries `(name, dtype, shape, bytes)`.
fn write(path: &Path, tensors: &[(&str, &str, &[usize], &[u8])]) {
    let (mut header, mut data) = (String::from("{\"__metadata__\":{\"format\":\"pt\"}"), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend_from_slice(bytes);
        write!(
            header,
            ",\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{start},{}]}}",
            data.len()
        )
        .unwrap();
    }
    header.push('}');
    write_raw(path, &header, &data);
}

fn write_raw(path: &Path, header: &str, data: &[u8]) {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    std::fs::write(path, file).unwrap();
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn error(path: &Path) -> String {
    SafetensorsWeights::open(path).err().unwrap().to_string()
}

#[test]
fn three_formats_and_rows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let f16: Vec<u8> = [1.5f32, -2.0, 0.25].iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
    let bf16: Vec<u8> = [1.0f32, -3.0].iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect();
    let matrix: Vec<f32> = (0..6).map(|v| v as f32).collect();
    // An odd header length leaves the data unaligned.
    write(
        &path,
        &[
            ("a", "F32", &[3, 2], &floats(&matrix)),
            ("b", "F16", &[3], &f16),
            ("cc", "BF16", &[2], &bf16),
            ("i", "I64", &[1], &[0; 8]),
        ],
    );
    let weights = SafetensorsWeights::open(dir.path()).unwrap();
    assert_eq!(weights.read("a").unwrap(), matrix);
    assert_eq!(weights.read_rows("a", 1..3).unwrap(), matrix[2..]);
    assert_eq!(weights.read("b").unwrap(), [1.5, -2.0, 0.25]);
    assert_eq!(weights.read_rows("b", 2..3).unwrap(), [0.25]);
    assert_eq!(weights.read("cc").unwrap(), [1.0, -3.0]);
    let refused = weights.read("i").unwrap_err().to_string();
    assert!(refused.contains("I64 of tensor i"), "{refused}");
}

#[test]
fn large_tensors_are_read_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let values: Vec<f32> = (0..300_000).map(|v| v as f32).collect();
    write(&path, &[("w", "F32", &[300, 1000], &floats(&values))]);
    assert_eq!(SafetensorsWeights::open(&path).unwrap().read("w").unwrap(), values);
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write(&path, &[("first.weight", "F32", &[40], &[0; 160]), ("second.weight", "F32", &[40], &[0; 160])]);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    for cut in (0..len).rev().step_by(7) {
        file.set_len(cut).unwrap();
        let message = error(dir.path());
        assert!(message.contains("model.safetensors"), "cut at {cut}: {message}");
        if len - cut < 160 {
            assert!(message.contains("second.weight") && message.contains("truncated"), "{message}");
        }
    }
}

#[test]
fn corrupt_headers_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let entry = |shape: &str, offsets: &str| {
        format!("{{\"w\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}")
    };
    let cases = [
        ("not json".to_owned(), "header"),
        ("{\"w\":{\"dtype\":\"F32\"}}".to_owned(), "tensor \"w\""),
        (entry("[2]", "[8,0]"), "tensor \"w\""),
        (entry("[3]", "[0,8]"), "shape [3]"),
        (entry("[4611686018427387904,4]", "[0,8]"), "tensor \"w\""),
        (entry("[1]", "[4,8]"), "starts at byte"),
        (entry("[1]", "[0,4]"), "end at byte"),
        (entry("[-1]", "[0,8]"), "tensor \"w\""),
    ];
    for (header, want) in cases {
        write_raw(&path, &header, &[0; 8]);
        let message = error(&path);
        assert!(message.contains(want) && message.contains("model.safetensors"), "{header}: {message}");
    }
    std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    assert!(error(&path).contains("18446744073709551615"));
}

fn sharded(index: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("one.safetensors"), &[("a", "F32", &[1], &floats(&[1.0]))]);
    write(&dir.path().join("two.safetensors"), &[("b", "F32", &[2], &floats(&[2.0, 3.0]))]);
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let path = dir.path().to_owned();
    (dir, path)
}

#[test]
fn shards_are_joined_by_the_index() {
    let (_dir, path) = sharded(r#"{"metadata":{},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#);
    let weights = SafetensorsWeights::open(&path).unwrap();
    assert_eq!((weights.read("a").unwrap(), weights.read("b").unwrap()), (vec![1.0], vec![2.0, 3.0]));
    assert_eq!(weights.tensors().len(), 2);
}

#[test]
fn index_errors_name_file_and_tensor() {
    let cases = [
        (r#"{"weight_map":{"a":"one.safetensors","b":"three.safetensors"}}"#, vec!["three.safetensors", "missing"]),
        (r#"{"weight_map":{"a":"one.safetensors","c":"two.safetensors"}}"#, vec!["two.safetensors", "\"c\""]),
        (r#"{"weight_map":{"a":"../one.safetensors"}}"#, vec!["../one.safetensors", "plain file name"]),
        (r#"{"weights":{}}"#, vec!["weight_map"]),
        ("{", vec!["model.safetensors.index.json"]),
    ];
    for (index, wants) in cases {
        let (_dir, path) = sharded(index);
        let message = error(&path);
        assert!(wants.iter().all(|want| message.contains(want)), "{index}: {message}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(error(empty.path()).contains("model.safetensors"));
}
