//! The engine: the one thread that owns the device.
//!
//! Generations and scores of a model share its continuous batch. Everything else is a job (a micro-batch, an optimizer step, new
//! weights): jobs run in order of arrival between two steps, when no step is in flight. `time_share` decides which
//! of both comes next, and `prefill_budget` how many prompt tokens a step takes beside running generations.

mod adapters;
mod device_lost;
mod executor;
pub(crate) mod order;
mod planner;
mod prefill_budget;
mod ranks;
mod request;
mod time_share;

use std::collections::VecDeque;
use std::mem::{Discriminant, discriminant};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use autograd::cuda::Mode;

use self::executor::{Executor, Outcome};
use self::order::Order;
use self::planner::BatchPlanner;
use self::prefill_budget::{PrefillBudget, StepLoad};
use self::ranks::Ranks;
pub(crate) use self::request::{EngineRequest, Reply};
use self::time_share::{NextAction, PendingWork, TimeShare};
use crate::config::ModelConfig;
use crate::ids::ModelId;
use crate::request::{
    GpuStats, ModelSpec, OptimReport, OptimStep, PauseMode, RequestError, RuntimeSpec, RuntimeStats, Snapshot,
    TrainReport, TrainRequest, TrainState,
};
use crate::{Error, Result};

/// Schedulers and sinks, and the ranks that execute what they plan.
pub(crate) struct Engine {
    /// One for each base model, by the number of its id.
    planners: Vec<BatchPlanner>,
    /// Execute what is planned.
    ranks: Ranks,
    /// The id of the next adapter.
    next_id: ModelId,
    /// Whether the first model is trained.
    trains: bool,
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
    /// Loads the models.
    pub(crate) fn new(spec: &RuntimeSpec, progress: &dyn Fn(usize, usize)) -> Result<Self> {
        let mode = spec.device.hold_mode(spec.deterministic)?;
        let executor = Executor::new(spec, progress)?;
        let bases = spec.ids().zip(&spec.models).zip(executor.bases());
        let planner = |((id, model), (config, pages)): ((ModelId, &ModelSpec), (&Arc<ModelConfig>, usize))| {
            let tokenizer = model.files.tokenizer.clone();
            BatchPlanner::new(id, Arc::clone(config), spec.device, tokenizer, pages, &spec.engine)
        };
        let planners = bases.map(planner).collect::<Result<Vec<_>>>()?;
        let mut engine = Self {
            next_id: ModelId(planners.len() as u32),
            planners,
            ranks: Ranks::new(executor, spec.engine.encode_orders),
            trains: spec.training.is_some(),
            jobs: VecDeque::new(),
            time_share: TimeShare::new(),
            prefill_budget: spec.engine.short_steps.then(|| PrefillBudget::new(spec.engine.async_scheduling)),
            paused: false,
            lost: None,
            _mode: mode,
        };
        if engine.trains {
            engine.publish()?;
        }
        Ok(engine)
    }

    /// Handles requests until every handle is dropped; `published` follows.
    pub(crate) fn run(&mut self, requests: &Receiver<EngineRequest>, published: &Mutex<Snapshot>) {
        // How long a step took that has just been done.
        let mut stepped = None;
        loop {
            loop {
                let rests = (self.paused || self.is_idle()) && self.jobs.is_empty();
                let next =
                    if rests { requests.recv().map_err(|_| TryRecvError::Disconnected) } else { requests.try_recv() };
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
                NextAction::Wait(until) => match requests.recv_timeout(until.saturating_duration_since(Instant::now()))
                {
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

    /// What waits for the device. New weights wait for the scores that the old ones have begun; under a pause,
    /// when these do not go on, they begin again.
    fn waiting(&mut self) -> PendingWork {
        let changes = match self.jobs.front() {
            Some(EngineRequest::Publish(_)) => Some(ModelId::STUDENT),
            Some(EngineRequest::ReplaceAdapter(model, ..)) => Some(*model),
            _ => None,
        };
        let paused = self.paused;
        let ready = changes.is_none_or(|model| {
            let Ok(planner) = self.planner(model) else { return true };
            if paused {
                planner.restart_scores(model);
            }
            !planner.hold_scores(model)
        });
        PendingWork { job: self.jobs.front().map(|_| ready), steps: !paused && !self.is_idle() }
    }

    /// A step of every base model; when it ended, and how long it took.
    fn step(&mut self) -> (Instant, Duration) {
        let started = Instant::now();
        let streams = self.planners.iter().any(|planner| planner.scheduler.has_decodes());
        let busy = self.planners.iter().filter(|planner| !planner.is_idle()).count().max(1);
        let limit = self
            .prefill_budget
            .as_ref()
            .map_or(usize::MAX, |prefill_budget| prefill_budget.prefill(streams).div_ceil(busy));
        let ranks = &mut self.ranks;
        let prefill = self.planners.iter_mut().map(|planner| planner.step(limit, ranks)).sum();
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
        self.planners.iter_mut().for_each(BatchPlanner::drain);
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
        self.planners.iter().map(|planner| Arc::clone(planner.config())).collect()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot { models: self.planners.iter().flat_map(BatchPlanner::snapshots).collect() }
    }

    fn publish_snapshot(&self, published: &Mutex<Snapshot>) {
        *published.lock().unwrap_or_else(PoisonError::into_inner) = self.snapshot();
    }

    fn is_idle(&self) -> bool {
        self.planners.iter().all(BatchPlanner::is_idle)
    }

    /// The planner of a base model or of the adapter's base.
    fn planner(&mut self, model: ModelId) -> Result<&mut BatchPlanner> {
        let planner = self.planners.iter_mut().find(|planner| planner.has(model));
        Ok(planner.ok_or(RequestError::NoModel { model })?)
    }

    /// Takes a request as it comes: generations and scores go to their schedulers, jobs wait.
    fn handle_request(&mut self, request: EngineRequest) {
        if let Some(lost) = &self.lost {
            return device_lost::refuse(request, lost);
        }
        match request {
            EngineRequest::Generate(id, request, mask, events) => match self.planner(request.model) {
                Ok(planner) => planner.submit(id, request, mask, events),
                // The receiver may have been dropped; the same below.
                Err(e) => drop(events.send(crate::request::GenerateEvent::Failed(e))),
            },
            EngineRequest::Score(id, request, reply) => match self.planner(request.model) {
                Ok(planner) => planner.submit_scoring(id, request, reply),
                Err(e) => drop(reply.send(Err(e))),
            },
            EngineRequest::Cancel(model, id) => {
                if let Ok(planner) = self.planner(model) {
                    planner.cancel(id);
                }
            }
            EngineRequest::Stats(reply) => {
                let stats = self.stats();
                self.reply(&reply, stats);
            }
            EngineRequest::Pause(running, reply) => {
                self.planners.iter_mut().for_each(BatchPlanner::drain);
                self.check_step_errors();
                if running == PauseMode::Abort {
                    self.planners.iter_mut().for_each(BatchPlanner::abort_all);
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
                let report = self.forward_backward(request);
                self.reply(&reply, report);
            }
            EngineRequest::OptimStep(step, reply) => {
                let report = self.optim_step(step);
                self.reply(&reply, report);
            }
            EngineRequest::Publish(reply) => {
                let version = self.publish();
                self.reply(&reply, version);
            }
            EngineRequest::Export(reply) => {
                let state = self.export();
                self.reply(&reply, state);
            }
            EngineRequest::AddAdapter(base, adapter, reply) => {
                let model = self.add_adapter(base, adapter);
                self.reply(&reply, model);
            }
            EngineRequest::ReplaceAdapter(model, adapter, reply) => {
                let version = self.replace_adapter(model, adapter);
                self.reply(&reply, version);
            }
            EngineRequest::RemoveAdapter(model, reply) => {
                let removed = self.remove_adapter(model);
                self.reply(&reply, removed);
            }
            EngineRequest::Restore(state, reply) => {
                let restored = self.trained().and_then(|()| self.ranks.send(Order::Restore(state)).map(drop));
                self.reply(&reply, restored);
            }
            EngineRequest::ResetPrefixCache(reply) => {
                self.planners.iter_mut().for_each(|planner| planner.scheduler.reset_prefix_cache());
                self.reply(&reply, Ok(()));
            }
        }
    }

    fn stats(&self) -> Result<RuntimeStats> {
        let gpu = self.ranks.own().device().gpu()?;
        let gpu = gpu.map(|gpu| GpuStats { launches: gpu.launches(), memory: gpu.memory() });
        let models = (0..).map(ModelId).zip(&self.planners).map(|(id, planner)| (id, planner.stats())).collect();
        Ok(RuntimeStats { models, gpu })
    }

    /// Training needs a runtime that was started for it.
    fn trained(&self) -> Result<()> {
        if self.trains { Ok(()) } else { Err(RequestError::NotTraining.into()) }
    }

    fn forward_backward(&mut self, request: TrainRequest) -> Result<TrainReport> {
        match self.ranks.send(Order::ForwardBackward(request.into()))? {
            Outcome::Trained(report) => Ok(report),
            _ => unreachable!("a micro-batch has a report"),
        }
    }

    fn optim_step(&mut self, step: OptimStep) -> Result<OptimReport> {
        self.trained()?;
        match self.ranks.send(Order::OptimStep(step))? {
            Outcome::Optimized(report) => Ok(report),
            _ => unreachable!("an optimizer step has a report"),
        }
    }

    fn export(&mut self) -> Result<TrainState> {
        self.trained()?;
        match self.ranks.send(Order::Export)? {
            Outcome::State(state) => Ok(state),
            _ => unreachable!("an export has a state"),
        }
    }

    /// Makes the trained weights those that the student's requests run with.
    fn publish(&mut self) -> Result<u64> {
        self.trained()?;
        self.ranks.send(Order::Publish)?;
        Ok(self.planners[0].weights_changed(ModelId::STUDENT))
    }
}
