//! Adapters of one base share its scheduler, its KV memory and its steps, and each gives the bits that it gives alone.

use std::fs;
use std::path::{Path, PathBuf};

use autograd::Device;
use runtime::request::{
    EngineConfig, GenerateRequest, Generated, LogProbs, ModelId, RequestError, ScoreOutput, ScoreRequest, ScoreSequence,
};
use runtime::{Error, RuntimeHandle};
use serde_json::{Value, json};

use super::{engine, fixtures, greedy, start};

/// Bytes of a page of the model.
const PAGE_BYTES: usize = 6144;
/// Prompts of a model.
const PROMPTS: u32 = 7;

/// The fixture's adapter, and one that differs from it by its scale.
fn adapters(folder: &Path) -> [PathBuf; 2] {
    let first = fixtures().join("adapters/llama-all-linear");
    let second = folder.join("scaled");
    fs::create_dir(&second).expect("a folder");
    fs::copy(first.join("adapter_model.safetensors"), second.join("adapter_model.safetensors")).expect("copied");
    let config = fs::read(first.join("adapter_config.json")).expect("PEFT wrote it");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    config["lora_alpha"] = json!(config["lora_alpha"].as_f64().expect("a number") * -1.5);
    fs::write(second.join("adapter_config.json"), config.to_string()).expect("written");
    [first, second]
}

fn request(model: ModelId, number: u32) -> GenerateRequest {
    // The same prompts for every model, so that a prefix of another one would be found.
    let prompt: Vec<u32> = (0..20 + 9 * number).map(|i| (i * 7 + 3) % 90).collect();
    let mut request = greedy(&prompt, 40 + number as usize, u64::from(number));
    request.model = model;
    request.params.temperature = 0.9;
    request
}

/// Tokens and the bits of their log-probabilities.
fn trace(generated: &Generated) -> Vec<(u32, u64)> {
    generated.tokens.iter().map(|t| (t.token, t.logprob.to_bits())).collect()
}

fn scores(handle: &RuntimeHandle, model: ModelId) -> Vec<f64> {
    let tokens = (0..70).map(|i| (i * 11 + 5) % 90).collect();
    let sequences = vec![ScoreSequence::every_token(tokens)];
    let output = ScoreOutput::LogProbs(LogProbs::default());
    handle
        .score(ScoreRequest { model, sequences, output, token_ids: None })
        .expect("scored")
        .sequences
        .remove(0)
        .logprobs
}

#[test]
fn adapters_in_one_batch_give_the_bits_that_they_give_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let [first, second] = adapters(folder.path());
    let base = fixtures().join("models/llama-gqa-tied");
    let kinds = [None, Some(first.clone()), Some(second.clone())];
    let alone: Vec<_> = kinds
        .iter()
        .map(|adapter| {
            let handle = start(&base, adapter.clone(), Device::Cpu, engine(64, 400));
            let generate = |number| handle.generate(request(ModelId::STUDENT, number)).and_then(|g| g.collect());
            let traces: Vec<_> = (0..PROMPTS).map(|number| trace(&generate(number).expect("generates"))).collect();
            (traces, scores(&handle, ModelId::STUDENT))
        })
        .collect();
    assert!(alone[0].0 != alone[1].0 && alone[1].0 != alone[2].0, "the adapters change tokens");
    for (async_scheduling, pages) in [(false, 400), (true, 400), (true, 26)] {
        let config = EngineConfig { async_scheduling, kv_bytes: pages * PAGE_BYTES, ..engine(48, 0) };
        let handle = start(&base, None, Device::Cpu, config);
        let added = [&first, &second].map(|path| handle.add_adapter(ModelId::STUDENT, path).expect("loaded"));
        let models = [ModelId::STUDENT, added[0], added[1]];
        let before = handle.stats().expect("counters").models[&ModelId::STUDENT].steps.launched;
        let mut running = Vec::new();
        for number in 0..PROMPTS {
            running.extend(models.map(|model| handle.generate(request(model, number)).expect("starts")));
        }
        let scored = models.map(|model| scores(&handle, model));
        let traces: Vec<_> = running.into_iter().map(|g| trace(&g.collect().expect("generates"))).collect();
        for (kind, (want, want_scores)) in alone.iter().enumerate() {
            let got: Vec<_> = traces.iter().skip(kind).step_by(models.len()).cloned().collect();
            assert_eq!(&got, want, "model {kind}, async {async_scheduling}");
            assert_eq!(&scored[kind], want_scores, "scores of model {kind}");
        }
        let stats = handle.stats().expect("counters").models[&ModelId::STUDENT];
        if pages == 400 {
            // 21 generations of at least 40 tokens and 3 scores.
            assert!(stats.steps.launched - before < 100, "steps are shared: {stats:?}");
        } else {
            assert!(stats.scheduler.preemptions > 0, "{stats:?}");
        }
    }
}

#[test]
fn an_adapter_costs_no_pages_and_goes_with_its_prefixes() {
    let base = fixtures().join("models/llama-gqa-tied");
    let folder = fixtures().join("adapters/llama-all-linear");
    let handle = start(&base, None, Device::Cpu, engine(64, 40));
    let scheduler = || handle.stats().expect("counters").models[&ModelId::STUDENT].scheduler;
    let pages = scheduler().total_pages;
    let first = handle.add_adapter(ModelId::STUDENT, &folder).expect("loaded");
    let second = handle.add_adapter(ModelId::STUDENT, &folder).expect("loaded");
    assert_eq!(scheduler().total_pages, pages);
    let mut running = handle.generate(request(first, 3)).expect("starts");
    running.next_event();
    let error = handle.remove_adapter(first).expect_err("in use");
    assert!(matches!(error, Error::Request(RequestError::AdapterInUse { model }) if model == first), "{error}");
    handle.remove_adapter(second).expect("not in use");
    running.collect().expect("generates");
    assert!(scheduler().cached_pages > 0);
    handle.remove_adapter(first).expect("not in use any more");
    assert_eq!(scheduler().free_pages, pages);
    let error = handle.generate(request(first, 0)).and_then(|g| g.collect()).expect_err("gone");
    assert!(matches!(error, Error::Request(RequestError::NoModel { .. })), "{error}");
    let third = handle.add_adapter(ModelId::STUDENT, &folder).expect("loaded");
    assert!(third != first && third != second, "an id is given once");
    let error = handle.remove_adapter(ModelId::STUDENT).expect_err("no adapter");
    assert!(matches!(error, Error::Request(RequestError::NotAnAdapter { .. })), "{error}");
}
