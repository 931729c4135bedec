//! Several base models in one runtime, each by its id.

use std::sync::Arc;

use autograd::{Device, Tape};
use runtime::RuntimeHandle;
use runtime::files::ModelFiles;
use runtime::request::{ModelId, ModelSpec, RuntimeSpec, TrainReport, TrainRequest, TrainSequence};
use runtime::train::{Loss, LossBatch, LossValue, Needs, TeacherSource};

use super::{engine, fixtures, greedy, start, tokens};

const MODELS: [&str; 3] = ["llama-gqa-tied", "qwen3-gqa-tied", "qwen2-sliding"];

#[test]
fn every_model_answers_as_it_does_alone() {
    let path = |name: &str| fixtures().join("models").join(name);
    let models: Vec<ModelSpec> =
        MODELS.iter().map(|name| ModelSpec::new(Arc::new(ModelFiles::open(&path(name)).expect("opens")))).collect();
    let spec = RuntimeSpec {
        models: models.clone(),
        engine: engine(32, 64),
        ..RuntimeSpec::for_device(Device::Cpu, models[0].clone())
    };
    let all = RuntimeHandle::start(&spec, &|_, _| {}).expect("starts");
    let prompt: Vec<u32> = (0..40).map(|i| (i * 7 + 3) % 90).collect();
    let of = |handle: &RuntimeHandle, model| {
        let mut request = greedy(&prompt, 20, 0);
        request.model = model;
        handle.generate(request).expect("starts")
    };
    let running: Vec<_> = spec.ids().map(|id| of(&all, id)).collect();
    for (name, running) in MODELS.iter().zip(running) {
        let alone = of(&start(&path(name), None, Device::Cpu, engine(32, 64)), ModelId::STUDENT);
        assert_eq!(
            tokens(&running.collect().expect("generates")),
            tokens(&alone.collect().expect("generates")),
            "{name}"
        );
    }
    let stats = all.stats().expect("counters").models;
    assert!(stats.len() == 3 && stats.values().all(|stats| stats.steps.launched > 0), "{stats:?}");
    let error = all
        .generate({
            let mut r = greedy(&prompt, 1, 0);
            r.model = ModelId(3);
            r
        })
        .and_then(|g| g.collect());
    assert!(error.expect_err("no such model").to_string().contains("model 3"));
}

/// The teacher's mean log-probability of the tokens.
struct TeacherLogProb;

impl Loss for TeacherLogProb {
    fn needs(&self) -> Needs {
        Needs::Tokens { temperature: 1.0 }
    }

    fn encode(&self) -> Vec<u8> {
        vec![]
    }

    fn compute(&self, _: &mut Tape, batch: &LossBatch<'_>) -> runtime::Result<LossValue> {
        let logprobs = batch.teacher()?.log_probs(batch.targets, 1.0)?;
        let loss = autograd::Tensor::scalar(Device::Cpu, logprobs.iter().sum())?;
        Ok(LossValue { loss, rows: Default::default() })
    }
}

fn teacher_log_prob(bytes: &[u8]) -> runtime::Result<Arc<dyn Loss>> {
    assert!(bytes.is_empty());
    Ok(Arc::new(TeacherLogProb))
}

#[test]
fn a_micro_batch_names_its_teacher() {
    let files = Arc::new(ModelFiles::open(&fixtures().join("models/llama-gqa-tied")).expect("opens"));
    let adapter = Some(fixtures().join("adapters/llama-all-linear"));
    // The base itself, and the base with an adapter.
    let teachers = [None, adapter].map(|adapter| ModelSpec { files: files.clone(), layers: None, adapter });
    let spec = RuntimeSpec {
        engine: engine(32, 64),
        decode_loss: teacher_log_prob,
        ..RuntimeSpec::for_device(Device::Cpu, ModelSpec::new(files))
    };
    let spec = RuntimeSpec { models: [spec.models.clone(), teachers.to_vec()].concat(), ..spec };
    let handle = RuntimeHandle::start(&spec, &|_, _| {}).expect("starts");
    let of = |teacher: Option<u32>| -> runtime::Result<TrainReport> {
        let sequence = TrainSequence {
            tokens: (0..30).map(|i| (i * 11 + 5) % 90).collect(),
            prompt_len: 3,
            teacher_prompt: None,
            sampled_logprobs: vec![],
            raw_logprobs: vec![],
            weights: vec![1.0; 27],
        };
        handle.forward_backward(TrainRequest {
            sequences: vec![sequence],
            loss: Arc::new(TeacherLogProb),
            normalizer: 1.0,
            backward: false,
            dropout_key: 0,
            teacher: teacher.map(|id| TeacherSource::Resident(ModelId(id))),
        })
    };
    let own = of(Some(0)).expect("the student itself").loss;
    assert_eq!(own.to_bits(), of(Some(1)).expect("the same weights").loss.to_bits());
    assert_ne!(own.to_bits(), of(Some(2)).expect("an adapter").loss.to_bits());
    for missing in [None, Some(7)] {
        let error = of(missing).expect_err("no teacher").to_string();
        assert!(error.contains("needs a teacher"), "{error}");
    }
}
