//! Tiny random checkpoints against Hugging Face transformers and PEFT (fixtures made by `scripts/`), and every way of
//! computing a sequence against every other (`schedules`), on the CPU and, where there is one, on a GPU.

mod adapters;
mod continuations;
mod models;
mod orders;
mod schedules;
mod scores;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use autograd::Device;
use runtime::RuntimeHandle;
use runtime::config::Family;
use runtime::files::ModelFiles;
use runtime::request::{
    CompletionText, EngineConfig, GenerateRequest, Generated, LogProbs, LoraConfig, ModelId, ModelSpec, Offload,
    RuntimeSpec, ScoreOutput, ScoreRequest, ScoreSequence, SequenceScores, Trainable, Training,
};
use runtime::sampler::SamplingParams;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn fixture_models() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixtures().join("models")).expect("fixtures are committed");
    let mut dirs: Vec<PathBuf> = entries.map(|e| e.expect("readable").path()).collect();
    dirs.sort();
    assert!(dirs.len() >= 10, "only {} model fixtures", dirs.len());
    dirs
}

fn expected(dir: &Path) -> Value {
    let text = std::fs::read(dir.join("expected.json")).expect("every fixture has expectations");
    serde_json::from_slice(&text).expect("expectations are JSON")
}

/// Limits with `pages` of the tests' models, generously. The executor gets orders as other ranks do, as bytes.
fn engine(token_budget: usize, pages: usize) -> EngineConfig {
    EngineConfig {
        token_budget,
        kv_bytes: pages * 64 * 1024,
        encode_orders: true,
        ..EngineConfig::for_device(Device::Cpu)
    }
}

fn training(trainable: Trainable) -> Training {
    Training { trainable, recomputed_layers: 0, offload: Offload::default(), teacher_generates: true }
}

fn start(dir: &Path, adapter: Option<PathBuf>, device: Device, engine: EngineConfig) -> RuntimeHandle {
    let files = Arc::new(ModelFiles::open(dir).expect("the fixture opens"));
    let model = ModelSpec { files, layers: None, adapter };
    let spec = RuntimeSpec { engine, ..RuntimeSpec::for_device(device, model) };
    RuntimeHandle::start(&spec, &|_, _| {}).expect("the fixture loads")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|v| v.as_u64().expect("an id") as u32).collect()
}

/// Of every token but the first, from logits on the host.
fn scores(handle: &RuntimeHandle, tokens: &[u32], output: LogProbs) -> SequenceScores {
    let sequences = vec![ScoreSequence::every_token(tokens.to_vec())];
    let output = ScoreOutput::LogProbs(output);
    let request = ScoreRequest { model: ModelId::STUDENT, sequences, output, token_ids: None };
    handle.score(request).expect("scores").sequences.remove(0)
}

fn logprobs(handle: &RuntimeHandle, tokens: &[u32]) -> Vec<f64> {
    scores(handle, tokens, LogProbs::default()).logprobs
}

/// Relative to the larger of 1 and the value, so that log-probabilities near 0 are compared absolutely.
fn assert_close(got: &[f64], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * w.abs().max(1.0), "{what} at {i}: {g}, expected {w}");
    }
}

fn wanted_logprobs(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().filter_map(Value::as_f64).collect()
}

fn check_logprobs(handle: &RuntimeHandle, expected: &Value, what: &str) {
    let sequences = expected["tokens"].as_array().expect("sequences");
    for (tokens, want) in sequences.iter().zip(expected["logprobs"].as_array().expect("one list per sequence")) {
        assert_close(&logprobs(handle, &ids(tokens)), &wanted_logprobs(want), 1e-4, what);
    }
}

#[test]
fn exported_tensors_go_by_their_own_names() {
    for dir in fixture_models() {
        let files = Arc::new(ModelFiles::open(&dir).expect("the fixture opens"));
        let weights = Arc::clone(&files.weights);
        let (training, engine) = (Some(training(Trainable::Full)), engine(64, 8));
        let spec = RuntimeSpec { training, engine, ..RuntimeSpec::for_device(Device::Cpu, ModelSpec::new(files)) };
        let handle = RuntimeHandle::start(&spec, &|_, _| {}).expect("the fixture loads");
        for tensor in handle.export_state().expect("a state").weights {
            assert!(
                tensor.values == weights.read(&tensor.name).expect("in the file"),
                "{}: {}",
                dir.display(),
                tensor.name
            );
        }
    }
}

#[test]
fn every_family_has_a_fixture() {
    let families: Vec<Family> =
        fixture_models().iter().map(|dir| ModelFiles::open(dir).expect("the fixture opens").config.family).collect();
    for family in Family::ALL {
        assert!(families.contains(&family), "no checkpoint of {family:?} under tests/fixtures/models");
    }
}

#[test]
fn log_probabilities_equal_transformers() {
    for dir in fixture_models() {
        let handle = start(&dir, None, Device::Cpu, engine(64, 64));
        check_logprobs(&handle, &expected(&dir), &dir.display().to_string());
    }
}

#[test]
fn the_reference_device_equals_transformers_too() {
    for dir in fixture_models() {
        let handle = start(&dir, None, Device::Reference, engine(64, 64));
        check_logprobs(&handle, &expected(&dir), &dir.display().to_string());
    }
}

#[test]
fn adapters_equal_peft() {
    let mut seen = 0;
    for entry in std::fs::read_dir(fixtures().join("adapters")).expect("fixtures are committed") {
        let adapter = entry.expect("readable").path();
        let text = std::fs::read(adapter.join("adapter_config.json")).expect("PEFT wrote it");
        let config: Value = serde_json::from_slice(&text).expect("JSON");
        let base = fixtures().join("models").join(config["base_model_name_or_path"].as_str().expect("a name"));
        let handle = start(&base, Some(adapter.clone()), Device::Cpu, engine(64, 64));
        check_logprobs(&handle, &expected(&adapter), &adapter.display().to_string());
        seen += 1;
    }
    assert_eq!(seen, 2);
}

fn greedy(prompt: &[u32], max_tokens: usize, index: u64) -> GenerateRequest {
    let params = SamplingParams { temperature: 0.0, max_tokens, ignore_eos: true, ..SamplingParams::default() };
    GenerateRequest { model: ModelId::STUDENT, prompt: prompt.to_vec(), params, index, text: CompletionText::None }
}

fn tokens(generated: &Generated) -> Vec<u32> {
    generated.tokens.iter().map(|t| t.token).collect()
}

#[test]
fn greedy_continuations_equal_transformers() {
    for dir in fixture_models() {
        let expected = expected(&dir);
        for device in [Device::Cpu, Device::Reference] {
            let handle = start(&dir, None, device, engine(64, 64));
            let sequences = expected["tokens"].as_array().expect("sequences");
            for (prompt, want) in sequences.iter().zip(expected["greedy"].as_array().expect("continuations")) {
                let want = ids(want);
                let generated = handle.generate(greedy(&ids(prompt), want.len(), 0)).and_then(|g| g.collect());
                assert_eq!(tokens(&generated.expect("generates")), want, "{} on {device}", dir.display());
            }
        }
    }
}

/// An adapter of rank `r` on all projections.
fn lora(r: usize) -> LoraConfig {
    LoraConfig {
        r,
        alpha: 8.0,
        dropout: 0.0,
        rslora: false,
        target_modules: vec!["all-linear".to_owned()],
        rank_pattern: Default::default(),
        alpha_pattern: Default::default(),
        merge_for_requests: false,
        seed: 1,
    }
}

#[test]
fn a_fresh_adapter_changes_nothing() {
    let dir = fixtures().join("models/llama-gqa-tied");
    let plain = start(&dir, None, Device::Cpu, engine(64, 64));
    let files = Arc::new(ModelFiles::open(&dir).expect("opens"));
    let lora = lora(4);
    let spec = RuntimeSpec {
        training: Some(training(Trainable::Lora(lora))),
        engine: engine(64, 64),
        ..RuntimeSpec::for_device(Device::Cpu, ModelSpec::new(files))
    };
    let trained = RuntimeHandle::start(&spec, &|_, _| {}).expect("starts");
    let prompt: Vec<u32> = (0..38).map(|i| (i * 7 + 3) % 90).collect();
    assert_eq!(logprobs(&trained, &prompt), logprobs(&plain, &prompt));
}
