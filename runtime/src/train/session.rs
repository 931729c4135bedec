//! What is trained: weights, gradients, moments.

use std::sync::Arc;

use autograd::adamw::{Moments, Step, global_norm};
use autograd::{Gradients, Tensor};

use super::batch::{self, Watch};
use crate::engine::SlotEngine;
use crate::model::{Adapter, Difference, ModelWeights, Pass, tensors};
use crate::request::{NamedTensor, OptimReport, OptimStep, TrainReport, TrainRequest, TrainState, Training};
use crate::{Error, Result};

/// The trained copy; the base that requests share stays as it is.
enum Trained {
    Lora { adapter: Arc<Adapter>, dropout: f64, merge: bool },
    Full(Arc<ModelWeights>),
}

/// Optimizer state of a run.
pub(crate) struct TrainSession {
    trained: Trained,
    checkpointing: bool,
    /// Name and shape in a file of every trained tensor, in order.
    names: Vec<(String, Vec<usize>)>,
    moments: Vec<Moments>,
    grads: Vec<Option<Tensor>>,
    step: u64,
    finite: bool,
}

impl TrainSession {
    /// A session that trains the student as `training` says, with zero moments.
    pub(crate) fn new(training: &Training, student: &SlotEngine) -> Result<Self> {
        let (trained, checkpointing) = match training {
            Training::Lora(lora) => {
                let adapter = match &student.serving().adapter {
                    Some(adapter) => {
                        check_continues(adapter, &Adapter::init(student.config(), lora, student.device())?)?;
                        Arc::new(adapter.copied()?)
                    }
                    None => Arc::new(Adapter::init(student.config(), lora, student.device())?.copied()?),
                };
                (
                    Trained::Lora { adapter, dropout: lora.dropout, merge: lora.merge_for_requests },
                    lora.gradient_checkpointing,
                )
            }
            Training::Full { gradient_checkpointing } => {
                if student.serving().adapter.is_some() {
                    return Err(Error::Lora(
                        "a full fine-tune cannot start from an adapter; merge it first".to_owned(),
                    ));
                }
                (Trained::Full(Arc::new(student.weights().copied()?)), *gradient_checkpointing)
            }
        };
        let names = match &trained {
            Trained::Lora { adapter, .. } => adapter.named().map(|(name, t)| (name, t.shape().to_vec())).collect(),
            Trained::Full(_) => tensors(student.config()).into_iter().map(|spec| (spec.name, spec.shape)).collect(),
        };
        let mut session = Self { trained, checkpointing, names, moments: vec![], grads: vec![], step: 0, finite: true };
        session.moments = session.weights().map(Moments::zeros).collect::<Result<_, _>>()?;
        session.grads = vec![None; session.moments.len()];
        Ok(session)
    }

    fn weights(&self) -> Box<dyn Iterator<Item = &Tensor> + '_> {
        match &self.trained {
            Trained::Lora { adapter, .. } => Box::new(adapter.named().map(|(_, t)| t)),
            Trained::Full(weights) => Box::new(weights.iter()),
        }
    }

    /// How the trained weights answer requests.
    pub(crate) fn serving_pass(&self, student: &SlotEngine) -> Pass {
        match &self.trained {
            Trained::Lora { adapter, merge, .. } => {
                Pass { merge: *merge, ..Pass::inference(student.weights(), Some(adapter.clone())) }
            }
            Trained::Full(weights) => Pass::inference(weights.clone(), None),
        }
    }

    fn training_pass(&self, student: &SlotEngine, request: &TrainRequest) -> Pass {
        let mut pass = self.serving_pass(student);
        pass.checkpointing = self.checkpointing;
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
        student: &SlotEngine,
        teacher: Option<&SlotEngine>,
    ) -> Result<TrainReport> {
        let pass = self.training_pass(student, request);
        let weights: Vec<Tensor> = self.weights().cloned().collect();
        let watch = if request.backward { Watch::Weights(&weights) } else { Watch::Nothing };
        let (report, gradients) = batch::run(request, student, teacher, &pass, watch)?;
        self.finite &= report.loss.is_finite();
        if let Some(gradients) = gradients {
            self.collect(&weights, gradients)?;
        }
        Ok(report)
    }

    fn collect(&mut self, weights: &[Tensor], mut gradients: Gradients) -> Result<()> {
        for (sum, weight) in self.grads.iter_mut().zip(weights) {
            let Some(new) = gradients.remove(weight) else { continue };
            *sum = Some(match sum.take() {
                Some(old) => old.accumulate(&new)?,
                None => new,
            });
        }
        Ok(())
    }

    /// Clips, updates and clears the gradients.
    pub(crate) fn optim_step(&mut self, request: &OptimStep) -> Result<OptimReport> {
        let grads: Vec<Option<Tensor>> = self.grads.iter_mut().map(Option::take).collect();
        let grad_norm = global_norm(&grads.iter().flatten().collect::<Vec<_>>())?;
        let applied = std::mem::replace(&mut self.finite, true) && grad_norm.is_finite();
        if applied {
            let excess = request.max_grad_norm.map_or(1.0, |max| grad_norm / max).max(1.0);
            self.step += 1;
            let step = Step { lr: request.lr, number: self.step, grad_scale: 1.0 / excess };
            self.update(&grads, request, step)?;
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

    /// Puts an exported state back.
    pub(crate) fn restore(&mut self, state: TrainState) -> Result<()> {
        let restored = |like: &Tensor, name: &str, from: &NamedTensor| -> Result<Tensor> {
            let shape = like.shape();
            let len = shape[0] * shape[1];
            if from.name != name || from.values.len() != len {
                let (got, want) = (from.values.len(), len);
                let detail = format!("expected {name} with {want} values, found {} with {got}", from.name);
                return Err(Error::Restore(detail));
            }
            Ok(like.with_values(from.values.clone())?)
        };
        if state.weights.len() != self.names.len() || state.moments.len() != 2 * self.names.len() {
            let (got, want) = (state.weights.len(), self.names.len());
            return Err(Error::Restore(format!(
                "{got} weights and {} moments for {want} trained tensors",
                state.moments.len()
            )));
        }
        let old: Vec<Tensor> = self.weights().cloned().collect();
        let mut weights = Vec::with_capacity(old.len());
        let mut moments = Vec::with_capacity(old.len());
        for (i, ((name, _), like)) in self.names.iter().zip(&old).enumerate() {
            weights.push(restored(like, name, &state.weights[i])?);
            let Moments { m, v, master } = &self.moments[i];
            moments.push(Moments {
                m: restored(m, &format!("{name}.m"), &state.moments[2 * i])?,
                v: restored(v, &format!("{name}.v"), &state.moments[2 * i + 1])?,
                master: master.as_ref().map(|like| restored(like, name, &state.weights[i])).transpose()?,
            });
        }
        match &mut self.trained {
            Trained::Lora { adapter, .. } => replace(Arc::make_mut(adapter).iter_mut(), weights),
            Trained::Full(model) => replace(Arc::make_mut(model).iter_mut(), weights),
        }
        (self.moments, self.step, self.finite) = (moments, state.step, true);
        self.grads.fill(None);
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

fn replace<'a>(places: impl Iterator<Item = &'a mut Tensor>, values: Vec<Tensor>) {
    for (place, value) in places.zip(values) {
        *place = value;
    }
}
