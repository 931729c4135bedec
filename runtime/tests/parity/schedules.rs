//! One sequence alone, in a batch, in chunks, after a prefix hit, preempted, and in training: equal bits.
//!
//! The same tests run on the CPU and, in deterministic mode, on a GPU (ignored where there is none). Models there have
//! widths that its kernels know, and sequences longer than a tile of its attention.

use std::sync::{Arc, Mutex};

use autograd::adamw::AdamW;
use autograd::kv::KvShape;
use autograd::ops::linear_cross_entropy;
use autograd::{Device, Tape};
use runtime::RuntimeHandle;
use runtime::files::ModelFiles;
use runtime::request::{
    EngineConfig, Generated, ModelId, ModelSpec, OptimStep, RuntimeSpec, TrainRequest, TrainSequence, Trainable,
    Training,
};
use runtime::train::{Loss, LossBatch, LossValue, Needs};

use super::{fixtures, greedy, lora, tokens};

/// A model on a device and what it is asked.
struct Machine {
    name: String,
    device: Device,
    files: Arc<ModelFiles>,
    prompts: Vec<Vec<u32>>,
    /// Token budgets of a step.
    budgets: Vec<usize>,
    /// Pages that hold about two of the sequences.
    few_pages: usize,
}

impl Machine {
    fn cpu(name: &str) -> Self {
        let files = Arc::new(ModelFiles::open(&fixtures().join("models").join(name)).expect("the fixture opens"));
        Self {
            name: name.to_owned(),
            device: Device::Cpu,
            files,
            prompts: prompts(&[5, 10, 15, 20, 25, 30, 35], 35),
            budgets: vec![1, 5, 64, 512],
            few_pages: 14,
        }
    }

    /// A random model of a configuration, which is part of this program: it may run on another machine.
    fn gpu((name, config): (&str, &str)) -> Self {
        let path = std::env::temp_dir().join(format!("arle-parity-{}-{name}.json", std::process::id()));
        std::fs::write(&path, config).expect("a folder for temporary files");
        let files = Arc::new(ModelFiles::random(&path).expect("a configuration"));
        std::fs::remove_file(&path).expect("was just written");
        Self {
            name: name.to_owned(),
            device: Device::Cuda(0),
            files,
            prompts: prompts(&[1, 5, 63, 64, 65, 130, 300], 150),
            budgets: vec![7, 64, 300, 4096],
            few_pages: 30,
        }
    }

    fn page_bytes(&self) -> usize {
        let c = &self.files.config;
        let shape = KvShape { heads: c.num_heads, kv_heads: c.num_kv_heads, head_dim: c.head_dim };
        shape.page_bytes(self.device) * c.num_layers
    }

    fn start(&self, training: Option<Training>, engine: EngineConfig) -> RuntimeHandle {
        let spec = RuntimeSpec {
            deterministic: self.device != Device::Cpu,
            training,
            decode_loss: decode_witness,
            engine,
            ..RuntimeSpec::for_device(self.device, ModelSpec::new(self.files.clone()))
        };
        RuntimeHandle::start(&spec, &|_, _| {}).expect("the model starts")
    }

    fn engine(&self, token_budget: usize) -> EngineConfig {
        let async_scheduling = EngineConfig::default_async_scheduling(self.device);
        EngineConfig { kv_bytes: 400 * self.page_bytes(), async_scheduling, ..super::engine(token_budget, 0) }
    }

    fn serving(&self, token_budget: usize) -> RuntimeHandle {
        self.start(None, self.engine(token_budget))
    }

    /// Generates from every prompt at once.
    fn generate(&self, handle: &RuntimeHandle, new: usize) -> Vec<Generated> {
        let start = |(i, prompt): (usize, &Vec<u32>)| handle.generate(sampled(prompt, new, i as u64)).expect("starts");
        let running: Vec<_> = self.prompts.iter().enumerate().map(start).collect();
        running.into_iter().map(|g| g.collect().expect("generates")).collect()
    }

    fn traces(&self, handle: &RuntimeHandle, new: usize) -> Vec<Trace> {
        self.generate(handle, new).iter().map(trace).collect()
    }
}

/// Prompts of these lengths, and two that share `shared` tokens.
fn prompts(lengths: &[u32], shared: u32) -> Vec<Vec<u32>> {
    let shared: Vec<u32> = (0..shared).map(|i| (i * 7 + 3) % 90).collect();
    let mut all: Vec<Vec<u32>> =
        lengths.iter().zip(1..).map(|(&len, n)| (0..len).map(|i| (i * 13 + n) % 90).collect()).collect();
    all.push(shared.clone());
    all.push(shared.into_iter().chain([5, 6, 7]).collect());
    all
}

fn sampled(prompt: &[u32], max_tokens: usize, index: u64) -> runtime::request::GenerateRequest {
    let mut request = greedy(prompt, max_tokens, index);
    request.params.temperature = if index.is_multiple_of(2) { 1.0 } else { 0.8 };
    request.params.seed = 11;
    request
}

/// Sampled tokens and the exact bits of their log-probabilities.
type Trace = Vec<(u32, [u64; 2])>;

fn trace(generated: &Generated) -> Trace {
    generated.tokens.iter().map(|t| (t.token, [t.logprob, t.sampling_logprob].map(f64::to_bits))).collect()
}

fn every_schedule_gives_the_same_bits(machine: &Machine) {
    let (new, name) = (20, &machine.name);
    let alone: Vec<Trace> = machine
        .prompts
        .iter()
        .enumerate()
        .map(|(i, p)| {
            let handle = machine.serving(64);
            trace(&handle.generate(sampled(p, new, i as u64)).expect("starts").collect().expect("generates"))
        })
        .collect();
    for &budget in &machine.budgets {
        let handle = machine.serving(budget);
        assert!(machine.traces(&handle, new) == alone, "{name} in a batch with a budget of {budget}");
        assert!(machine.traces(&handle, new) == alone, "{name} after a prefix hit, budget {budget}");
        let stats = handle.stats().expect("answers").models[&ModelId::STUDENT].scheduler;
        assert!(stats.prefix_hit_tokens > 0, "{stats:?}");
    }
}

fn preempted_sequences_give_the_same_bits(machine: &Machine) {
    let want = machine.traces(&machine.serving(64), 40);
    let kv_bytes = machine.few_pages * machine.page_bytes();
    let tight = machine.start(None, EngineConfig { prefix_cache: false, kv_bytes, ..machine.engine(64) });
    assert!(machine.traces(&tight, 40) == want, "{}", machine.name);
    let stats = tight.stats().expect("answers").models[&ModelId::STUDENT].scheduler;
    assert!(stats.preemptions > 0, "the pool was not tight: {stats:?}");
}

/// Cross-entropy that keeps the trainer's log-probabilities and those that were sampled.
pub(crate) struct Witness {
    /// Its place among all, which are its bytes.
    number: usize,
    pairs: Mutex<Vec<[f32; 2]>>,
}

static WITNESSES: Mutex<Vec<Arc<Witness>>> = Mutex::new(vec![]);

impl Witness {
    pub(crate) fn new() -> Arc<Self> {
        let mut all = WITNESSES.lock().expect("nobody panicked");
        let witness = Arc::new(Self { number: all.len(), pairs: Mutex::default() });
        all.push(witness.clone());
        witness
    }
}

/// The witness of these bytes.
pub(crate) fn decode_witness(bytes: &[u8]) -> runtime::Result<Arc<dyn Loss>> {
    let number = usize::from_le_bytes(bytes.try_into().expect("bytes of a witness"));
    Ok(WITNESSES.lock().expect("nobody panicked")[number].clone())
}

impl Loss for Witness {
    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn encode(&self) -> Vec<u8> {
        self.number.to_le_bytes().to_vec()
    }

    fn compute(&self, tape: &mut Tape, batch: &LossBatch<'_>) -> runtime::Result<LossValue> {
        let student = [batch.student_hidden, batch.student_head];
        let (loss, mut rows) = linear_cross_entropy(tape, student, batch.targets, batch.weights)?;
        let trained = rows.remove("logprob").expect("cross-entropy has it");
        let pairs = trained.into_iter().zip(batch.raw_logprobs).map(|(t, &s)| [t, s]);
        self.pairs.lock().expect("nobody panicked").extend(pairs);
        Ok(LossValue { loss, rows })
    }
}

fn step() -> OptimStep {
    let adamw = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    OptimStep { lr: 1e-2, adamw, max_grad_norm: Some(1.0) }
}

/// Trains on what the model wrote; trainer's and sampler's log-probabilities of every token.
fn train(machine: &Machine, handle: &RuntimeHandle, new: usize) -> Vec<[f32; 2]> {
    let written = machine.generate(handle, new);
    let sequence = |(prompt, generated): (&Vec<u32>, &Generated)| TrainSequence {
        tokens: prompt.iter().copied().chain(tokens(generated)).collect(),
        prompt_len: prompt.len(),
        teacher_prompt: None,
        sampled_logprobs: generated.tokens.iter().map(|t| t.sampling_logprob as f32).collect(),
        raw_logprobs: generated.tokens.iter().map(|t| t.logprob as f32).collect(),
        weights: vec![1.0; new],
    };
    let witness = Witness::new();
    let request = TrainRequest {
        sequences: machine.prompts.iter().zip(&written).map(sequence).collect(),
        loss: witness.clone(),
        normalizer: (new * written.len()) as f64,
        backward: true,
        dropout_key: 0,
        teacher: None,
    };
    handle.forward_backward(request).expect("trains");
    assert!(handle.optim_step(step()).expect("steps").applied);
    handle.publish().expect("publishes");
    let pairs = witness.pairs.lock().expect("nobody panicked").clone();
    assert_eq!(pairs.len(), new * written.len());
    pairs
}

/// The sampler's log-probabilities are the trainer's, also after steps, and the steps are the same in every run. On the
/// CPU the two differ by the last rounding of the normalizer, which the sampler forms in f64.
fn trainer_and_sampler_agree(machine: &Machine, training: &Training) {
    let mut states = vec![];
    for _ in 0..2 {
        let handle = machine.start(Some(training.clone()), machine.engine(64));
        for step in 0..3 {
            for [trained, sampled] in train(machine, &handle, 25) {
                let equal = if machine.device == Device::Cpu {
                    (trained - sampled).abs() <= 2e-6 * trained.abs().max(1.0)
                } else {
                    trained.to_bits() == sampled.to_bits()
                };
                assert!(equal, "{} in step {step}: trainer {trained}, sampler {sampled}", machine.name);
            }
        }
        let state = handle.export_state().expect("a state");
        let bits = state.weights.into_iter().chain(state.moments);
        states.push(bits.map(|t| t.values.into_iter().map(f32::to_bits).collect::<Vec<_>>()).collect::<Vec<_>>());
    }
    assert!(states[0] == states[1], "{}: two runs of the same steps differ", machine.name);
}

const CPU_MODELS: [&str; 3] = ["llama-gqa-tied", "qwen3-gqa-tied", "qwen2-sliding"];
/// Names and configurations.
const GPU_MODELS: [(&str, &str); 3] = [
    ("llama", include_str!("../../../tests/fixtures/gpu_models/llama.json")),
    ("qwen3", include_str!("../../../tests/fixtures/gpu_models/qwen3.json")),
    ("qwen2-sliding", include_str!("../../../tests/fixtures/gpu_models/qwen2-sliding.json")),
];

#[test]
fn schedules() {
    CPU_MODELS.map(Machine::cpu).iter().for_each(every_schedule_gives_the_same_bits);
}

#[test]
fn preemption() {
    preempted_sequences_give_the_same_bits(&Machine::cpu(CPU_MODELS[0]));
}

#[test]
fn training() {
    // One layer is recomputed.
    let full = Training { recomputed_layers: 1, ..super::training(Trainable::Full) };
    trainer_and_sampler_agree(&Machine::cpu(CPU_MODELS[0]), &super::training(Trainable::Lora(lora(8))));
    trainer_and_sampler_agree(&Machine::cpu(CPU_MODELS[1]), &full);
}

/// A loss that is not finite stops a step if it is the step's own, not if it was measured between two of them.
#[test]
fn only_what_a_step_trains_on_stops_it() {
    let machine = Machine::cpu(CPU_MODELS[0]);
    let handle = machine.start(Some(super::training(Trainable::Full)), machine.engine(64));
    let loss = |weight: f32, backward: bool| {
        let sequence = TrainSequence {
            tokens: vec![1, 2, 3],
            prompt_len: 1,
            teacher_prompt: None,
            sampled_logprobs: vec![],
            raw_logprobs: vec![],
            weights: vec![weight; 2],
        };
        let loss = Witness::new();
        let request =
            TrainRequest { sequences: vec![sequence], loss, normalizer: 2.0, backward, dropout_key: 0, teacher: None };
        handle.forward_backward(request).expect("runs").loss
    };
    assert!(loss(1.0, true).is_finite());
    assert!(!loss(f32::INFINITY, false).is_finite());
    assert!(handle.optim_step(step()).expect("steps").applied);
    assert!(!loss(f32::INFINITY, true).is_finite());
    assert!(!handle.optim_step(step()).expect("steps").applied);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_schedules() {
    GPU_MODELS.map(Machine::gpu).iter().for_each(every_schedule_gives_the_same_bits);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_preemption() {
    preempted_sequences_give_the_same_bits(&Machine::gpu(GPU_MODELS[0]));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_training() {
    let full = Training { recomputed_layers: 1, ..super::training(Trainable::Full) };
    for model in GPU_MODELS.map(Machine::gpu) {
        trainer_and_sampler_agree(&model, &super::training(Trainable::Lora(lora(8))));
        trainer_and_sampler_agree(&model, &full);
    }
}
