//! The engine: the one thread that owns the device.
//!
//! Generations and scores of a slot share its continuous batch. Everything else is a job (a micro-batch, an optimizer step, new
//! weights): jobs run in order of arrival between two steps, when no step is in flight. `turns` says whose turn it is, and
//! `pace` how much a step does beside generations that somebody reads.

mod adapters;
mod card;
mod generation;
mod lost;
mod pace;
pub(crate) mod score;
mod slot;
mod step;
mod turns;

use std::collections::{BTreeMap, VecDeque};
use std::mem::{Discriminant, discriminant};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use autograd::Device;
use autograd::cuda::{Gpu, Mode};

use crate::config::ModelConfig;
use crate::handle::Work;
use crate::memory::Entry;
use crate::request::{GpuStats, RuntimeSpec, RuntimeStats, Slot, Snapshot, Standing};
use crate::train::TrainSession;
use crate::{Error, Result};

use pace::{Pace, Round};
pub(crate) use slot::{SlotEngine, kv_pages, kv_pool};
use turns::{Turn, Turns, Waiting};

/// Everything on the device.
pub(crate) struct Engine {
    student: SlotEngine,
    teacher: Option<SlotEngine>,
    training: Option<TrainSession>,
    /// Adapters on the student's base, by number.
    adapters: BTreeMap<u32, SlotEngine>,
    next_adapter: u32,
    /// Work that runs between two steps, in order of arrival.
    jobs: VecDeque<Work>,
    turns: Turns<Discriminant<Work>>,
    /// Bounds the steps beside running generations, where that was asked for.
    pace: Option<Pace>,
    /// What it was started with.
    spec: RuntimeSpec,
    /// Keeps a GPU in the mode that was asked for.
    _mode: Option<Mode>,
    /// No step is launched.
    paused: bool,
    /// How the device was lost; nothing is asked of it any more.
    lost: Option<Error>,
}

impl Engine {
    /// Loads the models. When student and teacher are the same layers of the same files, the weights are loaded once.
    pub(crate) fn new(spec: &RuntimeSpec, progress: &dyn Fn(usize, usize)) -> Result<Self> {
        let mode = hold_mode(spec)?;
        let student = SlotEngine::load(Slot::Student, &spec.student, spec, None, progress)?;
        let teacher = match &spec.teacher {
            None => None,
            Some(teacher) => {
                let shared = spec.teacher_shares_weights().then(|| student.weights());
                Some(SlotEngine::load(Slot::Teacher, teacher, spec, shared, progress)?)
            }
        };
        let training = spec.training.as_ref().map(|t| TrainSession::new(t, &student)).transpose();
        let training = training.map_err(|e| e.asked_as(Entry::Optimizer))?;
        let mut engine = Self {
            student,
            teacher,
            training,
            adapters: BTreeMap::new(),
            next_adapter: 0,
            jobs: VecDeque::new(),
            turns: Turns::new(),
            pace: spec.engine.short_steps.then(|| Pace::new(spec.engine.overlap)),
            spec: spec.clone(),
            paused: false,
            lost: None,
            _mode: mode,
        };
        if engine.training.is_some() {
            engine.publish().map_err(|e| e.asked_as(Entry::Copies))?;
        }
        Ok(engine)
    }

    /// Answers work until every handle is gone; `published` follows.
    pub(crate) fn run(&mut self, work: &Receiver<Work>, published: &Mutex<Snapshot>) {
        // How long a step took that has just been done.
        let mut stepped = None;
        loop {
            loop {
                let rests = (self.paused || self.is_idle()) && self.jobs.is_empty();
                let next = if rests { work.recv().map_err(|_| TryRecvError::Disconnected) } else { work.try_recv() };
                match next {
                    Ok(item) => {
                        self.hear(item);
                        self.publish_snapshot(published);
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if let Some((ended, time)) = stepped.take() {
                self.turns.step_took(ended, time, !self.jobs.is_empty());
            }
            let waiting = self.waiting();
            match self.turns.next(Instant::now(), waiting) {
                Turn::Job => self.run_job(),
                Turn::Step => stepped = Some(self.step()),
                Turn::Wait(until) => match work.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(item) => {
                        self.hear(item);
                        if !self.jobs.is_empty() {
                            self.turns.waited(true);
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => self.turns.waited(false),
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            }
            self.publish_snapshot(published);
        }
    }

    /// What waits for the device. New weights wait for the scores that the old ones have begun; under a pause, when nobody goes
    /// on with these, they begin again.
    fn waiting(&mut self) -> Waiting {
        let changes = match self.jobs.front() {
            Some(Work::Publish(_)) => Some(Slot::Student),
            Some(Work::ReplaceAdapter(slot, ..)) => Some(*slot),
            _ => None,
        };
        let paused = self.paused;
        let changing = changes.and_then(|slot| self.slot(slot).ok());
        let ready = changing.is_none_or(|slot| {
            if paused {
                slot.restart_scores();
            }
            slot.scores.held = slot.begun();
            !slot.scores.held
        });
        Waiting { job: self.jobs.front().map(|_| ready), steps: !paused && !self.is_idle() }
    }

    /// A step of every model; when it ended, and how long it took.
    fn step(&mut self) -> (Instant, Duration) {
        let started = Instant::now();
        let streams = self.slots().any(|slot| slot.scheduler.has_decodes());
        let busy = self.slots().filter(|slot| !slot.is_idle()).count().max(1);
        let limit = self.pace.as_ref().map_or(usize::MAX, |pace| pace.prefill(streams).div_ceil(busy));
        let prefill = self.slots().map(|slot| slot.step(limit)).sum();
        let (now, time) = (Instant::now(), started.elapsed());
        if let Some(pace) = &mut self.pace {
            pace.took(time, Round { streams, prefill });
        }
        self.look_at_errors();
        (now, time)
    }

    /// Does the oldest job.
    fn run_job(&mut self) {
        let Some(job) = self.jobs.pop_front() else { return };
        let (started, kind) = (Instant::now(), discriminant(&job));
        let requests_wait = !self.is_idle();
        self.slots().for_each(SlotEngine::drain);
        self.look_at_errors();
        if let Some(pace) = &mut self.pace {
            pace.drained();
        }
        match &self.lost {
            Some(lost) => lost::refuse(job, lost),
            None => self.answer(job),
        }
        self.turns.job_took(kind, Instant::now(), started.elapsed(), requests_wait);
    }

    pub(crate) fn student_config(&self) -> Arc<ModelConfig> {
        self.student.decoder().config.clone()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let teacher = self.teacher.as_ref().map(SlotEngine::snapshot);
        let adapters = self.adapters.iter().map(|(&number, slot)| (number, slot.snapshot())).collect();
        Snapshot { student: self.student.snapshot(), teacher, adapters }
    }

    fn publish_snapshot(&self, published: &Mutex<Snapshot>) {
        *published.lock().unwrap_or_else(PoisonError::into_inner) = self.snapshot();
    }

    fn slots(&mut self) -> impl Iterator<Item = &mut SlotEngine> {
        let models = [Some(&mut self.student), self.teacher.as_mut()].into_iter().flatten();
        models.chain(self.adapters.values_mut())
    }

    fn is_idle(&self) -> bool {
        let models = self.student.is_idle() && self.teacher.as_ref().is_none_or(SlotEngine::is_idle);
        models && self.adapters.values().all(SlotEngine::is_idle)
    }

    fn slot(&mut self, slot: Slot) -> Result<&mut SlotEngine> {
        match slot {
            Slot::Student => Ok(&mut self.student),
            Slot::Teacher => {
                self.teacher.as_mut().ok_or_else(|| Error::Request("this runtime holds no teacher".to_owned()))
            }
            Slot::Adapter(number) => self
                .adapters
                .get_mut(&number)
                .ok_or_else(|| Error::Request(format!("adapter {number} is not loaded (any more)"))),
        }
    }

    /// Takes work as it comes: requests go to their schedulers, jobs wait for their turn.
    fn hear(&mut self, work: Work) {
        if let Some(lost) = &self.lost {
            return lost::refuse(work, lost);
        }
        match work {
            Work::Generate(id, request, mask, events) => match self.slot(request.slot) {
                Ok(slot) => slot.submit(id, request, mask, events),
                // A receiver that is gone asked for nothing any more; the same below.
                Err(e) => drop(events.send(crate::request::GenerateEvent::Failed(e))),
            },
            Work::Score(id, request) => match self.slot(request.slot) {
                Ok(slot) => slot.submit_scoring(id, request),
                Err(e) => drop(request.reply.send(Err(e))),
            },
            Work::Cancel(slot, id) => {
                if let Ok(slot) = self.slot(slot) {
                    slot.cancel(id);
                }
            }
            Work::Stats(reply) => {
                let stats = self.stats();
                self.reply(&reply, stats);
            }
            Work::Pause(running, reply) => {
                self.slots().for_each(SlotEngine::drain);
                self.look_at_errors();
                if running == Standing::Abort {
                    self.slots().for_each(SlotEngine::abort_all);
                }
                self.paused = true;
                self.reply(&reply, Ok(()));
            }
            Work::Resume(reply) => {
                self.paused = false;
                self.reply(&reply, Ok(()));
            }
            job => self.jobs.push_back(job),
        }
    }

    /// Does a job. No step is in flight.
    fn answer(&mut self, job: Work) {
        match job {
            Work::Generate(..)
            | Work::Score(..)
            | Work::Cancel(..)
            | Work::Stats(_)
            | Work::Pause(..)
            | Work::Resume(_) => {
                unreachable!("what is no job is answered as it comes")
            }
            Work::ForwardBackward(request, reply) => {
                let (teacher, training) = (self.teacher.as_ref(), self.training.as_mut());
                let report = match training {
                    Some(session) => session.forward_backward(&request, &self.student, teacher),
                    None => crate::train::evaluate(&request, &self.student, teacher),
                };
                self.reply(&reply, report.map_err(|e| e.asked_as(Entry::Activations)));
            }
            Work::OptimStep(step, reply) => {
                let report = self.session().and_then(|s| s.optim_step(&step));
                self.reply(&reply, report.map_err(|e| e.asked_as(Entry::Workspace)));
            }
            Work::Publish(reply) => {
                let version = self.publish();
                self.reply(&reply, version.map_err(|e| e.asked_as(Entry::Copies)));
            }
            Work::Export(reply) => {
                let state = self.session().and_then(|s| s.export());
                self.reply(&reply, state);
            }
            Work::AddAdapter(file, pool, reply) => {
                let slot = self.add_adapter(&file, pool);
                self.reply(&reply, slot.map_err(|e| e.asked_as(Entry::Kv)));
            }
            Work::ReplaceAdapter(slot, file, reply) => {
                let version = self.replace_adapter(slot, &file);
                self.reply(&reply, version.map_err(|e| e.asked_as(Entry::Weights)));
            }
            Work::RemoveAdapter(slot, reply) => {
                let removed = self.remove_adapter(slot);
                self.reply(&reply, removed);
            }
            Work::Restore(state, reply) => {
                let restored = self.session().and_then(|s| s.restore(state));
                self.reply(&reply, restored);
            }
            Work::ResetPrefixCache(reply) => {
                self.slots().for_each(|slot| slot.scheduler.reset_prefix_cache());
                self.reply(&reply, Ok(()));
            }
        }
    }

    fn stats(&self) -> Result<RuntimeStats> {
        let gpu = match self.student.device() {
            Device::Cpu | Device::Portable => None,
            Device::Cuda(ordinal) => {
                let gpu = Gpu::get(ordinal)?;
                Some(GpuStats { launches: gpu.launches(), memory: gpu.memory() })
            }
        };
        let (student, student_steps) = self.student.stats();
        let (teacher, teacher_steps) = self.teacher.as_ref().map(SlotEngine::stats).unzip();
        Ok(RuntimeStats { student, teacher, student_steps, teacher_steps, gpu })
    }

    fn session(&mut self) -> Result<&mut TrainSession> {
        self.training.as_mut().ok_or_else(|| Error::Request("this runtime was started without training".to_owned()))
    }

    /// Hands the trained weights to the student's slot.
    fn publish(&mut self) -> Result<u64> {
        let session = self.training.as_ref();
        let session = session.ok_or_else(|| Error::Request("this runtime was started without training".to_owned()))?;
        self.student.publish(session.serving_pass(&self.student))
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
