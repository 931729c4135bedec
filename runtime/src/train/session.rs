//! What is trained: weights, gradients, moments.

use std::sync::Arc;

use autograd::adamw::{Moments, Step, global_norm};
use autograd::{Gradients, Tensor};

use super::TrainError;
use super::batch::{self, Watch};
use super::{NamedTensor, OptimReport, OptimStep, TrainReport, TrainRequest, TrainState, Trainable, Training};
use crate::model::{Adapter, Difference, LoadedModel, ModelParams, ModelWeights, tensors};
use crate::{Error, Result};

/// The trained copy; the base that requests share stays as it is.
enum Trained {
    Lora { adapter: Arc<Adapter>, dropout: f64, merge: bool },
    Full(Arc<ModelWeights>),
}

/// Optimizer state of a run.
pub(crate) struct TrainSession {
    trained: Trained,
    /// Layers that run again during backward.
    recomputed: usize,
    /// Name and shape in a file of every trained tensor, in order.
    names: Vec<(String, Vec<usize>)>,
    moments: Vec<Moments>,
    /// Sums since the last step, by weight.
    grads: Gradients,
    step: u64,
    finite: bool,
    /// A micro-batch failed, so the sums are incomplete.
    incomplete: bool,
}

impl TrainSession {
    /// A session that trains the student as `training` says, with zero moments.
    pub(crate) fn new(training: &Training, student: &LoadedModel) -> Result<Self> {
        let trained = match &training.trainable {
            Trainable::Lora(lora) => {
                let adapter = match &student.serving().adapter {
                    Some(adapter) => {
                        check_continues(adapter, &Adapter::init(student.config(), lora, student.device())?)?;
                        Arc::new(adapter.copied(student.base().layout())?)
                    }
                    None => Arc::new(
                        Adapter::init(student.config(), lora, student.device())?.copied(student.base().layout())?,
                    ),
                };
                Trained::Lora { adapter, dropout: lora.dropout, merge: lora.merge_for_requests }
            }
            Trainable::Full => {
                if student.serving().adapter.is_some() {
                    return Err(Error::Lora(
                        "a full fine-tune cannot start from an adapter; merge it first".to_owned(),
                    ));
                }
                Trained::Full(Arc::new(student.base().copied()?))
            }
        };
        let names = match &trained {
            Trained::Lora { adapter, .. } => adapter.named().map(|(name, t)| (name, t.shape().to_vec())).collect(),
            Trained::Full(_) => tensors(student.config()).into_iter().map(|spec| (spec.name, spec.shape)).collect(),
        };
        let recomputed = training.recomputed_layers;
        let mut session = Self {
            trained,
            recomputed,
            names,
            moments: vec![],
            grads: Gradients::default(),
            step: 0,
            finite: true,
            incomplete: false,
        };
        let zeros = if training.offload.optimizer { Moments::zeros_offloaded } else { Moments::zeros };
        session.moments = session.weights().map(zeros).collect::<Result<_, _>>()?;
        Ok(session)
    }

    fn weights(&self) -> Box<dyn Iterator<Item = &Tensor> + '_> {
        match &self.trained {
            Trained::Lora { adapter, .. } => Box::new(adapter.named().map(|(_, t)| t)),
            Trained::Full(weights) => Box::new(weights.iter()),
        }
    }

    /// How the trained weights answer requests.
    pub(crate) fn serving_pass(&self, student: &LoadedModel) -> ModelParams {
        match &self.trained {
            Trained::Lora { adapter, merge, .. } => {
                ModelParams { merge: *merge, ..ModelParams::inference(student.base().clone(), Some(adapter.clone())) }
            }
            Trained::Full(weights) => ModelParams::inference(weights.clone(), None),
        }
    }

    fn training_pass(&self, student: &LoadedModel, request: &TrainRequest) -> ModelParams {
        let mut pass = self.serving_pass(student);
        pass.recomputed = self.recomputed;
        if let Trained::Lora { dropout, .. } = self.trained
            && dropout > 0.0
            && request.backward
        {
            pass.dropout = Some(autograd::ops::Dropout { probability: dropout, key: request.dropout_key });
        }
        pass
    }

    /// One micro-batch; gradients add up.
    pub(crate) fn forward_backward(
        &mut self,
        request: &TrainRequest,
        student: &LoadedModel,
        teacher: Option<&LoadedModel>,
    ) -> Result<TrainReport> {
        let pass = self.training_pass(student, request);
        let weights: Vec<Tensor> = self.weights().cloned().collect();
        let watch = if request.backward {
            Watch::Weights { weights: &weights, sums: std::mem::take(&mut self.grads) }
        } else {
            Watch::Nothing
        };
        let (report, gradients) = batch::run(request, student, teacher, &pass, watch).inspect_err(|_| {
            self.incomplete |= request.backward;
        })?;
        self.finite &= report.loss.is_finite() || !request.backward;
        if let Some(gradients) = gradients {
            self.grads = gradients;
        }
        Ok(report)
    }

    /// Clips, updates and clears the gradients.
    pub(crate) fn optim_step(&mut self, request: &OptimStep) -> Result<OptimReport> {
        let mut sums = std::mem::take(&mut self.grads);
        let finite = std::mem::replace(&mut self.finite, true);
        if std::mem::take(&mut self.incomplete) {
            return Err(TrainError::IncompleteGradients.into());
        }
        let grads: Vec<Option<Tensor>> = self.weights().map(|weight| sums.remove(weight)).collect();
        let grad_norm = global_norm(&grads.iter().flatten().collect::<Vec<_>>())?;
        let applied = finite && grad_norm.is_finite();
        if applied {
            let excess = request.max_grad_norm.map_or(1.0, |max| grad_norm / max).max(1.0);
            let step = Step { lr: request.lr, number: self.step + 1, grad_scale: 1.0 / excess };
            self.update(&grads, request, step)?;
            self.step += 1;
        }
        Ok(OptimReport { grad_norm, applied, step: self.step })
    }

    fn update(&mut self, grads: &[Option<Tensor>], request: &OptimStep, step: Step) -> Result<()> {
        let weights: Vec<&mut Tensor> = match &mut self.trained {
            Trained::Lora { adapter, .. } => Arc::make_mut(adapter).iter_mut().collect(),
            Trained::Full(weights) => Arc::make_mut(weights).iter_mut().collect(),
        };
        let state = weights.into_iter().zip(grads.iter().zip(&mut self.moments));
        let mut trained: Vec<(&mut Tensor, &Tensor, &mut Moments)> =
            state.filter_map(|(weight, (grad, moments))| Some((weight, grad.as_ref()?, moments))).collect();
        Ok(request.adamw.update_all(&mut trained, step)?)
    }

    /// Everything that a resumed run needs.
    pub(crate) fn export(&self) -> Result<TrainState> {
        let named = |name: String, t: &Tensor, shape: &[usize]| -> Result<NamedTensor> {
            Ok(NamedTensor { name, shape: shape.to_vec(), values: t.read()? })
        };
        let trained = self.names.iter().zip(self.weights()).zip(&self.moments);
        let weights = trained.map(|(((name, shape), t), moments)| named(name.clone(), moments.master(t), shape));
        let moments = self.names.iter().zip(&self.moments).flat_map(|((name, shape), moments)| {
            [("m", &moments.m), ("v", &moments.v)].map(|(side, t)| named(format!("{name}.{side}"), t, shape))
        });
        Ok(TrainState {
            weights: weights.collect::<Result<_>>()?,
            moments: moments.collect::<Result<_>>()?,
            step: self.step,
        })
    }

    /// Puts an exported state back, tensor by tensor in the memory of the present one; all names and lengths are checked
    /// before the first.
    pub(crate) fn restore(&mut self, state: TrainState) -> Result<()> {
        self.check_restores(&state)?;
        let mut moments = state.moments.into_iter();
        for (own, weight) in self.moments.iter_mut().zip(&state.weights) {
            for tensor in [&mut own.m, &mut own.v] {
                tensor.set(moments.next().expect("two for each weight, as was checked").values)?;
            }
            if let Some(master) = &mut own.master {
                master.set(weight.values.clone())?;
            }
        }
        let weights: Vec<&mut Tensor> = match &mut self.trained {
            Trained::Lora { adapter, .. } => Arc::make_mut(adapter).iter_mut().collect(),
            Trained::Full(model) => Arc::make_mut(model).iter_mut().collect(),
        };
        for (own, weight) in weights.into_iter().zip(state.weights) {
            own.set(weight.values)?;
        }
        (self.step, self.finite, self.incomplete) = (state.step, true, false);
        self.grads = Gradients::default();
        Ok(())
    }

    fn check_restores(&self, state: &TrainState) -> Result<()> {
        if state.weights.len() != self.names.len() || state.moments.len() != 2 * self.names.len() {
            let (got, want) = (state.weights.len(), self.names.len());
            return Err(Error::Restore(format!(
                "{got} weights and {} moments for {want} trained tensors",
                state.moments.len()
            )));
        }
        let check = |name: &str, weight: &Tensor, from: &NamedTensor| {
            let want = weight.rows() * weight.cols();
            if from.name == name && from.values.len() == want {
                return Ok(());
            }
            let got = from.values.len();
            Err(Error::Restore(format!("expected {name} with {want} values, found {} with {got}", from.name)))
        };
        for (i, ((name, _), weight)) in self.names.iter().zip(self.weights()).enumerate() {
            check(name, weight, &state.weights[i])?;
            check(&format!("{name}.m"), weight, &state.moments[2 * i])?;
            check(&format!("{name}.v"), weight, &state.moments[2 * i + 1])?;
        }
        Ok(())
    }
}

/// An adapter is saved with the configuration's ranks and scales, so one that is continued must have them.
fn check_continues(adapter: &Adapter, configured: &Adapter) -> Result<()> {
    let Some(Difference { module, ours, theirs }) = adapter.first_difference(configured) else { return Ok(()) };
    let form = |branch: Option<(usize, f32)>| match branch {
        Some((rank, scale)) => format!("rank {rank} and scale {scale}"),
        None => "no branch".to_owned(),
    };
    Err(Error::Lora(format!(
        "the adapter to continue has {} at {module}, the configuration {}: set r, alpha, rslora, target_modules and \
         the patterns as the adapter has them",
        form(ours),
        form(theirs)
    )))
}
