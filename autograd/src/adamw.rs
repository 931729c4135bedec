//! AdamW on f32 masters (<https://arxiv.org/abs/1711.05101>), as PyTorch computes it.

use rayon::prelude::*;

use crate::cuda::optimizer::{self, Offloaded, Trained};
use crate::cuda::{Array, Gpu, HostArray};
use crate::{Device, Error, Result, Tensor};

/// Constants of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
}

/// What changes from step to step.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Learning rate.
    pub lr: f64,
    /// Number of this step, from 1.
    pub number: u64,
    /// Factor on the gradient (clipping).
    pub grad_scale: f64,
}

/// Running means of a weight's gradient and of its square, in the weight's layout and in f32.
#[derive(Debug, Clone)]
pub struct Moments {
    /// First moment.
    pub m: Tensor,
    /// Second moment.
    pub v: Tensor,
    /// The weight itself in f32, where the device keeps weights in less.
    pub master: Option<Tensor>,
}

/// Scalars of one update, rounded once.
struct Factors {
    grad: f32,
    decay: f32,
    /// `1 - beta1` and `1 - beta2` from the f64 constants: 1 - 0.999 in f32 is off by 5e-5.
    rest1: f32,
    beta2: f32,
    rest2: f32,
    step: f32,
    root: f32,
    eps: f32,
}

impl AdamW {
    fn factors(&self, step: Step) -> Factors {
        let n = step.number as i32;
        Factors {
            grad: step.grad_scale as f32,
            decay: (1.0 - step.lr * self.weight_decay) as f32,
            rest1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            rest2: (1.0 - self.beta2) as f32,
            step: (step.lr / (1.0 - self.beta1.powi(n))) as f32,
            root: (1.0 / (1.0 - self.beta2.powi(n)).sqrt()) as f32,
            eps: self.eps as f32,
        }
    }

    /// Updates a weight and its moments in place; other holders of the weight keep the old values, except on a GPU.
    ///
    /// # Errors
    /// The device is out of memory or lost.
    ///
    /// # Panics
    /// When gradient or moments differ from the weight in shape, layout or device.
    pub fn update(&self, weight: &mut Tensor, grad: &Tensor, moments: &mut Moments, step: Step) -> Result<()> {
        assert_eq!((weight.shape(), weight.layout()), (grad.shape(), grad.layout()), "gradient of another weight");
        let f = self.factors(step);
        match weight.device() {
            Device::Cpu => native(weight, grad, moments, &f),
            Device::Cuda(_) => on_gpu(&mut [(weight, grad, moments)], &f)?,
            Device::Reference => reference(weight, grad, moments, &f),
        }
        Ok(())
    }
}

impl AdamW {
    /// [`AdamW::update`] of many weights at once.
    ///
    /// # Errors
    /// The device is out of memory or lost.
    ///
    /// # Panics
    /// As [`AdamW::update`].
    pub fn update_all(&self, trained: &mut [(&mut Tensor, &Tensor, &mut Moments)], step: Step) -> Result<()> {
        if trained.first().is_some_and(|(weight, ..)| matches!(weight.device(), Device::Cuda(_))) {
            return on_gpu(trained, &self.factors(step));
        }
        trained.iter_mut().try_for_each(|(weight, grad, moments)| self.update(weight, grad, moments, step))
    }
}

/// Takes a tensor's values for writing, applies `f`, puts them back.
fn edit<R>(t: &mut Tensor, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let (shape, layout) = (t.shape(), t.layout());
    let taken = std::mem::replace(t, Tensor::cpu(vec![], [0, 0]));
    let mut values = taken.into_raw();
    let result = f(&mut values);
    *t = Tensor::cpu_with_layout(values, shape, layout);
    result
}

fn native(weight: &mut Tensor, grad: &Tensor, moments: &mut Moments, f: &Factors) {
    const BLOCK: usize = 1 << 14;
    let Moments { m, v, .. } = moments;
    edit(weight, |w| {
        edit(m, |m| {
            edit(v, |v| {
                let blocks = w.par_chunks_mut(BLOCK).zip(m.par_chunks_mut(BLOCK)).zip(v.par_chunks_mut(BLOCK));
                blocks.zip(grad.raw().par_chunks(BLOCK)).for_each(|(((w, m), v), g)| {
                    for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
                        let g = g * f.grad;
                        *m += f.rest1 * (g - *m);
                        *v = f.beta2 * *v + f.rest2 * g * g;
                        *w = *w * f.decay - f.step * *m / (v.sqrt() * f.root + f.eps);
                    }
                });
            });
        });
    });
}

/// The masters are updated and rounded to the weights' own precision, in place: whoever holds a weight sees it.
fn on_gpu(trained: &mut [(&mut Tensor, &Tensor, &mut Moments)], f: &Factors) -> Result<()> {
    let factors = [f.grad, f.decay, f.rest1, f.beta2, f.rest2, f.step, f.root, f.eps];
    let offloaded = trained.iter().filter_map(|(weight, grad, moments)| {
        Some(Offloaded { weight: weight.array(), grad: grad.array(), state: moments.offloaded()? })
    });
    let offloaded: Vec<Offloaded<'_>> = offloaded.collect();
    if !offloaded.is_empty() {
        assert_eq!(offloaded.len(), trained.len(), "all state is on the host, or none");
        return optimizer::adamw_offloaded(&offloaded, factors);
    }
    let rows: Vec<Trained<'_>> = trained
        .iter()
        .map(|(weight, grad, moments)| Trained {
            weight: weight.array(),
            grad: grad.array(),
            master: moments.master(weight).array(),
            moments: [moments.m.array(), moments.v.array()],
        })
        .collect();
    optimizer::adamw(&rows, factors)
}

fn reference(weight: &mut Tensor, grad: &Tensor, moments: &mut Moments, f: &Factors) {
    let g = grad.burn().mul_scalar(f.grad);
    let m = moments.m.burn() + (g.clone() - moments.m.burn()).mul_scalar(f.rest1);
    let v = moments.v.burn().mul_scalar(f.beta2) + g.powi_scalar(2).mul_scalar(f.rest2);
    let root = v.clone().sqrt().mul_scalar(f.root).add_scalar(f.eps);
    let w = weight.burn().mul_scalar(f.decay) - m.clone().mul_scalar(f.step) / root;
    *weight = Tensor::reference(w);
    *moments = Moments { m: Tensor::reference(m), v: Tensor::reference(v), master: None };
}

impl Moments {
    /// Zero moments for `weight`.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn zeros(weight: &Tensor) -> Result<Self> {
        let master = match weight.device() {
            Device::Cuda(_) => Some(Tensor::cuda(weight.array().to_f32()?, weight.shape())),
            Device::Cpu | Device::Reference => None,
        };
        Ok(Self { m: weight.zeros_like()?, v: weight.zeros_like()?, master })
    }

    /// Zero moments for `weight`, and its master, in the host's memory: they pass through the GPU in every update.
    ///
    /// # Errors
    /// [`Error::Device`] on a device that is no GPU; the host has no memory that can be pinned.
    pub fn zeros_offloaded(weight: &Tensor) -> Result<Self> {
        let Device::Cuda(ordinal) = weight.device() else {
            let why = "only a GPU's memory can be relieved by the host's".to_owned();
            return Err(Error::Device { name: weight.device().to_string(), why });
        };
        let gpu = Gpu::get(ordinal)?;
        let shape = weight.shape();
        let values = |values: &[f32]| -> Result<Tensor> { Ok(Tensor::host(HostArray::new(gpu, values)?, shape)) };
        let zeros = vec![0.0; shape[0] * shape[1]];
        Ok(Self { m: values(&zeros)?, v: values(&zeros)?, master: Some(values(&weight.read()?)?) })
    }

    /// Master and moments on the host.
    fn offloaded(&self) -> Option<[&HostArray; 3]> {
        Some([self.master.as_ref()?.offloaded()?, self.m.offloaded()?, self.v.offloaded()?])
    }

    /// The weight that is trained, in f32.
    #[must_use]
    pub fn master<'a>(&'a self, weight: &'a Tensor) -> &'a Tensor {
        self.master.as_ref().unwrap_or(weight)
    }
}

/// Root of the sum of all squares, in f64 with a fixed order.
///
/// # Errors
/// The device is out of memory or lost.
pub fn global_norm(tensors: &[&Tensor]) -> Result<f64> {
    let sum: f64 = match tensors.first().map(|t| t.device()) {
        Some(Device::Cuda(_)) => {
            let arrays: Vec<&Array> = tensors.iter().map(|t| t.array()).collect();
            optimizer::square_sum(&arrays)?
        }
        _ => tensors.iter().map(|t| square_sum(t)).sum(),
    };
    Ok(sum.sqrt())
}

fn square_sum(t: &Tensor) -> f64 {
    let sum = |values: &[f32]| {
        let blocks: Vec<f64> =
            values.par_chunks(1 << 14).map(|b| b.iter().map(|&x| f64::from(x) * f64::from(x)).sum()).collect();
        blocks.iter().sum()
    };
    match t.device() {
        Device::Cpu => sum(t.raw()),
        Device::Cuda(_) | Device::Reference => sum(&t.to_vec()),
    }
}
