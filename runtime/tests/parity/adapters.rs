//! Adapters of one base share its scheduler, its KV memory and its steps, and each gives the bits that it gives alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use autograd::Device;
use runtime::files::ModelFiles;
use runtime::model::Adapter;
use runtime::request::{
    EngineConfig, GenerateRequest, Generated, LogProbs, LoraConfig, ModelId, ModelSpec, RequestError, RuntimeSpec,
    ScoreOutput, ScoreRequest, ScoreSequence, StepStats,
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
    let kept = adapter.named().filter(|(name, _)| name.contains("v_proj") || name.contains("down_proj"));
    let cut = kept.map(|(name, tensor)| {
        let (values, [rows, cols]) = (tensor.to_vec(), tensor.shape());
        let shape = if name.contains("lora_A") { [2, cols] } else { [rows, 2] };
        let rows = values.chunks(cols).take(shape[0]).flat_map(|row| row[..shape[1]].iter().map(|v| -4.0 * v));
        (name, shape, rows.collect())
    });
    safetensors(cut)
}

/// A file of f32 tensors.
fn safetensors(tensors: impl Iterator<Item = (String, [usize; 2], Vec<f32>)>) -> Vec<u8> {
    let (mut header, mut bytes) = (serde_json::Map::new(), vec![]);
    for (name, shape, values) in tensors {
        let start = bytes.len();
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
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

/// A random model that a GPU computes, and a folder with adapters of different ranks on it, some of them on few projections.
fn gpu_model(folder: &Path) -> (Arc<ModelFiles>, [PathBuf; 3]) {
    let path = folder.join("config.json");
    fs::write(&path, include_str!("../../../tests/fixtures/gpu_models/llama.json")).expect("written");
    let files = Arc::new(ModelFiles::random(&path).expect("a configuration"));
    let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let adapter = |(name, rank, targets): (&str, usize, &[&str])| {
        let targets: Vec<String> = targets.iter().map(|&target| target.to_owned()).collect();
        let config = LoraConfig { target_modules: targets.clone(), seed: rank as u64, ..super::lora(rank) };
        let adapter = Adapter::init(&files.config, &config, Device::Cpu).expect("made");
        let value = |i: usize| 0.2 * ((i * (7 + rank)) as f32).sin();
        let tensors = adapter.named().map(|(name, tensor)| {
            let b = (0..tensor.rows() * tensor.cols()).map(value);
            let values = if name.contains("lora_B") { b.collect() } else { tensor.to_vec() };
            (name, tensor.shape(), values)
        });
        let dir = folder.join(name);
        fs::create_dir(&dir).expect("a folder");
        fs::write(dir.join("adapter_model.safetensors"), safetensors(tensors)).expect("written");
        let config = json!({"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets});
        fs::write(dir.join("adapter_config.json"), config.to_string()).expect("written");
        dir
    };
    let forms: [(&str, usize, &[&str]); 3] =
        [("all", 16, &all), ("few", 64, &["q_proj", "down_proj"]), ("small", 8, &["v_proj", "up_proj", "o_proj"])];
    let adapters = forms.map(adapter);
    (files, adapters)
}

fn start_random(
    files: &Arc<ModelFiles>,
    adapter: Option<PathBuf>,
    device: Device,
    deterministic: bool,
) -> RuntimeHandle {
    let engine = EngineConfig { kv_bytes: 256 << 20, ..EngineConfig::for_device(device) };
    let model = ModelSpec { files: files.clone(), layers: None, adapter };
    let spec = RuntimeSpec { engine, deterministic, ..RuntimeSpec::for_device(device, model) };
    RuntimeHandle::start(&spec, &|_, _| {}).expect("the model starts")
}

/// The models of a runtime with the adapters added.
fn with_adapters(handle: &RuntimeHandle, adapters: &[PathBuf; 3]) -> [ModelId; 4] {
    let added = adapters.each_ref().map(|path| handle.add_adapter(ModelId::STUDENT, path).expect("loaded"));
    [ModelId::STUDENT, added[0], added[1], added[2]]
}

/// What every model gives to every prompt, all at once.
fn all_at_once(handle: &RuntimeHandle, models: [ModelId; 4]) -> Vec<Vec<Generated>> {
    let start = |model| (0..PROMPTS).map(move |number| handle.generate(request(model, number)).expect("starts"));
    let running: Vec<Vec<_>> = models.map(|model| start(model).collect()).into();
    running.into_iter().map(|some| some.into_iter().map(|g| g.collect().expect("generates")).collect()).collect()
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_adapters_in_deterministic_mode_give_the_bits_that_they_give_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let (files, adapters) = gpu_model(folder.path());
    let kinds = std::iter::once(None).chain(adapters.iter().cloned().map(Some));
    let alone = |adapter| {
        let handle = start_random(&files, adapter, Device::Cuda(0), true);
        let generate = |number| handle.generate(request(ModelId::STUDENT, number)).and_then(|g| g.collect());
        (0..PROMPTS).map(|number| trace(&generate(number).expect("generates"))).collect::<Vec<_>>()
    };
    let alone: Vec<_> = kinds.map(alone).collect();
    let handle = start_random(&files, None, Device::Cuda(0), true);
    let models = with_adapters(&handle, &adapters);
    let mixed: Vec<Vec<_>> = all_at_once(&handle, models).iter().map(|some| some.iter().map(trace).collect()).collect();
    assert!(mixed == alone, "bits of adapters in one batch");
    let steps = handle.stats().expect("counters").models[&ModelId::STUDENT].steps;
    assert!(2 * steps.mixed > steps.launched, "{steps:?}");
}

#[test]
fn several_adapters_sample_from_the_right_one() {
    let steps = sampled_from_the_right_model(Device::Cpu);
    assert!(2 * steps.mixed > steps.launched, "{steps:?}");
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_graphs_of_several_adapters_sample_from_the_right_one() {
    let steps = sampled_from_the_right_model(Device::Cuda(0));
    assert!(2 * steps.mixed > steps.launched && 2 * steps.graphs > steps.launched, "{steps:?}");
}

/// Tokens of mixed batches have the log-probabilities that their own model gives them in a prefill, and not those of another.
/// The steps that generated.
fn sampled_from_the_right_model(device: Device) -> StepStats {
    let folder = tempfile::tempdir().expect("a folder");
    let (files, adapters) = gpu_model(folder.path());
    let handle = start_random(&files, None, device, false);
    let models = with_adapters(&handle, &adapters);
    let mixed = all_at_once(&handle, models);
    let steps = handle.stats().expect("counters").models[&ModelId::STUDENT].steps;
    let mean = |model: ModelId, generated: &[Generated]| {
        let mut errors = vec![];
        for (number, generated) in (0..).zip(generated) {
            let mut tokens = request(model, number).prompt;
            let first = tokens.len() - 1;
            tokens.extend(generated.tokens.iter().map(|t| t.token));
            let output = ScoreOutput::LogProbs(LogProbs { temperature: 1.0, ..LogProbs::default() });
            let sequences = vec![ScoreSequence::every_token(tokens)];
            let scores = handle.score(ScoreRequest { model, sequences, output, token_ids: None }).expect("scored");
            let scored = &scores.sequences[0].logprobs[first..];
            errors.extend(scored.iter().zip(&generated.tokens).map(|(s, t)| (s - t.logprob).abs()));
        }
        errors.iter().sum::<f64>() / errors.len() as f64
    };
    for (i, generated) in mixed.iter().enumerate() {
        let errors = models.map(|model| mean(model, generated));
        for (j, error) in errors.iter().enumerate() {
            assert!(if i == j { *error < 0.05 } else { *error > 0.1 }, "model {i}: {errors:?}");
        }
    }
    drop(handle);
    // The engine ends on its own thread, and a process has one mode at a time: the next test wants the other one.
    let free = || device.hold_mode(true).is_ok();
    assert!(
        (0..1000).any(|_| free() || {
            std::thread::sleep(Duration::from_millis(10));
            false
        }),
        "the engine ends"
    );
    steps
}
