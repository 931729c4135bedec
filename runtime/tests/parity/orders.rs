//! An executor that gets its orders as bytes computes what one that gets them directly computes.

use std::sync::Arc;

use autograd::Device;
use autograd::adamw::AdamW;
use autograd::ops::{TeacherRows, TopRows};
use runtime::RuntimeHandle;
use runtime::files::ModelFiles;
use runtime::request::{
    EngineConfig, Generated, LogProbs, ModelId, ModelSpec, OptimStep, Pooling, Precision, RuntimeSpec, ScoreOutput,
    ScoreRequest, ScoreSequence, SequenceScores, TokenMask, TrainReport, TrainRequest, TrainSequence, Trainable,
};
use runtime::sampler::SamplingParams;
use runtime::train::{PrecomputedTeacher, TeacherSource};

use super::schedules::{Witness, decode_witness};
use super::{engine, fixtures, greedy, lora, training};

fn start(encode_orders: bool, trains: bool) -> RuntimeHandle {
    let files = Arc::new(ModelFiles::open(&fixtures().join("models/llama-gqa-tied")).expect("opens"));
    let spec = RuntimeSpec {
        training: trains.then(|| training(Trainable::Lora(lora(4)))),
        decode_loss: decode_witness,
        engine: EngineConfig { encode_orders, async_scheduling: true, ..engine(24, 60) },
        ..RuntimeSpec::for_device(Device::Cpu, ModelSpec::new(files))
    };
    RuntimeHandle::start(&spec, &|_, _| {}).expect("starts")
}

/// Allows every third token.
struct EveryThird;

impl TokenMask for EveryThird {
    fn allowed(&mut self, bits: &mut [u32]) {
        (0..90).step_by(3).for_each(|token| bits[token / 32] |= 1 << (token % 32));
    }

    fn accept(&mut self, _: u32) {}
}

/// Tokens and the bits of their log-probabilities.
type Trace = Vec<(u32, u64)>;

/// Generations with every parameter, some with a mask, beside scores with every output.
fn requests(handle: &RuntimeHandle, models: &[ModelId]) -> (Vec<Trace>, Vec<Vec<SequenceScores>>) {
    let mut running = Vec::new();
    for (number, &model) in (0..12).zip(models.iter().cycle()) {
        let prompt: Vec<u32> = (0..5 + 7 * number).map(|i| (i * 7 + 3) % 90).collect();
        let mut request = greedy(&prompt, 20, u64::from(number));
        request.model = model;
        request.params = SamplingParams {
            temperature: 0.8,
            top_k: Some(40),
            top_p: 0.95,
            min_p: 0.001,
            repetition_penalty: 1.2,
            frequency_penalty: 0.3,
            presence_penalty: 0.1,
            logit_bias: [(5, 1.5)].into(),
            min_tokens: 3,
            logprobs: Some(2),
            logprob_token_ids: vec![4, 9],
            seed: 9,
            ..request.params
        };
        let started = if number % 4 == 0 {
            handle.generate_masked(request, Box::new(EveryThird))
        } else {
            handle.generate(request)
        };
        running.push(started.expect("starts"));
    }
    let outputs = [
        ScoreOutput::TokenLogProbs { temperature: 0.7 },
        ScoreOutput::LogProbs(LogProbs { top: 3, ids: vec![7], temperature: 1.3, ranks: true, greedy: true }),
        ScoreOutput::Logits(Precision::Bf16),
        ScoreOutput::Hidden { normalized: false, precision: Precision::F32 },
        ScoreOutput::Pooled(Pooling::Mean),
    ];
    let score = |output: ScoreOutput| {
        let sequence = |n: u32| {
            let tokens: Vec<u32> = (0..30 + n).map(|i| (i * i + n) % 60).collect();
            ScoreSequence { positions: 3..25, tokens }
        };
        let sequences = (0..4).map(sequence).collect();
        let request = ScoreRequest { model: models[0], sequences, output, token_ids: None };
        handle.score(request).expect("scored").sequences
    };
    let scores = outputs.into_iter().map(score).collect();
    let trace = |generated: Generated| -> Trace {
        let tokens = generated.tokens.into_iter();
        tokens.map(|t| (t.token, t.logprob.to_bits() ^ t.sampling_logprob.to_bits().rotate_left(1))).collect()
    };
    (running.into_iter().map(|g| trace(g.collect().expect("generates"))).collect(), scores)
}

#[test]
fn steps_from_bytes_are_the_same_steps() {
    let adapter = fixtures().join("adapters/llama-all-linear");
    let [direct, encoded] = [false, true].map(|encode_orders| {
        let handle = start(encode_orders, false);
        let added = handle.add_adapter(ModelId::STUDENT, &adapter).expect("loaded");
        let first = requests(&handle, &[ModelId::STUDENT, added]);
        assert_eq!(handle.replace_adapter(added, &adapter).expect("replaced"), 1);
        let second = requests(&handle, &[added]);
        handle.remove_adapter(added).expect("removed");
        (first, second)
    });
    assert!(direct == encoded);
}

/// A remote teacher that lists two tokens for each of the sequence's three.
fn remote() -> TeacherSource {
    let rows = TopRows {
        k: 2,
        ids: vec![1, 2, 3, 4, 5, 6],
        logprobs: vec![-1.0; 6],
        tail_logprobs: vec![-1.3; 3],
        temperature: 1.0,
    };
    let rows = Some(Arc::new(TeacherRows::Top(rows)));
    TeacherSource::Remote(PrecomputedTeacher { logprobs: vec![-1.0; 3], temperature: 1.0, rows })
}

#[test]
fn training_from_bytes_is_the_same_training() {
    let [direct, encoded] = [false, true].map(|encode_orders| {
        let handle = start(encode_orders, true);
        let mut states = Vec::new();
        for step in 0..3_u32 {
            let sequence = TrainSequence {
                tokens: vec![1, 2, 3 + step, 4, 5],
                prompt_len: 2,
                teacher_prompt: None,
                sampled_logprobs: vec![-1.0; 3],
                raw_logprobs: vec![-1.0; 3],
                weights: vec![1.0; 3],
            };
            let request = TrainRequest {
                sequences: vec![sequence],
                loss: Witness::new(),
                normalizer: 3.0,
                backward: true,
                dropout_key: u64::from(step),
                teacher: (step == 1).then(remote),
            };
            let TrainReport { loss, .. } = handle.forward_backward(request).expect("trains");
            let adamw = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
            let report = handle.optim_step(OptimStep { lr: 1e-2, adamw, max_grad_norm: Some(1.0) }).expect("steps");
            let version = handle.publish().expect("publishes");
            let state = handle.export_state().expect("a state");
            if step == 1 {
                handle.restore_state(state.clone()).expect("restored");
            }
            let values = |tensors: &[runtime::request::NamedTensor]| {
                tensors.iter().map(|t| (t.name.clone(), t.values.clone())).collect::<Vec<_>>()
            };
            let state = (values(&state.weights), values(&state.moments), state.step);
            states.push((loss.to_bits(), report.grad_norm.to_bits(), version, state));
        }
        (states, requests(&handle, &[ModelId::STUDENT]))
    });
    assert!(direct == encoded);
}
