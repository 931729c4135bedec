//! A model's tensors on a device, loaded through the family's table.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use autograd::stream::{Groups, Values};
use autograd::{Device, Tensor, ops};

use super::{Adapter, Module, TensorRole, TensorSpec, Vector, tensors};
use crate::config::ModelConfig;
use crate::weights::{WeightSource, check_finite};
use crate::{Error, Result};

/// One layer's tensors.
#[derive(Debug, Clone)]
pub struct LayerWeights {
    /// Linear weights, in the order of [`super::Module::ALL`].
    pub linear: [Tensor; 7],
    /// Biases, in the same order.
    pub bias: [Option<Tensor>; 7],
    /// RMSNorm before attention.
    pub input_norm: Tensor,
    /// RMSNorm before the MLP.
    pub post_norm: Tensor,
    /// RMSNorm of each query head and each key head.
    pub qk_norm: Option<[Tensor; 2]>,
}

/// All tensors of a model. Clones share them.
#[derive(Debug, Clone)]
pub struct ModelWeights {
    /// Token embedding.
    pub embedding: Tensor,
    /// Output head; `None` when it is the embedding.
    pub head: Option<Tensor>,
    /// RMSNorm before the head.
    pub final_norm: Tensor,
    /// Layers, first to last; none of a model whose layers wait on the host.
    pub layers: Vec<LayerWeights>,
    /// Those layers.
    offloaded: Option<Arc<OffloadedLayers>>,
}

/// Layers that are kept in the host's memory and pass through the GPU's, one after another.
#[derive(Debug)]
struct OffloadedLayers {
    groups: Groups,
    /// The tensors of each layer, in the order of their group.
    specs: Vec<Vec<TensorSpec>>,
}

impl ModelWeights {
    /// Reads every tensor of `config` from `source`; layer `i` comes from layer `kept[i]` of the file's `count`.
    /// `progress(done, total)` counts tensors.
    ///
    /// # Errors
    /// A missing, misshapen or non-finite tensor, or a tensor that the family does not have.
    pub fn load(
        config: &ModelConfig,
        source: &dyn WeightSource,
        (kept, count): (&[usize], usize),
        device: Device,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self> {
        let specs = tensors(config);
        let total = specs.len();
        let mut used = BTreeSet::new();
        let mut loaded = Vec::with_capacity(total);
        for (done, spec) in specs.iter().enumerate() {
            progress(done, total);
            let name = file_name(spec, kept);
            loaded.push(on_device(spec, read(source, &name, spec)?, device)?);
            used.insert(name);
        }
        progress(total, total);
        refuse_unexpecteds(source, &used, config, count)?;
        let mut weights = Self::assemble(config.num_layers, specs.iter().zip(loaded));
        weights.layers.iter_mut().try_for_each(LayerWeights::join)?;
        Ok(weights)
    }

    /// As [`ModelWeights::load`] on a GPU, with the layers in pinned memory of the host. They answer forward passes as
    /// those on the GPU do, only that every pass moves them once.
    ///
    /// # Errors
    /// As [`ModelWeights::load`]; a device that is no GPU; a host without memory that can be pinned.
    pub fn load_offloaded(
        config: &ModelConfig,
        source: &dyn WeightSource,
        (kept, count): (&[usize], usize),
        device: Device,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self> {
        let (layered, outer): (Vec<_>, Vec<_>) = tensors(config).into_iter().partition(|spec| spec.layer.is_some());
        let total = layered.len() + outer.len();
        let mut used = BTreeSet::new();
        let mut load = |spec: &TensorSpec| {
            progress(used.len(), total);
            let name = file_name(spec, kept);
            let values = read(source, &name, spec);
            used.insert(name);
            values
        };
        let loaded = outer.iter().map(|spec| on_device(spec, load(spec)?, device)).collect::<Result<Vec<Tensor>>>()?;
        let mut offloaded = OffloadedLayers { groups: Groups::new(device)?, specs: vec![] };
        for layer in 0..config.num_layers {
            let specs: Vec<TensorSpec> = layered.iter().filter(|spec| spec.layer == Some(layer)).cloned().collect();
            let mut blocks: Vec<Vec<Values>> = vec![];
            for spec in &specs {
                let values = load(spec)?;
                match blocks.last_mut().filter(|_| follows_in_memory(spec.part)) {
                    Some(block) => block.push(values),
                    None => blocks.push(vec![values]),
                }
            }
            offloaded.groups.push(&blocks)?;
            offloaded.specs.push(specs);
        }
        progress(total, total);
        refuse_unexpecteds(source, &used, config, count)?;
        let weights = Self::assemble(0, outer.iter().zip(loaded));
        Ok(Self { offloaded: Some(Arc::new(offloaded)), ..weights })
    }

    /// Whether the layers wait on the host.
    #[must_use]
    pub fn is_offloaded(&self) -> bool {
        self.offloaded.is_some()
    }

    /// The tensors of a layer, on the device. Those of an offloaded model are there until the layer after the next is
    /// asked for.
    ///
    /// # Errors
    /// The device is out of memory or lost.
    ///
    /// # Panics
    /// When there is no such layer.
    pub fn layer(&self, index: usize) -> Result<Cow<'_, LayerWeights>> {
        let Some(offloaded) = &self.offloaded else { return Ok(Cow::Borrowed(&self.layers[index])) };
        let mut parts = LayerParts::default();
        for (spec, tensor) in offloaded.specs[index].iter().zip(offloaded.groups.get(index)?) {
            parts.put(spec.part, tensor);
        }
        Ok(Cow::Owned(parts.finish()))
    }

    /// The same weights in memory of their own, where training changes them in place.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn copied(&self) -> Result<Self> {
        let mut copy = self.clone();
        for tensor in copy.iter_mut() {
            *tensor = tensor.copied()?;
        }
        copy.layers.iter_mut().try_for_each(LayerWeights::join)?;
        Ok(copy)
    }

    /// The weights with an adapter added to them, in memory of their own where they differ.
    ///
    /// # Errors
    /// The device is no GPU, or out of memory.
    pub(crate) fn merged(&self, adapter: &Adapter) -> Result<Self> {
        let mut copy = self.clone();
        for (layer, branches) in copy.layers.iter_mut().zip(&adapter.layers) {
            for (weight, branch) in layer.linear.iter_mut().zip(branches) {
                if let Some(branch) = branch {
                    *weight = ops::merge(weight, &branch.low_rank(None), None)?;
                }
            }
            layer.join()?;
        }
        Ok(copy)
    }

    /// Overwrites what [`ModelWeights::merged`] made with the same of another state of the adapter.
    ///
    /// # Errors
    /// The device was lost.
    pub(crate) fn assign_merged(&self, base: &Self, adapter: &Adapter) -> Result<()> {
        for ((to, from), branches) in self.layers.iter().zip(&base.layers).zip(&adapter.layers) {
            for ((to, from), branch) in to.linear.iter().zip(&from.linear).zip(branches) {
                if let Some(branch) = branch {
                    ops::merge(from, &branch.low_rank(None), Some(to))?;
                }
            }
        }
        Ok(())
    }

    /// Puts tensors in their places. The table names each place once, and required ones always.
    fn assemble<'a>(layers: usize, tensors: impl Iterator<Item = (&'a TensorSpec, Tensor)>) -> Self {
        let mut outer: [Option<Tensor>; 3] = [None, None, None];
        let mut parts: Vec<LayerParts> = (0..layers).map(|_| LayerParts::default()).collect();
        for (spec, tensor) in tensors {
            match (spec.part, spec.layer) {
                (TensorRole::Embedding, _) => outer[0] = Some(tensor),
                (TensorRole::FinalNorm, _) => outer[1] = Some(tensor),
                (TensorRole::Head, _) => outer[2] = Some(tensor),
                (part, Some(layer)) => parts[layer].put(part, tensor),
                (part, None) => unreachable!("{part:?} belongs to a layer"),
            }
        }
        let [embedding, final_norm, head] = outer;
        Self {
            embedding: embedding.expect("every table has an embedding"),
            head,
            final_norm: final_norm.expect("every table has a final norm"),
            layers: parts.into_iter().map(LayerParts::finish).collect(),
            offloaded: None,
        }
    }

    /// The output head.
    #[must_use]
    pub fn output_head(&self) -> &Tensor {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Tensors in the order of `tensors(config)`.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        let outer = [Some(&self.embedding), Some(&self.final_norm), self.head.as_ref()];
        outer.into_iter().flatten().chain(self.layers.iter().flat_map(LayerWeights::iter))
    }

    /// The same, for writing.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let outer = [Some(&mut self.embedding), Some(&mut self.final_norm), self.head.as_mut()];
        outer.into_iter().flatten().chain(self.layers.iter_mut().flat_map(LayerWeights::iter_mut))
    }

    /// Bytes on the device.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.iter().map(Tensor::bytes).sum()
    }
}

impl LayerWeights {
    /// Makes the projections of one input contiguous in memory.
    fn join(&mut self) -> Result<()> {
        let [q, k, v, _, gate, up, _] = &mut self.linear;
        Tensor::join(&mut [q, k, v])?;
        Tensor::join(&mut [gate, up])?;
        if let [Some(q), Some(k), Some(v), ..] = &mut self.bias {
            Tensor::join(&mut [q, k, v])?;
        }
        Ok(())
    }

    /// Tensors in table order.
    fn iter(&self) -> impl Iterator<Item = &Tensor> {
        let [q, k, v, o, gate, up, down] = &self.linear;
        let [qb, kb, vb, ..] = &self.bias;
        let [qn, kn] = self.qk_norm.as_ref().map_or([None, None], |[q, k]| [Some(q), Some(k)]);
        let all = [&self.input_norm, q, k, v, o, &self.post_norm, gate, up, down];
        all.into_iter().chain([qb.as_ref(), kb.as_ref(), vb.as_ref(), qn, kn].into_iter().flatten())
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let [q, k, v, o, gate, up, down] = &mut self.linear;
        let [qb, kb, vb, ..] = &mut self.bias;
        let [qn, kn] = self.qk_norm.as_mut().map_or([None, None], |[q, k]| [Some(q), Some(k)]);
        let all = [&mut self.input_norm, q, k, v, o, &mut self.post_norm, gate, up, down];
        all.into_iter().chain([qb.as_mut(), kb.as_mut(), vb.as_mut(), qn, kn].into_iter().flatten())
    }
}

#[derive(Default)]
struct LayerParts {
    linear: [Option<Tensor>; 7],
    bias: [Option<Tensor>; 7],
    norms: [Option<Tensor>; 4],
}

impl LayerParts {
    fn put(&mut self, part: TensorRole, tensor: Tensor) {
        let place = match part {
            TensorRole::Linear(m) => &mut self.linear[m as usize],
            TensorRole::Vector(Vector::Bias(m)) => &mut self.bias[m as usize],
            TensorRole::Vector(Vector::InputNorm) => &mut self.norms[0],
            TensorRole::Vector(Vector::PostNorm) => &mut self.norms[1],
            TensorRole::Vector(Vector::QNorm) => &mut self.norms[2],
            TensorRole::Vector(Vector::KNorm) => &mut self.norms[3],
            TensorRole::Embedding | TensorRole::FinalNorm | TensorRole::Head => {
                unreachable!("{part:?} belongs to no layer")
            }
        };
        *place = Some(tensor);
    }

    fn finish(self) -> LayerWeights {
        let [input_norm, post_norm, q_norm, k_norm] = self.norms;
        LayerWeights {
            linear: self.linear.map(|t| t.expect("every table has seven projections")),
            bias: self.bias,
            input_norm: input_norm.expect("every table has an input norm"),
            post_norm: post_norm.expect("every table has a post-attention norm"),
            qk_norm: q_norm.zip(k_norm).map(|(q, k)| [q, k]),
        }
    }
}

/// The name that the file's layer `to` has for a tensor of our layer `from`.
fn rename_layer(name: &str, from: usize, to: usize) -> String {
    name.replacen(&format!("model.layers.{from}."), &format!("model.layers.{to}."), 1)
}

/// Name in the file of one of our tensors; its layer `i` is the file's layer `kept[i]`.
fn file_name(spec: &TensorSpec, kept: &[usize]) -> String {
    spec.layer.map_or_else(|| spec.name.clone(), |l| rename_layer(&spec.name, l, kept[l]))
}

/// Whether a tensor of a layer lies behind the one before it in the table, as [`LayerWeights::join`] puts them.
fn follows_in_memory(part: TensorRole) -> bool {
    let follows = |module| matches!(module, Module::K | Module::V | Module::Up);
    match part {
        TensorRole::Linear(module) | TensorRole::Vector(Vector::Bias(module)) => follows(module),
        _ => false,
    }
}

/// Values and shape of a tensor; a vector is one row.
fn read(source: &dyn WeightSource, name: &str, spec: &TensorSpec) -> Result<Values> {
    let shape = source.shape(name)?;
    if shape != spec.shape {
        let (got, want) = (format!("{shape:?}"), format!("{:?}", spec.shape));
        return Err(Error::TensorShape { path: source.path().to_owned(), name: name.to_owned(), got, want });
    }
    let values = source.read(name)?;
    check_finite(name, &values)?;
    let shape = match spec.shape[..] {
        [rows, cols] => [rows, cols],
        _ => [1, values.len()],
    };
    Ok((values, shape))
}

/// A matrix in the layout that the device multiplies by; a vector as it is.
fn on_device(spec: &TensorSpec, (values, shape): Values, device: Device) -> Result<Tensor> {
    let make = if spec.shape.len() == 2 { Tensor::weight } else { Tensor::new };
    Ok(make(device, values, shape)?)
}

/// Refuses tensors that no part of the model is; layers below `count` may be left out on purpose.
fn refuse_unexpecteds(
    source: &dyn WeightSource,
    used: &BTreeSet<String>,
    config: &ModelConfig,
    count: usize,
) -> Result<()> {
    let tied_head = |name: &str| config.tie_word_embeddings && name == "lm_head.weight";
    let left_out = |name: &str| {
        let layer = name.strip_prefix("model.layers.").and_then(|n| n.split_once('.'));
        let known = |suffix: &str| super::table(config.family).any(|e| e.name == suffix);
        layer.is_some_and(|(layer, suffix)| layer.parse::<usize>().is_ok_and(|l| l < count) && known(suffix))
    };
    let unexpected = source.tensors().keys().find(|name| {
        !(used.contains(*name) || name.ends_with("rotary_emb.inv_freq") || tied_head(name) || left_out(name))
    });
    match unexpected {
        None => Ok(()),
        Some(name) => Err(Error::UnknownTensor {
            path: source.path().to_owned(),
            name: name.clone(),
            family: format!("{:?}", config.family),
        }),
    }
}
