//! A model's tensors on a device, loaded through the family's table.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use autograd::stream::{Groups, Values};
use autograd::{Device, Tensor, ops};

use super::{Adapter, Layout, ParamId, TensorSpec};
use crate::config::ModelConfig;
use crate::weights::{WeightSource, check_finite};
use crate::{Error, Result};

/// One layer's tensors.
#[derive(Debug)]
pub struct LayerParams<'a> {
    /// Id of the first one.
    first: usize,
    tensors: Cow<'a, [Tensor]>,
}

impl LayerParams<'_> {
    /// The tensor of a parameter of this layer.
    #[must_use]
    pub fn get(&self, id: ParamId) -> &Tensor {
        &self.tensors[id.index() - self.first]
    }
}

/// All tensors of a model. Clones share them.
#[derive(Debug, Clone)]
pub struct ModelWeights {
    layout: Arc<Layout>,
    /// By id; those outside the layers alone when the layers are on the host.
    params: Vec<Tensor>,
    /// The layers of an offloaded model: in the host's memory, from where they pass through the GPU's, one after another.
    offloaded: Option<Arc<Groups>>,
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
        let layout = Arc::new(Layout::new(config));
        let total = layout.params.len();
        let mut used = BTreeSet::new();
        let mut params = Vec::with_capacity(total);
        for (done, spec) in layout.params.iter().enumerate() {
            progress(done, total);
            let name = file_name(spec, kept);
            params.push(on_device(spec, read(source, &name, spec)?, device)?);
            used.insert(name);
        }
        progress(total, total);
        refuse_unexpecteds(source, &used, config, count)?;
        let mut weights = Self { layout, params, offloaded: None };
        weights.join_all()?;
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
        let layout = Arc::new(Layout::new(config));
        let total = layout.params.len();
        let mut used = BTreeSet::new();
        let mut load = |spec: &TensorSpec| {
            progress(used.len(), total);
            let name = file_name(spec, kept);
            let values = read(source, &name, spec);
            used.insert(name);
            values
        };
        let outer = layout.params[..layout.outer()].iter();
        let params = outer.map(|spec| on_device(spec, load(spec)?, device)).collect::<Result<Vec<Tensor>>>()?;
        let mut groups = Groups::new(device)?;
        for (index, layer) in layout.layers.iter().enumerate() {
            let fused = layer.fused();
            let follows = |id: usize| fused.iter().any(|block| block[1..].iter().any(|param| param.index() == id));
            let mut blocks: Vec<Vec<Values>> = vec![];
            for id in layout.of_layer(index) {
                let values = load(&layout.params[id])?;
                match blocks.last_mut().filter(|_| follows(id)) {
                    Some(block) => block.push(values),
                    None => blocks.push(vec![values]),
                }
            }
            groups.push(&blocks)?;
        }
        progress(total, total);
        refuse_unexpecteds(source, &used, config, count)?;
        Ok(Self { layout, params, offloaded: Some(Arc::new(groups)) })
    }

    /// Which parameter stands where.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
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
    pub fn layer(&self, index: usize) -> Result<LayerParams<'_>> {
        let range = self.layout.of_layer(index);
        let first = range.start;
        let tensors = match &self.offloaded {
            Some(groups) => Cow::Owned(groups.get(index)?),
            None => Cow::Borrowed(&self.params[range]),
        };
        Ok(LayerParams { first, tensors })
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
        copy.join_all()?;
        Ok(copy)
    }

    /// The weights with an adapter added to them, in memory of their own where they differ.
    ///
    /// # Errors
    /// The device is no GPU, or out of memory.
    pub(crate) fn merged(&self, adapter: &Adapter) -> Result<Self> {
        let mut copy = self.clone();
        for layer in 0..self.layout.layers.len() {
            for id in self.layout.layers[layer].linears().map(|linear| linear.weight) {
                if let Some(lora) = adapter.modules.get(&id) {
                    copy.params[id.index()] = ops::merge(self.param(id), &lora.low_rank(None), None)?;
                }
            }
            copy.join(layer)?;
        }
        Ok(copy)
    }

    /// Overwrites what [`ModelWeights::merged`] made with the same of another state of the adapter.
    ///
    /// # Errors
    /// The device was lost.
    pub(crate) fn assign_merged(&self, base: &Self, adapter: &Adapter) -> Result<()> {
        for (&id, lora) in &adapter.modules {
            ops::merge(base.param(id), &lora.low_rank(None), Some(self.param(id)))?;
        }
        Ok(())
    }

    /// A parameter on the device.
    fn param(&self, id: ParamId) -> &Tensor {
        &self.params[id.index()]
    }

    /// Makes the fused parameters of a layer contiguous in memory.
    fn join(&mut self, layer: usize) -> Result<()> {
        for block in self.layout.layers[layer].fused() {
            let mut tensors: Vec<&mut Tensor> = self.params[block[0].index()..].iter_mut().take(block.len()).collect();
            Tensor::join(&mut tensors)?;
        }
        Ok(())
    }

    fn join_all(&mut self) -> Result<()> {
        let layers = if self.is_offloaded() { 0 } else { self.layout.layers.len() };
        (0..layers).try_for_each(|layer| self.join(layer))
    }

    /// Token embedding.
    #[must_use]
    pub fn embedding(&self) -> &Tensor {
        self.param(self.layout.embedding)
    }

    /// RMSNorm before the head.
    #[must_use]
    pub fn final_norm(&self) -> &Tensor {
        self.param(self.layout.final_norm)
    }

    /// The output head.
    #[must_use]
    pub fn output_head(&self) -> &Tensor {
        self.param(self.layout.head)
    }

    /// Tensors on the device, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.params.iter()
    }

    /// The same, for writing.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.params.iter_mut()
    }

    /// Bytes on the device.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.iter().map(Tensor::bytes).sum()
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
