//! Adapters of one base share its scheduler, its KV memory and its steps, and each gives the bits that it gives alone.

use std::fs;
use std::path::{Path, PathBuf};

use autograd::Device;
use runtime::files::ModelFiles;
use runtime::model::Adapter;
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

/// The fixture's adapter, of rank 4 on all projections; one that differs from it by its scale; and one of rank 2 on two
/// projections.
fn adapters(folder: &Path) -> [PathBuf; 3] {
    let first = fixtures().join("adapters/llama-all-linear");
    let config = fs::read(first.join("adapter_config.json")).expect("PEFT wrote it");
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    let changed = |name: &str, changes: &[(&str, Value)]| {
        let (dir, mut config) = (folder.join(name), config.clone());
        fs::create_dir(&dir).expect("a folder");
        changes.iter().for_each(|(key, value)| config[*key] = value.clone());
        fs::write(dir.join("adapter_config.json"), config.to_string()).expect("written");
        dir
    };
    let alpha = config["lora_alpha"].as_f64().expect("a number") * -1.5;
    let second = changed("scaled", &[("lora_alpha", json!(alpha))]);
    fs::copy(first.join("adapter_model.safetensors"), second.join("adapter_model.safetensors")).expect("copied");
    let third = changed("cut", &[("r", json!(2)), ("target_modules", json!(["v_proj", "down_proj"]))]);
    fs::write(third.join("adapter_model.safetensors"), cut(&first)).expect("written");
    [first, second, third]
}

/// The file of an adapter's first two ranks on two projections.
fn cut(adapter: &Path) -> Vec<u8> {
    let base = ModelFiles::open(&fixtures().join("models/llama-gqa-tied")).expect("the fixture opens");
    let adapter = Adapter::load(adapter, &base.config, Device::Cpu).expect("it loads");
    let (mut header, mut bytes) = (serde_json::Map::new(), vec![]);
    for (name, tensor) in adapter.named().filter(|(name, _)| name.contains("v_proj") || name.contains("down_proj")) {
        let (values, [rows, cols]) = (tensor.to_vec(), tensor.shape());
        let shape = if name.contains("lora_A") { [2, cols] } else { [rows, 2] };
        let start = bytes.len();
        for row in values.chunks(cols).take(shape[0]) {
            bytes.extend(row[..shape[1]].iter().flat_map(|v| (-4.0 * v).to_le_bytes()));
        }
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, bytes.len()]}));
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes].concat()
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
    let adapters = adapters(folder.path());
    let base = fixtures().join("models/llama-gqa-tied");
    let kinds = std::iter::once(None).chain(adapters.iter().cloned().map(Some));
    let alone = |adapter| {
        let handle = start(&base, adapter, Device::Cpu, engine(64, 400));
        let generate = |number| handle.generate(request(ModelId::STUDENT, number)).and_then(|g| g.collect());
        let traces: Vec<_> = (0..PROMPTS).map(|number| trace(&generate(number).expect("generates"))).collect();
        (traces, scores(&handle, ModelId::STUDENT))
    };
    let alone: Vec<_> = kinds.map(alone).collect();
    for (i, kind) in alone.iter().enumerate() {
        assert!(alone[..i].iter().all(|other| other.0 != kind.0 && other.1 != kind.1), "the adapters change tokens");
    }
    for (async_scheduling, pages) in [(false, 400), (true, 400), (true, 26)] {
        let config = EngineConfig { async_scheduling, kv_bytes: pages * PAGE_BYTES, ..engine(48, 0) };
        let handle = start(&base, None, Device::Cpu, config);
        let added = adapters.each_ref().map(|path| handle.add_adapter(ModelId::STUDENT, path).expect("loaded"));
        let models = [ModelId::STUDENT, added[0], added[1], added[2]];
        let stats = || handle.stats().expect("counters").models[&ModelId::STUDENT];
        // The second time a prompt's prefix is cached, if there is room for it.
        for round in 0..2 {
            let before = stats();
            let mut running = Vec::new();
            for number in 0..PROMPTS {
                running.extend(models.map(|model| handle.generate(request(model, number)).expect("starts")));
            }
            let scored = models.map(|model| scores(&handle, model));
            let traces: Vec<_> = running.into_iter().map(|g| trace(&g.collect().expect("generates"))).collect();
            for (kind, (want, want_scores)) in alone.iter().enumerate() {
                let got: Vec<_> = traces.iter().skip(kind).step_by(models.len()).cloned().collect();
                assert_eq!(&got, want, "model {kind}, async {async_scheduling}, round {round}");
                assert_eq!(&scored[kind], want_scores, "scores of model {kind}");
            }
            let after = stats();
            let launched = after.steps.launched - before.steps.launched;
            if pages == 400 {
                // 28 generations of at least 40 tokens and 4 scores.
                assert!(launched < 140, "steps are shared: {after:?}");
                let mixed = after.steps.mixed - before.steps.mixed;
                assert!(2 * mixed > launched, "adapters share forward passes: {after:?}");
                let hits = after.scheduler.prefix_hit_tokens - before.scheduler.prefix_hit_tokens;
                assert!(round == 0 || hits > 1000, "{after:?}");
            } else {
                assert!(after.scheduler.preemptions > before.scheduler.preemptions, "{after:?}");
            }
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
