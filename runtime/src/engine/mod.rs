//! The engine: the one thread that owns the device.
//!
//! Generations and scores of a model share its continuous batch. Everything else is a job (a micro-batch, an optimizer step, new
//! weights): jobs run in order of arrival between two steps, when no step is in flight. `time_share` decides which
//! of both comes next, and `prefill_budget` how many prompt tokens a step takes beside running generations.

mod adapters;
mod device_lost;
mod generation;
mod graph_runner;
mod prefill_budget;
mod runner;
pub(crate) mod score;
mod step;
mod time_share;

use std::collections::VecDeque;
use std::mem::{Discriminant, discriminant};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use autograd::Device;
use autograd::cuda::{Gpu, Mode};

use crate::config::ModelConfig;
use crate::handle::EngineRequest;
use crate::ids::ModelId;
use crate::memory::Entry;
use crate::request::{
    GpuStats, PauseMode, RequestError, RuntimeSpec, RuntimeStats, Snapshot, TrainReport, TrainRequest,
};
use crate::train::{TeacherSource, TrainSession};
use crate::{Error, Result};

use prefill_budget::{PrefillBudget, StepLoad};
pub(crate) use runner::ModelRunner;
use time_share::{NextAction, PendingWork, TimeShare};

/// Everything on the device.
pub(crate) struct Engine {
    /// One for each base model, by the number of its id.
    runners: Vec<ModelRunner>,
    /// The id of the next adapter.
    next_id: ModelId,
    /// How the first model is trained.
    training: Option<TrainSession>,
    /// Requests that run between two steps, in order of arrival.
    jobs: VecDeque<EngineRequest>,
    time_share: TimeShare<Discriminant<EngineRequest>>,
    /// Bounds the steps beside running generations, where the configuration asks for short steps.
    prefill_budget: Option<PrefillBudget>,
    /// Keeps a GPU in the mode of the specification.
    _mode: Option<Mode>,
    /// No step is launched.
    paused: bool,
    /// How the device was lost; it is not used any more.
    lost: Option<Error>,
}

impl Engine {
    /// Loads the models. Weights of models that are the same layers of the same files are loaded once.
    pub(crate) fn new(spec: &RuntimeSpec, progress: &dyn Fn(usize, usize)) -> Result<Self> {
        let mode = hold_mode(spec)?;
        let mut runners: Vec<ModelRunner> = Vec::new();
        for id in spec.ids() {
            let shared = spec.shares_weights_with(id).map(|other| runners[other.0 as usize].base().base().clone());
            runners.push(ModelRunner::load(id, spec, shared, progress)?);
        }
        let training = spec.training.as_ref().map(|t| TrainSession::new(t, runners[0].base())).transpose();
        let training = training.map_err(|e| e.while_allocating(Entry::Optimizer))?;
        let mut engine = Self {
            next_id: ModelId(runners.len() as u32),
            runners,
            training,
            jobs: VecDeque::new(),
            time_share: TimeShare::new(),
            prefill_budget: spec.engine.short_steps.then(|| PrefillBudget::new(spec.engine.async_scheduling)),
            paused: false,
            lost: None,
            _mode: mode,
        };
        if engine.training.is_some() {
            engine.publish().map_err(|e| e.while_allocating(Entry::Copies))?;
        }
        Ok(engine)
    }

    /// Handles requests until every handle is dropped; `published` follows.
    pub(crate) fn run(&mut self, work: &Receiver<EngineRequest>, published: &Mutex<Snapshot>) {
        // How long a step took that has just been done.
        let mut stepped = None;
        loop {
            loop {
                let rests = (self.paused || self.is_idle()) && self.jobs.is_empty();
                let next = if rests { work.recv().map_err(|_| TryRecvError::Disconnected) } else { work.try_recv() };
                match next {
                    Ok(item) => {
                        self.handle_request(item);
                        self.publish_snapshot(published);
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if let Some((ended, time)) = stepped.take() {
                self.time_share.step_took(ended, time, !self.jobs.is_empty());
            }
            let waiting = self.waiting();
            match self.time_share.next(Instant::now(), waiting) {
                NextAction::Job => self.run_job(),
                NextAction::Step => stepped = Some(self.step()),
                NextAction::Wait(until) => match work.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(item) => {
                        self.handle_request(item);
                        if !self.jobs.is_empty() {
                            self.time_share.waited(true);
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => self.time_share.waited(false),
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            }
            self.publish_snapshot(published);
        }
    }

    /// What waits for the device. New weights wait for the scores that the old ones have begun; under a pause, when nobody goes
    /// on with these, they begin again.
    fn waiting(&mut self) -> PendingWork {
        let changes = match self.jobs.front() {
            Some(EngineRequest::Publish(_)) => Some(ModelId::STUDENT),
            Some(EngineRequest::ReplaceAdapter(model, ..)) => Some(*model),
            _ => None,
        };
        let paused = self.paused;
        let ready = changes.is_none_or(|model| {
            let Ok(runner) = self.runner(model) else { return true };
            if paused {
                runner.restart_scores(model);
            }
            !runner.hold_scores(model)
        });
        PendingWork { job: self.jobs.front().map(|_| ready), steps: !paused && !self.is_idle() }
    }

    /// A step of every base model; when it ended, and how long it took.
    fn step(&mut self) -> (Instant, Duration) {
        let started = Instant::now();
        let streams = self.runners.iter().any(|runner| runner.scheduler.has_decodes());
        let busy = self.runners.iter().filter(|runner| !runner.is_idle()).count().max(1);
        let limit = self
            .prefill_budget
            .as_ref()
            .map_or(usize::MAX, |prefill_budget| prefill_budget.prefill(streams).div_ceil(busy));
        let prefill = self.runners.iter_mut().map(|runner| runner.step(limit)).sum();
        let (now, time) = (Instant::now(), started.elapsed());
        if let Some(prefill_budget) = &mut self.prefill_budget {
            prefill_budget.took(time, StepLoad { streams, prefill });
        }
        self.check_step_errors();
        (now, time)
    }

    /// Does the oldest job.
    fn run_job(&mut self) {
        let Some(job) = self.jobs.pop_front() else { return };
        let (started, kind) = (Instant::now(), discriminant(&job));
        let requests_wait = !self.is_idle();
        self.runners.iter_mut().for_each(ModelRunner::drain);
        self.check_step_errors();
        if let Some(prefill_budget) = &mut self.prefill_budget {
            prefill_budget.drained();
        }
        match &self.lost {
            Some(lost) => device_lost::refuse(job, lost),
            None => self.answer(job),
        }
        self.time_share.job_took(kind, Instant::now(), started.elapsed(), requests_wait);
    }

    /// The shapes of the base models.
    pub(crate) fn configs(&self) -> Arc<[Arc<ModelConfig>]> {
        self.runners.iter().map(|runner| Arc::clone(runner.config())).collect()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot { models: self.runners.iter().flat_map(ModelRunner::snapshots).collect() }
    }

    fn publish_snapshot(&self, published: &Mutex<Snapshot>) {
        *published.lock().unwrap_or_else(PoisonError::into_inner) = self.snapshot();
    }

    fn is_idle(&self) -> bool {
        self.runners.iter().all(ModelRunner::is_idle)
    }

    /// The runner of a base model or of the adapter's base.
    fn runner(&mut self, model: ModelId) -> Result<&mut ModelRunner> {
        let runner = self.runners.iter_mut().find(|runner| runner.has(model));
        Ok(runner.ok_or(RequestError::NoModel { model })?)
    }

    /// Takes a request as it comes: generations and scores go to their schedulers, jobs wait.
    fn handle_request(&mut self, work: EngineRequest) {
        if let Some(lost) = &self.lost {
            return device_lost::refuse(work, lost);
        }
        match work {
            EngineRequest::Generate(id, request, mask, events) => match self.runner(request.model) {
                Ok(runner) => runner.submit(id, request, mask, events),
                // The receiver may have been dropped; the same below.
                Err(e) => drop(events.send(crate::request::GenerateEvent::Failed(e))),
            },
            EngineRequest::Score(id, request, reply) => match self.runner(request.model) {
                Ok(runner) => runner.submit_scoring(id, request, reply),
                Err(e) => drop(reply.send(Err(e))),
            },
            EngineRequest::Cancel(model, id) => {
                if let Ok(runner) = self.runner(model) {
                    runner.cancel(id);
                }
            }
            EngineRequest::Stats(reply) => {
                let stats = self.stats();
                self.reply(&reply, stats);
            }
            EngineRequest::Pause(running, reply) => {
                self.runners.iter_mut().for_each(ModelRunner::drain);
                self.check_step_errors();
                if running == PauseMode::Abort {
                    self.runners.iter_mut().for_each(ModelRunner::abort_all);
                }
                self.paused = true;
                self.reply(&reply, Ok(()));
            }
            EngineRequest::Resume(reply) => {
                self.paused = false;
                self.reply(&reply, Ok(()));
            }
            job => self.jobs.push_back(job),
        }
    }

    /// Does a job. No step is in flight.
    fn answer(&mut self, job: EngineRequest) {
        match job {
            EngineRequest::Generate(..)
            | EngineRequest::Score(..)
            | EngineRequest::Cancel(..)
            | EngineRequest::Stats(_)
            | EngineRequest::Pause(..)
            | EngineRequest::Resume(_) => {
                unreachable!("what is no job is answered as it comes")
            }
            EngineRequest::ForwardBackward(request, reply) => {
                let report = self.forward_backward(&request);
                self.reply(&reply, report.map_err(|e| e.while_allocating(Entry::Activations)));
            }
            EngineRequest::OptimStep(step, reply) => {
                let report = self.session().and_then(|s| s.optim_step(&step));
                self.reply(&reply, report.map_err(|e| e.while_allocating(Entry::Workspace)));
            }
            EngineRequest::Publish(reply) => {
                let version = self.publish();
                self.reply(&reply, version.map_err(|e| e.while_allocating(Entry::Copies)));
            }
            EngineRequest::Export(reply) => {
                let state = self.session().and_then(|s| s.export());
                self.reply(&reply, state);
            }
            EngineRequest::AddAdapter(base, adapter, reply) => {
                let model = self.add_adapter(base, &adapter);
                self.reply(&reply, model.map_err(|e| e.while_allocating(Entry::Weights)));
            }
            EngineRequest::ReplaceAdapter(model, adapter, reply) => {
                let version = self.replace_adapter(model, &adapter);
                self.reply(&reply, version.map_err(|e| e.while_allocating(Entry::Weights)));
            }
            EngineRequest::RemoveAdapter(model, reply) => {
                let removed = self.remove_adapter(model);
                self.reply(&reply, removed);
            }
            EngineRequest::Restore(state, reply) => {
                let restored = self.session().and_then(|s| s.restore(state));
                self.reply(&reply, restored);
            }
            EngineRequest::ResetPrefixCache(reply) => {
                self.runners.iter_mut().for_each(|runner| runner.scheduler.reset_prefix_cache());
                self.reply(&reply, Ok(()));
            }
        }
    }

    fn stats(&self) -> Result<RuntimeStats> {
        let gpu = match self.runners[0].base().device() {
            Device::Cpu | Device::Portable => None,
            Device::Cuda(ordinal) => {
                let gpu = Gpu::get(ordinal)?;
                Some(GpuStats { launches: gpu.launches(), memory: gpu.memory() })
            }
        };
        let models = (0..).map(ModelId).zip(&self.runners).map(|(id, runner)| (id, runner.stats())).collect();
        Ok(RuntimeStats { models, gpu })
    }

    fn forward_backward(&mut self, request: &TrainRequest) -> Result<TrainReport> {
        let student = self.runners[0].base();
        let teacher = match &request.teacher {
            Some(TeacherSource::Resident(id)) => {
                self.runners.iter().find(|runner| runner.has(*id)).map(|runner| runner.model(*id))
            }
            Some(TeacherSource::Remote(_)) | None => None,
        };
        match &mut self.training {
            Some(session) => session.forward_backward(request, student, teacher),
            None => crate::train::evaluate(request, student, teacher),
        }
    }

    fn session(&mut self) -> Result<&mut TrainSession> {
        Ok(self.training.as_mut().ok_or(RequestError::NotTraining)?)
    }

    /// Makes the trained weights those that the student's requests run with.
    fn publish(&mut self) -> Result<u64> {
        let session = self.training.as_ref().ok_or(RequestError::NotTraining)?;
        let trained = session.serving_pass(self.runners[0].base());
        self.runners[0].publish(trained)
    }
}

/// Puts a GPU into the mode that the runtime computes in.
fn hold_mode(spec: &RuntimeSpec) -> Result<Option<Mode>> {
    match spec.device {
        Device::Cpu => Ok(None),
        Device::Cuda(ordinal) => Ok(Some(Gpu::get(ordinal)?.hold_mode(spec.deterministic)?)),
        Device::Portable if spec.deterministic => {
            let why = "results depend on the batch there; deterministic runs on cpu (always) and cuda".to_owned();
            Err(autograd::Error::Device { name: spec.device.to_string(), why }.into())
        }
        Device::Portable => Ok(None),
    }
}
