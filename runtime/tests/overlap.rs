//! A step that is launched before the results of the one before are known changes no token; and a GPU draws as the host.

use std::path::Path;
use std::sync::Arc;

use autograd::{Device, Tensor, ops};
use runtime::RuntimeHandle;
use runtime::files::ModelFiles;
use runtime::request::{
    CompletionText, EngineConfig, FinishReason, GenerateRequest, ModelId, ModelSpec, RuntimeSpec, TokenMask,
};
use runtime::sampler::{RngKey, SamplingParams, Scratch, TokenHistory, sample};

/// A tiny model with a tokenizer on the host; two wide random layers on a GPU, whose kernels want them wide.
fn start(device: Device, overlap: bool) -> RuntimeHandle {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (files, layers, page_bytes) = match device {
        Device::Cuda(_) => {
            (ModelFiles::random(&root.join("configs/models/qwen3-0.6b.json")), Some(vec![0, 1]), 128 << 10)
        }
        _ => (ModelFiles::open(&root.join("tests/fixtures/tiny-chat")), None, 4 << 10),
    };
    let files = Arc::new(files.expect("the model opens"));
    let engine = EngineConfig {
        token_budget: 40,
        max_running: 7,
        max_waiting: 200,
        // Too few pages for all that may run.
        kv_bytes: 40 * page_bytes,
        async_scheduling: overlap,
        ..EngineConfig::for_device(device)
    };
    let spec = RuntimeSpec { engine, ..RuntimeSpec::for_device(device, ModelSpec { files, layers, adapter: None }) };
    RuntimeHandle::start(&spec, &|_, _| {}).expect("the fixture loads")
}

/// Parameters of every kind; some generations end by a token or, where there is a tokenizer, a text that nobody foresees.
fn params(kind: u64, vocab: u32) -> SamplingParams {
    let plain =
        SamplingParams { seed: 5, max_tokens: 30 + kind as usize % 50, ignore_eos: true, ..SamplingParams::default() };
    match kind % 8 {
        0 => plain,
        1 => SamplingParams { repetition_penalty: 1.4, presence_penalty: 0.5, ..plain },
        2 => SamplingParams { frequency_penalty: 1.1, temperature: 0.0, ..plain },
        3 => SamplingParams { logit_bias: [(7, 4.0), (30, 3.0), (9, -100.0)].into(), top_k: Some(20), ..plain },
        4 => SamplingParams { stop_token_ids: (0..vocab / 5).collect(), min_tokens: 12, ..plain },
        5 => SamplingParams { logprobs: Some(4), logprob_token_ids: vec![3, 40, 3], top_p: 0.9, ..plain },
        6 => SamplingParams { stop: vec!["a".to_owned(), "e ".to_owned()], ..plain },
        _ => SamplingParams { stop_token_ids: (0..vocab / 9).collect(), min_p: 0.01, temperature: 1.5, ..plain },
    }
}

fn request(index: u64, device: Device) -> GenerateRequest {
    let prompt = (0..5 + index as u32 % 9 * 7).map(|i| (i * 13 + (index % 4) as u32) % 90).collect();
    let on_card = matches!(device, Device::Cuda(_));
    let mut params = params(index, if on_card { 151_936 } else { 300 });
    if on_card {
        params.stop.clear();
    }
    let text = if on_card { CompletionText::None } else { CompletionText::AfterPrompt };
    GenerateRequest { model: ModelId::STUDENT, prompt, params, index, text }
}

type Trace = (Vec<(u32, u64, Vec<(u32, f64)>, Vec<f64>)>, String, FinishReason);

fn trace(running: runtime::Generation) -> Trace {
    let generated = running.collect().expect("generates");
    let tokens = generated.tokens.into_iter().map(|t| (t.token, t.logprob.to_bits(), t.top, t.given)).collect();
    (tokens, generated.text, generated.reason)
}

#[test]
fn overlap_changes_no_token() {
    let [apart, overlapped] = [false, true].map(|overlap| {
        let handle = start(Device::Cpu, overlap);
        let running: Vec<_> = (0..48).map(|i| handle.generate(request(i, Device::Cpu)).expect("starts")).collect();
        // Some leave in the middle.
        for i in 48..60 {
            let mut leaves = handle.generate(request(i, Device::Cpu)).expect("starts");
            (0..i % 5).for_each(|_| drop(leaves.next_event()));
        }
        let traces: Vec<Trace> = running.into_iter().map(trace).collect();
        let stats = handle.stats().expect("runs");
        assert!(
            stats.models[&ModelId::STUDENT].scheduler.preemptions > 0,
            "{:?}",
            stats.models[&ModelId::STUDENT].scheduler
        );
        assert_eq!(
            stats.models[&ModelId::STUDENT].scheduler.free_pages
                + stats.models[&ModelId::STUDENT].scheduler.cached_pages,
            stats.models[&ModelId::STUDENT].scheduler.total_pages
        );
        assert_eq!(
            stats.models[&ModelId::STUDENT].scheduler.running + stats.models[&ModelId::STUDENT].scheduler.waiting,
            0
        );
        (traces, stats)
    });
    assert_eq!(apart.0, overlapped.0);
    let unforeseen = |t: &&Trace| t.2 == FinishReason::Stop;
    assert!(apart.0.iter().filter(unforeseen).count() > 8, "too few generations stopped");
    let [apart, overlapped] = [apart.1, overlapped.1].map(|stats| stats.models[&ModelId::STUDENT].steps);
    assert_eq!(apart.ahead, 0);
    assert!(overlapped.ahead * 10 > overlapped.launched * 9, "{overlapped:?}");
}

/// Allows tokens that are larger than the one before modulo 90, by at most 9.
struct Rising(u32);

impl TokenMask for Rising {
    fn allowed(&mut self, bits: &mut [u32]) {
        for token in (1..10).map(|more| (self.0 + more) % 90) {
            bits[token as usize / 32] |= 1 << (token % 32);
        }
    }

    fn accept(&mut self, token: u32) {
        self.0 = token;
    }
}

fn masked_runs(device: Device) -> [Vec<Trace>; 2] {
    [false, true].map(|overlap| {
        let handle = start(device, overlap);
        let unmasked = handle.generate(request(0, device)).expect("starts");
        let running: Vec<_> = (0..6)
            .map(|i| {
                let mut request = request(8 * i, device);
                request.text = CompletionText::None;
                handle.generate_masked(request, Box::new(Rising(0))).expect("starts")
            })
            .collect();
        let traces: Vec<Trace> = running.into_iter().map(trace).collect();
        for (tokens, ..) in &traces {
            let before = [0].into_iter().chain(tokens.iter().map(|t| t.0));
            let rises = |(before, token): (u32, u32)| (1..10).contains(&((token + 90 - before) % 90));
            assert!(tokens.len() >= 30 && before.zip(tokens.iter().map(|t| t.0)).all(rises), "{tokens:?}");
        }
        trace(unmasked);
        traces
    })
}

#[test]
fn masked_generations_wait_for_their_tokens() {
    let [apart, overlapped] = masked_runs(Device::Cpu);
    assert_eq!(apart, overlapped);
}

#[test]
#[ignore = "needs a GPU"]
fn masks_on_a_gpu() {
    masked_runs(Device::Cuda(0));
}

#[test]
#[ignore = "needs a GPU"]
fn overlap_on_a_gpu_changes_no_token() {
    let request = |i| request(i, Device::Cuda(0));
    // One after another, so that the sizes of the products are the same.
    let [apart, overlapped] = [false, true].map(|overlap| {
        let handle = start(Device::Cuda(0), overlap);
        let traces: Vec<Trace> = (0..48).map(|i| trace(handle.generate(request(i)).expect("starts"))).collect();
        (traces, handle.stats().expect("runs").models[&ModelId::STUDENT].steps)
    });
    assert_eq!(apart.0, overlapped.0);
    assert!(overlapped.1.ahead * 10 > overlapped.1.launched * 8, "{:?}", overlapped.1);
    // All at once: whatever the batch, everybody ends and no page is lost.
    let handle = start(Device::Cuda(0), true);
    let running: Vec<_> = (0..200).map(|i| handle.generate(request(i)).expect("starts")).collect();
    running.into_iter().for_each(|running| assert!(!trace(running).0.is_empty()));
    let stats = handle.stats().expect("runs");
    assert_eq!(
        stats.models[&ModelId::STUDENT].scheduler.free_pages + stats.models[&ModelId::STUDENT].scheduler.cached_pages,
        stats.models[&ModelId::STUDENT].scheduler.total_pages
    );
}

/// Logits of one row on the GPU, spread like a model's.
fn logits(vocab: usize, row: u64) -> Tensor {
    let value = |i: usize| (autograd::rng::uniform(row, 1, i as u64) as f32 - 0.5) * 12.0;
    let head: Vec<f32> = (0..8 * vocab).map(|i| if i % 8 == 0 { value(i / 8) } else { 0.0 }).collect();
    let hidden = vec![1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let device = Device::Cuda(0);
    let hidden = Tensor::new(device, hidden, [1, 8]).expect("memory");
    ops::logits([&hidden, &Tensor::weight(device, head, [vocab, 8]).expect("memory")]).expect("runs")
}

/// A generation of thirty tokens with every kind of parameters, drawn by both from the same logits.
#[test]
#[ignore = "needs a GPU"]
fn a_gpu_draws_as_the_host() {
    let (mut drawn, mut other) = (0, vec![]);
    for vocab in [90, 5003, 151_936] {
        let samples = ops::SampleBuffer::new(0, 4).expect("memory");
        for kind in 0..8 {
            let (params, prompt) = (params(kind, vocab as u32), [1u32, 5, 30, 7]);
            let bias: Vec<(u32, f32)> = params.logit_bias.iter().map(|(&id, &bias)| (id, bias)).collect();
            let rules = ops::LogitsProcessorSpec {
                logit_bias: &bias,
                masked: &params.stop_token_ids,
                repetition: params.repetition_penalty,
                frequency: params.frequency_penalty,
                presence: params.presence_penalty,
                prompt: &prompt,
                top: params.logprobs.unwrap_or(0),
                given: &params.logprob_token_ids,
            };
            let processors = ops::LogitsProcessors::new(0, vocab, &rules).expect("memory");
            let mut history = TokenHistory::new(&prompt);
            // Few different logits, so that tokens come again.
            for step in 0..30u64 {
                let z = logits(vocab, step % 3);
                let key = RngKey { seed: params.seed, request: kind, position: 4 + step };
                // Two of three tokens, in every other generation.
                let bits: Vec<u32> = (0..vocab.div_ceil(32) as u32).map(|i| 0xB6DB_6DB6 ^ (i << 7)).collect();
                let allowed = (kind % 2 == 1).then_some(&bits[..]);
                let host = sample(&z.to_vec(), &params, &[], &history, allowed, key, &mut Scratch::default())
                    .expect("samples");
                let draw = ops::SampleParams {
                    temperature: params.temperature,
                    top_k: params.top_k.unwrap_or(0),
                    top_p: params.top_p,
                    min_p: params.min_p,
                    seed: key.seed,
                    request: key.request,
                    position: key.position,
                };
                let masks = (step as usize) < params.min_tokens;
                let row = ops::SampleArgs { params: draw, processors: processors.as_ref(), masks, allowed };
                let on_gpu = samples.sample(&z, &[row]).and_then(ops::PendingSamples::wait).expect("samples").remove(0);
                let ops::SampleResult::Token { token, logprob, sampling_logprob, top, given } = on_gpu else {
                    panic!("{on_gpu:?}")
                };
                drawn += 1;
                if token != host.token {
                    // Sums in another order may cross a border between two tokens; the histories differ from here on.
                    other.push((vocab, kind, step, token, host.token));
                    break;
                }
                let close = |a: f32, b: f32| assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{kind}: {a}, not {b}");
                close(logprob, host.logprob);
                close(sampling_logprob, host.sampling_logprob);
                assert_eq!((top.len(), given.len()), (host.top.len(), host.given.len()));
                for (a, b) in top.iter().zip(&host.top) {
                    assert_eq!(a.0, b.0, "{kind}: {top:?} {:?}", host.top);
                    close(a.1, b.1);
                }
                given.iter().zip(&host.given).for_each(|(&a, &b)| close(a, b));
                history.push(token);
            }
        }
    }
    assert!(other.len() <= 2 && drawn > 600, "{} of {drawn} draws differ: {other:?}", other.len());
}
