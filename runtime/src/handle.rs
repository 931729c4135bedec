//! The one entrypoint to the device.

mod score;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use autograd::Device;

use crate::config::ModelConfig;
use crate::engine::{Engine, EngineRequest, Reply};
use crate::model::Adapter;
use crate::request::{
    FinishReason, GenerateEvent, GenerateRequest, Generated, ModelId, OptimReport, OptimStep, PauseMode, RequestError,
    RuntimeSpec, RuntimeStats, Snapshot, TokenMask, TrainReport, TrainRequest, TrainState,
};
use crate::scheduler::RequestId;
use crate::sink::Sink;
use crate::{Error, Result};

/// Submits requests to the thread that owns the device. Cheap to clone; the thread ends when the last clone, and the last
/// running [`Generation`], is dropped.
#[derive(Clone)]
pub struct RuntimeHandle {
    requests: Sender<EngineRequest>,
    next_id: Arc<AtomicU64>,
    snapshot: Arc<Mutex<Snapshot>>,
    exit_reason: ExitReason,
    /// The shapes of the base models, by place.
    configs: Arc<[Arc<ModelConfig>]>,
}

/// Why the device thread has ended; set soon after the first channel to it closes.
#[derive(Clone, Default)]
struct ExitReason(Arc<OnceLock<String>>);

impl ExitReason {
    /// For a caller whose channel is closed.
    fn error(&self) -> Error {
        Error::Stopped(self.0.wait().clone())
    }

    fn set(&self, outcome: Result<(), Box<dyn Any + Send>>) {
        let why = outcome.map_or_else(
            |panic| {
                let text = panic.downcast_ref::<&str>().copied();
                let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
                format!("it panicked, \"{}\"; restart the program", text.unwrap_or("without a message"))
            },
            |()| "every handle of it was dropped".to_owned(),
        );
        self.0.get_or_init(|| why);
    }
}

/// Keeps a submitted request alive. Dropping it cancels the request and frees its pages; a request that has ended is
/// not changed by that.
#[must_use = "a dropped guard cancels its request"]
pub struct RequestGuard {
    id: RequestId,
    model: ModelId,
    requests: Sender<EngineRequest>,
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        // The device thread may be gone already; then there is nothing to cancel.
        drop(self.requests.send(EngineRequest::Cancel(self.model, self.id)));
    }
}

/// A running generation. Dropping it cancels the request and frees its pages.
pub struct Generation {
    /// `None` once the request has ended.
    guard: Option<RequestGuard>,
    events: Receiver<GenerateEvent>,
    exit_reason: ExitReason,
}

impl Generation {
    /// The next event, waiting for it; `None` after [`GenerateEvent::Done`] or [`GenerateEvent::Failed`].
    pub fn next_event(&mut self) -> Option<GenerateEvent> {
        self.guard.as_ref()?;
        let event = self.events.recv().unwrap_or_else(|_| GenerateEvent::Failed(self.exit_reason.error()));
        if matches!(event, GenerateEvent::Done { .. } | GenerateEvent::Failed(_)) {
            self.guard = None;
        }
        Some(event)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// Why the request failed.
    pub fn collect(mut self) -> Result<Generated> {
        let mut generated =
            Generated { tokens: vec![], text: String::new(), reason: FinishReason::Cancelled, cached_tokens: 0 };
        while let Some(event) = self.next_event() {
            match event {
                GenerateEvent::Started { .. } => {}
                GenerateEvent::Token(token) => {
                    generated.text.push_str(&token.text);
                    generated.tokens.push(token);
                }
                GenerateEvent::Done { reason, text, cached_tokens, .. } => {
                    generated.text.push_str(&text);
                    generated.reason = reason;
                    generated.cached_tokens = cached_tokens;
                }
                GenerateEvent::Failed(e) => return Err(e),
            }
        }
        Ok(generated)
    }
}

impl RuntimeHandle {
    /// Loads the models (calling `progress(done, total)` for tensors) and starts the device thread.
    ///
    /// # Errors
    /// What loading refuses; a KV memory that holds no page.
    pub fn start(spec: &RuntimeSpec, progress: &dyn Fn(usize, usize)) -> Result<Self> {
        let mut engine = Engine::new(spec, progress)?;
        let snapshot = Arc::new(Mutex::new(engine.snapshot()));
        let (published, configs) = (Arc::clone(&snapshot), engine.configs());
        let (requests, queue) = channel();
        // The engine is one of the pool's workers: a parallel loop then starts without waking a thread and going to sleep.
        let workers = rayon::ThreadPoolBuilder::new().build().map_err(|e| Error::Stopped(e.to_string()))?;
        let thread = std::thread::Builder::new().name("device".to_owned());
        let exit_reason = ExitReason::default();
        let end = exit_reason.clone();
        let run = move || {
            let engine = &mut engine;
            // The engine is not used after a panic.
            end.set(catch_unwind(AssertUnwindSafe(|| workers.install(move || engine.run(&queue, &published)))));
        };
        thread.spawn(run).map_err(|e| Error::Stopped(e.to_string()))?;
        Ok(Self { requests, next_id: Arc::default(), snapshot, exit_reason, configs })
    }

    fn call<T: Send + 'static>(&self, request: impl FnOnce(Reply<T>) -> EngineRequest) -> Result<T> {
        let (reply, answer) = channel();
        self.requests.send(request(reply.into())).map_err(|_| self.exit_reason.error())?;
        answer.recv().map_err(|_| self.exit_reason.error())?
    }

    /// Starts a generation; a request that cannot run reports so as its only event.
    ///
    /// # Errors
    /// The device thread has ended.
    pub fn generate(&self, request: GenerateRequest) -> Result<Generation> {
        self.submit(request, None)
    }

    /// As [`RuntimeHandle::generate`], with tokens that `mask` allows.
    ///
    /// # Errors
    /// The device thread has ended.
    pub fn generate_masked(&self, request: GenerateRequest, mask: Box<dyn TokenMask>) -> Result<Generation> {
        self.submit(request, Some(mask))
    }

    fn submit(&self, request: GenerateRequest, mask: Option<Box<dyn TokenMask>>) -> Result<Generation> {
        let (sender, events) = channel();
        let guard = self.generate_into(request, mask, sender.into())?;
        Ok(Generation { guard: Some(guard), events, exit_reason: self.exit_reason.clone() })
    }

    /// Starts a generation whose events `events` takes, on the device thread, as they come; the last one is
    /// [`GenerateEvent::Done`] or [`GenerateEvent::Failed`]. A sink that is closed cancels the request.
    ///
    /// # Errors
    /// The device thread has ended.
    pub fn generate_into(
        &self,
        request: GenerateRequest,
        mask: Option<Box<dyn TokenMask>>,
        events: Sink<GenerateEvent>,
    ) -> Result<RequestGuard> {
        let model = request.model;
        self.submit_as(model, |id| EngineRequest::Generate(id, request, mask, events))
    }

    fn submit_as(&self, model: ModelId, request: impl FnOnce(RequestId) -> EngineRequest) -> Result<RequestGuard> {
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        self.requests.send(request(id)).map_err(|_| self.exit_reason.error())?;
        Ok(RequestGuard { id, model, requests: self.requests.clone() })
    }

    /// One micro-batch: forward, loss and, with `backward`, backward. Gradients add up until the next
    /// [`RuntimeHandle::optim_step`].
    ///
    /// # Errors
    /// Sequences that do not fit, or what the loss refuses.
    pub fn forward_backward(&self, request: TrainRequest) -> Result<TrainReport> {
        self.call(|reply| EngineRequest::ForwardBackward(request, reply))
    }

    /// Clips, applies AdamW and clears the gradients. A step whose loss or gradient is not finite changes no weight, no
    /// moment and no step count.
    ///
    /// # Errors
    /// The runtime was started without training.
    pub fn optim_step(&self, step: OptimStep) -> Result<OptimReport> {
        self.call(|reply| EngineRequest::OptimStep(step, reply))
    }

    /// Answers requests with the trained weights from now on; returns their version.
    ///
    /// # Errors
    /// The runtime was started without training.
    pub fn publish(&self) -> Result<u64> {
        self.call(EngineRequest::Publish)
    }

    /// Loads a PEFT adapter onto a base model. It shares the base's weights, scheduler and KV memory, and costs only its own
    /// weights; a step computes sequences of several adapters. The files are read on the caller's thread.
    ///
    /// # Errors
    /// A model that is no base; an adapter that does not fit it; a base that is trained.
    pub fn add_adapter(&self, base: ModelId, folder: &Path) -> Result<ModelId> {
        let adapter = self.read_adapter(base, folder)?;
        self.call(|reply| EngineRequest::AddAdapter(base, adapter, reply))
    }

    /// On the host.
    fn read_adapter(&self, base: ModelId, folder: &Path) -> Result<Adapter> {
        let config = self.configs.get(base.0 as usize).ok_or(RequestError::NoModel { model: base })?;
        Adapter::load(folder, config, Device::Cpu)
    }

    /// Puts the adapter of another folder in the place of a loaded one; returns the new version of its weights. Requests that
    /// run go on with the new weights, and each token event has their version; no later request uses a prefix of the old ones. The
    /// files are read on the caller's thread.
    ///
    /// # Errors
    /// A model that is no adapter; an adapter that does not fit its base. Then the old one stays.
    pub fn replace_adapter(&self, model: ModelId, folder: &Path) -> Result<u64> {
        let snapshot = self.snapshot();
        let loaded = snapshot.models.get(&model).ok_or(RequestError::NoModel { model })?;
        let adapter = self.read_adapter(loaded.base, folder)?;
        self.call(|reply| EngineRequest::ReplaceAdapter(model, adapter, reply))
    }

    /// Frees an adapter and its cached prefixes.
    ///
    /// # Errors
    /// A model that is no adapter, or one with requests that have not ended.
    pub fn remove_adapter(&self, model: ModelId) -> Result<()> {
        self.call(|reply| EngineRequest::RemoveAdapter(model, reply))
    }

    /// No token is generated, and nothing scored, until [`RuntimeHandle::resume`]; requests meanwhile wait. Training
    /// goes on.
    ///
    /// # Errors
    /// The device thread has ended.
    pub fn pause(&self, running: PauseMode) -> Result<()> {
        self.call(|reply| EngineRequest::Pause(running, reply))
    }

    /// Goes on with what waits.
    ///
    /// # Errors
    /// The device thread has ended.
    pub fn resume(&self) -> Result<()> {
        self.call(EngineRequest::Resume)
    }

    /// Forgets all cached prefixes of all models.
    ///
    /// # Errors
    /// The device thread has ended.
    pub fn reset_prefix_cache(&self) -> Result<()> {
        self.call(EngineRequest::ResetPrefixCache)
    }

    /// Trained weights and moments, copied to the host.
    ///
    /// # Errors
    /// The runtime was started without training.
    pub fn export_state(&self) -> Result<TrainState> {
        self.call(EngineRequest::Export)
    }

    /// Puts back what [`RuntimeHandle::export_state`] gave.
    ///
    /// # Errors
    /// A set of names or shapes that differs from what is trained.
    pub fn restore_state(&self, state: TrainState) -> Result<()> {
        self.call(|reply| EngineRequest::Restore(state, reply))
    }

    /// The state after the newest step. Never waits for the device: during a long training step it is the state before it.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counters of now.
    ///
    /// # Errors
    /// The device thread has ended.
    pub fn stats(&self) -> Result<RuntimeStats> {
        self.call(EngineRequest::Stats)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use autograd::{Device, Tape};

    use super::*;
    use crate::files::ModelFiles;
    use crate::request::{CompletionText, EngineConfig, ModelSpec, TrainSequence};
    use crate::sampler::SamplingParams;
    use crate::train::{Loss, LossBatch, LossValue, Needs};

    struct Panics;

    impl Loss for Panics {
        fn needs(&self) -> Needs {
            Needs::Nothing
        }

        fn encode(&self) -> Vec<u8> {
            vec![]
        }

        fn compute(&self, _: &mut Tape, _: &LossBatch<'_>) -> Result<LossValue> {
            panic!("a loss of 7")
        }
    }

    #[test]
    fn a_panic_of_the_device_thread_reaches_every_caller() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-chat");
        let student =
            ModelSpec { files: Arc::new(ModelFiles::open(&dir).expect("it opens")), layers: None, adapter: None };
        let engine = EngineConfig {
            token_budget: 8,
            max_running: 1,
            max_waiting: 2,
            kv_bytes: 1 << 18,
            prefix_cache: false,
            ..EngineConfig::for_device(Device::Cpu)
        };
        let spec = RuntimeSpec { engine, ..RuntimeSpec::for_device(Device::Cpu, student) };
        let handle = RuntimeHandle::start(&spec, &|_, _| {}).expect("it starts");
        let params = SamplingParams { max_tokens: 200, ignore_eos: true, ..SamplingParams::default() };
        let request = GenerateRequest {
            model: ModelId::STUDENT,
            prompt: vec![1, 2],
            params,
            index: 0,
            text: CompletionText::None,
        };
        let running = handle.generate(request).expect("it starts");
        let sequence = TrainSequence {
            tokens: vec![1, 2, 3],
            prompt_len: 1,
            teacher_prompt: None,
            sampled_logprobs: vec![],
            raw_logprobs: vec![],
            weights: vec![1.0; 2],
        };
        let loss = Arc::new(Panics);
        let train = TrainRequest {
            sequences: vec![sequence],
            loss,
            normalizer: 1.0,
            backward: false,
            dropout_key: 0,
            teacher: None,
        };
        let says = |error: Error| assert!(error.to_string().contains("it panicked, \"a loss of 7\""), "{error}");
        says(handle.forward_backward(train).expect_err("the loss panics"));
        says(handle.stats().expect_err("the thread is gone"));
        says(running.collect().expect_err("the thread is gone"));
    }
}
