//! Tiny random checkpoints against Hugging Face transformers and PEFT (fixtures made by `scripts/`), and every way of
//! computing a sequence against every other.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use autograd::Device;
use runtime::RuntimeHandle;
use runtime::config::Family;
use runtime::files::ModelFiles;
use runtime::request::{
    EngineConfig, GenerateRequest, Generated, LoraConfig, RuntimeSpec, ScoreRequest, Slot, SlotSpec, Training,
};
use runtime::sampler::SamplingParams;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn models() -> Vec<PathBuf> {
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

fn engine(token_budget: usize, pages: usize) -> EngineConfig {
    let kv_bytes = pages * 64 * 1024;
    EngineConfig { token_budget, max_running: 16, max_waiting: 64, kv_bytes, prefix_cache: true, overlap: false }
}

fn start(dir: &Path, adapter: Option<PathBuf>, device: Device, engine: EngineConfig) -> RuntimeHandle {
    let files = Arc::new(ModelFiles::open(dir).expect("the fixture opens"));
    let student = SlotSpec { files, layers: None, adapter };
    let spec = RuntimeSpec { device, student, teacher: None, training: None, engine };
    RuntimeHandle::start(&spec, &|_, _| {}).expect("the fixture loads")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|v| v.as_u64().expect("an id") as u32).collect()
}

fn logprobs(handle: &RuntimeHandle, tokens: &[u32]) -> Vec<f64> {
    let request = ScoreRequest { slot: Slot::Student, tokens: tokens.to_vec(), top: 0 };
    handle.score(request).expect("scores").logprobs.into_iter().flatten().collect()
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
    for dir in models() {
        let files = Arc::new(ModelFiles::open(&dir).expect("the fixture opens"));
        let weights = Arc::clone(&files.weights);
        let student = SlotSpec { files, layers: None, adapter: None };
        let training = Some(Training::Full { gradient_checkpointing: false });
        let spec = RuntimeSpec { device: Device::Cpu, student, teacher: None, training, engine: engine(64, 8) };
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
        models().iter().map(|dir| ModelFiles::open(dir).expect("the fixture opens").config.family).collect();
    for family in Family::ALL {
        assert!(families.contains(&family), "no checkpoint of {family:?} under tests/fixtures/models");
    }
}

#[test]
fn log_probabilities_equal_transformers() {
    for dir in models() {
        let handle = start(&dir, None, Device::Cpu, engine(64, 64));
        check_logprobs(&handle, &expected(&dir), &dir.display().to_string());
    }
}

#[test]
fn the_portable_device_equals_transformers_too() {
    for dir in models() {
        let handle = start(&dir, None, Device::Portable, engine(64, 64));
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
    GenerateRequest { slot: Slot::Student, prompt: prompt.to_vec(), params, index, text: false }
}

fn tokens(generated: &Generated) -> Vec<u32> {
    generated.tokens.iter().map(|t| t.token).collect()
}

#[test]
fn greedy_continuations_equal_transformers() {
    for dir in models() {
        let expected = expected(&dir);
        for device in [Device::Cpu, Device::Portable] {
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

/// Sampled tokens and the exact bits of their log-probabilities.
fn trace(generated: &Generated) -> Vec<(u32, u64)> {
    generated.tokens.iter().map(|t| (t.token, t.logprob.to_bits())).collect()
}

fn sampled(prompt: &[u32], max_tokens: usize, index: u64) -> GenerateRequest {
    let mut request = greedy(prompt, max_tokens, index);
    request.params.temperature = 1.0;
    request.params.seed = 11;
    request
}

fn prompts() -> Vec<Vec<u32>> {
    let shared: Vec<u32> = (0..35).map(|i| (i * 7 + 3) % 90).collect();
    let mut all: Vec<Vec<u32>> = (1..8).map(|n| (0..n * 5).map(|i| (i * 13 + n) % 90).collect()).collect();
    all.push(shared.clone());
    all.push(shared.iter().copied().chain([5, 6, 7]).collect());
    all
}

fn run_all(handle: &RuntimeHandle, new: usize) -> Vec<Vec<(u32, u64)>> {
    let running: Vec<_> = prompts()
        .iter()
        .enumerate()
        .map(|(i, p)| handle.generate(sampled(p, new, i as u64)).expect("starts"))
        .collect();
    running.into_iter().map(|g| trace(&g.collect().expect("generates"))).collect()
}

/// One sequence alone, in a batch, in chunks, after a prefix hit, and preempted gives the same bits.
#[test]
fn every_schedule_gives_the_same_bits() {
    for name in ["llama-gqa-tied", "qwen3-gqa-tied", "qwen2-sliding"] {
        let dir = fixtures().join("models").join(name);
        let new = 20;
        let alone: Vec<_> = prompts()
            .iter()
            .enumerate()
            .map(|(i, p)| {
                let handle = start(&dir, None, Device::Cpu, engine(64, 64));
                trace(&handle.generate(sampled(p, new, i as u64)).expect("starts").collect().expect("generates"))
            })
            .collect();
        for budget in [1, 5, 64, 512] {
            let handle = start(&dir, None, Device::Cpu, engine(budget, 64));
            assert_eq!(run_all(&handle, new), alone, "{name} in a batch with a budget of {budget}");
            assert_eq!(run_all(&handle, new), alone, "{name} after a prefix hit");
            let stats = handle.stats().expect("answers").student;
            assert!(stats.prefix_hit_tokens > 0, "{stats:?}");
        }
    }
}

#[test]
fn preempted_sequences_give_the_same_bits() {
    let dir = fixtures().join("models/llama-gqa-tied");
    let roomy = start(&dir, None, Device::Cpu, engine(64, 64));
    let want = run_all(&roomy, 40);
    let mut config = engine(64, 64);
    config.prefix_cache = false;
    // Page bytes of this model times a pool that holds about two of the nine sequences.
    config.kv_bytes = 2 * 2 * 2 * 16 * 8 * 4 * 14;
    let tight = start(&dir, None, Device::Cpu, config);
    assert_eq!(run_all(&tight, 40), want);
    let stats = tight.stats().expect("answers").student;
    assert!(stats.preemptions > 0, "the pool was not tight: {stats:?}");
}

/// The sampler's log-probabilities are the scorer's (and so the trainer's), bit for bit up to the last rounding of the
/// normalizer, which the scorer forms in f64.
#[test]
fn sampler_and_scorer_agree() {
    let dir = fixtures().join("models/qwen3-gqa-tied");
    let handle = start(&dir, None, Device::Cpu, engine(64, 64));
    for (i, prompt) in prompts().iter().enumerate() {
        let generated = handle.generate(sampled(prompt, 25, i as u64)).expect("starts").collect().expect("generates");
        let all: Vec<u32> = prompt.iter().copied().chain(tokens(&generated)).collect();
        let scored = logprobs(&handle, &all);
        let sampled: Vec<f64> = generated.tokens.iter().map(|t| t.logprob).collect();
        assert_close(&sampled, &scored[prompt.len() - 1..], 1e-6, "sampler against scorer");
    }
}

#[test]
fn a_fresh_adapter_changes_nothing() {
    let dir = fixtures().join("models/llama-gqa-tied");
    let plain = start(&dir, None, Device::Cpu, engine(64, 64));
    let files = Arc::new(ModelFiles::open(&dir).expect("opens"));
    let lora = LoraConfig {
        r: 4,
        alpha: 8.0,
        dropout: 0.0,
        rslora: false,
        target_modules: vec!["all-linear".to_owned()],
        rank_pattern: Default::default(),
        alpha_pattern: Default::default(),
        merge_for_requests: false,
        seed: 1,
        gradient_checkpointing: false,
    };
    let spec = RuntimeSpec {
        device: Device::Cpu,
        student: SlotSpec { files, layers: None, adapter: None },
        teacher: None,
        training: Some(Training::Lora(lora)),
        engine: engine(64, 64),
    };
    let trained = RuntimeHandle::start(&spec, &|_, _| {}).expect("starts");
    let prompt = prompts().pop().expect("there are prompts");
    assert_eq!(logprobs(&trained, &prompt), logprobs(&plain, &prompt));
}
