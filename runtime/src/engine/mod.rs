//! The engine: the one thread that owns the device and answers all work in order of arrival.
//!
//! Generations of a slot share its continuous batch; scoring and training steps run between two steps of it, when no
//! step is in flight.

mod adapters;
mod card;
mod continuation;
mod generation;
mod grade;
mod lost;
mod score;
mod slot;
mod step;

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Mutex, PoisonError};

use autograd::Device;
use autograd::cuda::{Gpu, Mode};

use crate::handle::Work;
use crate::memory::Entry;
use crate::request::{GpuStats, RuntimeSpec, RuntimeStats, Slot, Snapshot, Standing};
use crate::train::TrainSession;
use crate::{Error, Result};

pub(crate) use slot::SlotEngine;

/// Everything on the device.
pub(crate) struct Engine {
    student: SlotEngine,
    teacher: Option<SlotEngine>,
    training: Option<TrainSession>,
    /// Adapters on the student's base, by number.
    adapters: BTreeMap<u32, SlotEngine>,
    next_adapter: u32,
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
        let (adapters, spec) = (BTreeMap::new(), spec.clone());
        let mut engine = Self {
            student,
            teacher,
            training,
            adapters,
            next_adapter: 0,
            spec,
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
        loop {
            loop {
                let waits = self.paused || self.is_idle();
                let next = if waits { work.recv().map_err(|_| TryRecvError::Disconnected) } else { work.try_recv() };
                match next {
                    Ok(item) => {
                        self.answer(item);
                        self.publish_snapshot(published);
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.slots().for_each(SlotEngine::step);
            self.look_at_errors();
            self.publish_snapshot(published);
        }
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

    fn answer(&mut self, work: Work) {
        if let Some(lost) = &self.lost {
            return lost::refuse(work, lost);
        }
        if !matches!(work, Work::Generate(..) | Work::Continuation(..) | Work::Cancel(..) | Work::Stats(_)) {
            self.slots().for_each(SlotEngine::drain);
            self.look_at_errors();
        }
        match work {
            Work::Generate(id, request, mask, events) => match self.slot(request.slot) {
                Ok(slot) => slot.submit(id, request, mask, events),
                // A receiver that is gone asked for nothing any more; the same below.
                Err(e) => drop(events.send(crate::request::GenerateEvent::Failed(e))),
            },
            Work::Continuation(id, request, reply) => match self.slot(request.slot) {
                Ok(slot) => slot.submit_scoring(id, request, reply),
                Err(e) => drop(reply.send(Err(e))),
            },
            Work::Cancel(slot, id) => {
                if let Ok(slot) = self.slot(slot) {
                    slot.cancel(id);
                }
            }
            Work::Score(request, reply) => {
                let score = self.slot(request.slot).and_then(|slot| slot.score(&request));
                self.reply(&reply, score.map_err(|e| e.asked_as(Entry::Activations)));
            }
            Work::Grade(request, reply) => {
                let graded = self.slot(request.slot).and_then(|slot| slot.grade(&request));
                self.reply(&reply, graded.map_err(|e| e.asked_as(Entry::Activations)));
            }
            Work::Embed(request, reply) => {
                let vector = self.slot(request.slot).and_then(|slot| slot.embed(&request));
                self.reply(&reply, vector.map_err(|e| e.asked_as(Entry::Activations)));
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
            Work::AddAdapter(folder, reply) => {
                let slot = self.add_adapter(folder);
                self.reply(&reply, slot.map_err(|e| e.asked_as(Entry::Kv)));
            }
            Work::ReplaceAdapter(slot, folder, reply) => {
                let version = self.replace_adapter(slot, folder);
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
            Work::Pause(running, reply) => {
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
            Work::ResetPrefixCache(reply) => {
                self.slots().for_each(|slot| slot.scheduler.reset_prefix_cache());
                self.reply(&reply, Ok(()));
            }
            Work::Stats(reply) => {
                let stats = self.stats();
                self.reply(&reply, stats);
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
