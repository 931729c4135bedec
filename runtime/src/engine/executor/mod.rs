//! The executor: a rank's models, pages and training state, which orders change.

mod batch;
mod graph_runner;
mod log_probs;
mod runner;
mod score;
mod sequence;
mod step;

use std::sync::Arc;

use autograd::Device;

use super::order::Order;
use crate::Result;
use crate::config::ModelConfig;
use crate::ids::ModelId;
use crate::memory::Entry;
use crate::request::{OptimReport, RequestError, RuntimeSpec, TrainReport, TrainState};
use crate::train::{DecodeLoss, TeacherSource, TrainSession};
use runner::ModelRunner;
pub(super) use score::TaskScores;
pub(super) use sequence::check_params;
pub(super) use step::StepOutcome;

/// One rank's state. It is changed by orders alone, so ranks that execute the same orders agree.
pub(super) struct Executor {
    /// One for each base model, by the number of its id.
    runners: Vec<ModelRunner>,
    /// How the first model is trained.
    training: Option<TrainSession>,
    decode_loss: DecodeLoss,
}

/// What an order gave.
pub(super) enum Outcome {
    /// It is done.
    Done,
    /// A step was launched.
    Step(StepOutcome),
    /// A micro-batch was computed.
    Trained(TrainReport),
    /// Gradients were applied, or not.
    Optimized(OptimReport),
    /// What was exported.
    State(TrainState),
}

impl Executor {
    /// Loads the models. Weights of models that are the same layers of the same files are loaded once.
    pub(super) fn new(spec: &RuntimeSpec, progress: &dyn Fn(usize, usize)) -> Result<Self> {
        let mut runners: Vec<ModelRunner> = Vec::new();
        for id in spec.ids() {
            let shared = spec.shares_weights_with(id).map(|other| runners[other.0 as usize].base().base().clone());
            runners.push(ModelRunner::load(id, spec, shared, progress)?);
        }
        let training = spec.training.as_ref().map(|t| TrainSession::new(t, runners[0].base())).transpose();
        let training = training.map_err(|e| e.while_allocating(Entry::Optimizer))?;
        Ok(Self { runners, training, decode_loss: spec.decode_loss })
    }

    /// Shapes of the base models, and pages of their KV memory.
    pub(super) fn bases(&self) -> impl Iterator<Item = (&Arc<ModelConfig>, usize)> {
        self.runners.iter().map(|runner| (runner.config(), runner.num_pages()))
    }

    /// Where the models are.
    pub(super) fn device(&self) -> Device {
        self.runners[0].base().device()
    }

    /// Executes an order.
    pub(super) fn execute(&mut self, order: Order) -> Result<Outcome> {
        match order {
            Order::Step(step) => {
                let outcome = self.runners[step.base.0 as usize].step(step);
                outcome.map(Outcome::Step).map_err(|e| e.while_allocating(Entry::Activations))
            }
            Order::ForwardBackward(order) => {
                let request = order.into_request(self.decode_loss)?;
                let student = self.runners[0].base();
                let teacher = match &request.teacher {
                    Some(TeacherSource::Resident(id)) => self.runners.iter().find_map(|runner| runner.model(*id)),
                    Some(TeacherSource::Remote(_)) | None => None,
                };
                let report = match &mut self.training {
                    Some(session) => session.forward_backward(&request, student, teacher),
                    None => crate::train::evaluate(&request, student, teacher),
                };
                report.map(Outcome::Trained).map_err(|e| e.while_allocating(Entry::Activations))
            }
            Order::OptimStep(step) => {
                let report = self.session()?.optim_step(&step);
                report.map(Outcome::Optimized).map_err(|e| e.while_allocating(Entry::Workspace))
            }
            Order::Publish => {
                let session = self.training.as_ref().ok_or(RequestError::NotTraining)?;
                let trained = session.serving_pass(self.runners[0].base());
                self.runners[0].publish(trained).map_err(|e| e.while_allocating(Entry::Copies))?;
                Ok(Outcome::Done)
            }
            Order::Export => self.session()?.export().map(Outcome::State),
            Order::Restore(state) => self.session()?.restore(state).map(|()| Outcome::Done),
            Order::AddAdapter { base, id, adapter } => {
                let added = self.runners[base.0 as usize].add_adapter(id, &adapter);
                added.map(|()| Outcome::Done).map_err(|e| e.while_allocating(Entry::Weights))
            }
            Order::ReplaceAdapter { model, adapter } => {
                let replaced = self.runner(model)?.replace_adapter(model, &adapter);
                replaced.map(|()| Outcome::Done).map_err(|e| e.while_allocating(Entry::Weights))
            }
            Order::RemoveAdapter { model } => {
                self.runner(model)?.remove_adapter(model);
                Ok(Outcome::Done)
            }
        }
    }

    /// The runner of a base model or of the adapter's base.
    fn runner(&mut self, model: ModelId) -> Result<&mut ModelRunner> {
        let runner = self.runners.iter_mut().find(|runner| runner.model(model).is_some());
        Ok(runner.ok_or(RequestError::NoModel { model })?)
    }

    fn session(&mut self) -> Result<&mut TrainSession> {
        Ok(self.training.as_mut().ok_or(RequestError::NotTraining)?)
    }
}
