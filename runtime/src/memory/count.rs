//! Bytes of the parts of a model, as the device's allocator cuts them.

use std::path::Path;

use autograd::kv::{KvShape, PAGE_TOKENS};
use autograd::ops::RopeTable;
use autograd::{Device, cuda};

use crate::config::ModelConfig;
use crate::model::{Adapter, Layout, LoraShape, TensorSpec, tensors};
use crate::request::LoraConfig;
use crate::weights::{SafetensorsWeights, WeightSource};
use crate::{Error, Result};

const F32: u64 = 4;

/// Bytes that `bytes` take on `device`: a GPU's allocator hands out blocks.
pub(super) fn block(device: Device, bytes: u64) -> u64 {
    (device.capabilities().block_bytes)(usize::try_from(bytes).unwrap_or(usize::MAX / 2)) as u64
}

fn elements(spec: &TensorSpec) -> u64 {
    spec.shape.iter().map(|&size| size as u64).product()
}

/// Values of a model's weights.
pub(super) fn parameters(config: &ModelConfig) -> u64 {
    tensors(config).iter().map(elements).sum()
}

/// A model's weights in `value` bytes a value.
pub(super) struct Weights {
    /// Embedding, head and final norm.
    pub(super) outer: u64,
    /// One layer.
    pub(super) layer: u64,
    /// The joined maps of a layer, which lie twice in memory for a moment while they are joined.
    pub(super) joined: u64,
    /// The embedding or head, whichever is larger.
    pub(super) largest: u64,
    layers: u64,
}

impl Weights {
    pub(super) fn of(config: &ModelConfig, device: Device, value: u64) -> Self {
        let mut weights = Self { outer: 0, layer: 0, joined: 0, largest: 0, layers: config.num_layers as u64 };
        let layout = Layout::new(config);
        let bytes = |spec: &TensorSpec| elements(spec) * value;
        for spec in layout.params.iter().filter(|spec| spec.layer.is_none()) {
            weights.outer += block(device, bytes(spec));
            weights.largest = weights.largest.max(block(device, bytes(spec)));
        }
        let Some(layer) = layout.layers.first() else { return weights };
        // The weights of a group of projections are one block.
        let groups = layer.projections().into_iter().filter(|group| group.len() > 1);
        let groups: Vec<Vec<usize>> = groups.map(|g| g.iter().map(|l| l.weight.index()).collect()).collect();
        let sum = |group: &Vec<usize>| group.iter().map(|&id| bytes(&layout.params[id])).sum();
        weights.joined = groups.iter().map(|group| block(device, sum(group))).sum();
        let single = |id: &usize| layout.params[*id].layer == Some(0) && !groups.iter().flatten().any(|g| g == id);
        let singles = (0..layout.params.len()).filter(single).map(|id| block(device, bytes(&layout.params[id])));
        weights.layer = weights.joined + singles.sum::<u64>();
        weights
    }

    pub(super) fn total(&self) -> u64 {
        self.outer + self.layers * self.layer
    }
}

/// Rotary tables, cosines and sines in f32: of every position on a GPU, else of those before `longest`.
pub(super) fn rotary(config: &ModelConfig, device: Device, longest: usize) -> u64 {
    let context = config.max_position_embeddings;
    let positions = if device.capabilities().own_memory { context } else { RopeTable::on_host(longest.min(context)) };
    2 * block(device, positions as u64 * (config.head_dim / 2) as u64 * F32)
}

/// The low-rank branches of a model.
pub(super) struct LoraCounts {
    /// Elements of every tensor.
    tensors: Vec<u64>,
    /// Elements of every block of weights that a merged copy has for itself.
    merged: Vec<u64>,
    /// Ranks of a layer's maps together, in the layer that has most.
    pub(super) ranks: u64,
}

impl LoraCounts {
    /// Those that training makes.
    pub(super) fn made(config: &ModelConfig, lora: &LoraConfig) -> Result<Self> {
        let mut branches = Self { tensors: vec![], merged: vec![], ranks: 0 };
        let layout = Layout::new(config);
        for (layer, shapes) in layout.layers.iter().zip(Adapter::shapes(&layout, lora)?) {
            for LoraShape { rank, shape: [out, input], .. } in &shapes {
                branches.tensors.extend([(rank * input) as u64, (out * rank) as u64]);
            }
            let merged = layer.projections().into_iter().map(|group| {
                let adapted = shapes.iter().filter(|shape| group.contains(&shape.linear));
                adapted.map(|shape| (shape.shape[0] * shape.shape[1]) as u64).sum()
            });
            branches.merged.extend(merged.filter(|n: &u64| *n > 0));
            branches.ranks = branches.ranks.max(shapes.iter().map(|shape| shape.rank as u64).sum());
        }
        Ok(branches)
    }

    /// Those of the adapter in a folder.
    pub(super) fn in_folder(folder: &Path, layers: usize) -> Result<Self> {
        let file = folder.join("adapter_model.safetensors");
        if !file.is_file() {
            let what = "there is no adapter here (adapter_model.safetensors); name the folder of a PEFT adapter";
            return Err(Error::bad_file(folder, what));
        }
        let source = SafetensorsWeights::open(&file)?;
        let shapes = source.tensors();
        let elements = |shape: &Vec<usize>| shape.iter().fold(1u64, |n, &size| n.saturating_mul(size as u64));
        let tensors = shapes.values().map(elements).collect();
        let ranks: u64 = shapes
            .iter()
            .filter(|(name, _)| name.contains("lora_A"))
            .map(|(_, shape)| shape.first().copied().unwrap_or(0) as u64)
            .sum();
        Ok(Self { tensors, merged: vec![], ranks: ranks.div_ceil(layers.max(1) as u64) })
    }

    /// Their values.
    pub(super) fn parameters(&self) -> u64 {
        self.tensors.iter().sum()
    }

    /// All branches in `value` bytes a value.
    pub(super) fn bytes(&self, device: Device, value: u64) -> u64 {
        self.tensors.iter().fold(0, |sum: u64, n| sum.saturating_add(block(device, n.saturating_mul(value))))
    }

    /// The weights that a copy with the branches added has for itself.
    pub(super) fn merged(&self, device: Device, value: u64) -> u64 {
        self.merged.iter().map(|n| block(device, n * value)).sum()
    }
}

/// Bytes of keys and values for sequences of so many tokens, in whole pages.
#[must_use]
pub fn kv_bytes(config: &ModelConfig, device: Device, lengths: impl IntoIterator<Item = usize>) -> u64 {
    // One more page a sequence: a shared last page is copied before it is written.
    let pages =
        lengths.into_iter().fold(0usize, |pages, tokens| pages.saturating_add(tokens.div_ceil(PAGE_TOKENS) + 1));
    (pages as u64).saturating_mul(page_bytes(config, device) as u64)
}

/// Bytes of one page, all layers.
fn page_bytes(config: &ModelConfig, device: Device) -> usize {
    let shape = KvShape { heads: config.num_heads, kv_heads: config.num_kv_heads, head_dim: config.head_dim };
    shape.page_bytes(device) * config.num_layers
}

/// What a pool of at most `bytes` takes: whole pages, a block for every layer.
pub(super) fn kv_pool(config: &ModelConfig, device: Device, bytes: u64) -> u64 {
    let page = page_bytes(config, device) as u64;
    let layers = config.num_layers as u64;
    layers.saturating_mul(block(device, bytes / page * page / layers))
}

/// Rows of the graph that `count` sequences run in: powers of two up to 8, then steps of an eighth of the next power of
/// two, so that padding stays small.
pub(crate) fn graph_rows(count: usize) -> usize {
    let step = (count.next_power_of_two() / 8).max(1);
    count.next_multiple_of(step)
}

/// Pages that each row of a graph has room for when the longest sequence has `longest`: short ones share a graph.
pub(crate) fn graph_pages(longest: usize) -> usize {
    longest.next_power_of_two().max(16)
}

/// Memory of a batch on its way through a model.
pub(super) struct Rows<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) device: Device,
    /// Ranks of a layer's branches together.
    pub(super) ranks: u64,
    /// Rows of the batch.
    pub(super) count: u64,
}

impl Rows<'_> {
    /// An activation of `width` values a row.
    pub(super) fn values(&self, width: usize) -> u64 {
        block(self.device, self.count.saturating_mul(width as u64 * self.device.value_bytes() as u64))
    }

    /// Columns of queries; of queries, keys and values.
    fn attention_widths(&self) -> [usize; 2] {
        let c = self.config;
        [c.num_heads * c.head_dim, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim]
    }

    /// Hidden states.
    pub(super) fn hidden(&self) -> u64 {
        self.values(self.config.hidden_size)
    }

    /// What a layer's ops keep for the way back, its own output included, its input not.
    pub(super) fn kept(&self) -> u64 {
        let (inner, [queries, qkv]) = (self.config.intermediate_size, self.attention_widths());
        let log_sums = block(self.device, self.count * self.config.num_heads as u64 * F32);
        // Two residual sums; qkv before the rotation; attention; gate and up.
        2 * self.hidden()
            + self.values(qkv)
            + self.values(queries)
            + self.values(2 * inner)
            + self.values(self.ranks as usize)
            + log_sums
    }

    /// Every output of a layer's ops: what it keeps, and what is computed again.
    pub(super) fn layer(&self) -> u64 {
        let (inner, [_, qkv]) = (self.config.intermediate_size, self.attention_widths());
        // Two norms; qkv after the rotation; the product of gate and up.
        self.kept() + 2 * self.hidden() + self.values(qkv) + self.values(inner)
    }

    /// Gradients that are alive together on the way back through a layer, and what is computed again for them.
    pub(super) fn backward(&self) -> u64 {
        let (inner, [queries, qkv]) = (self.config.intermediate_size, self.attention_widths());
        let mlp = self.values(2 * inner) + self.values(inner);
        let attention = 2 * self.values(qkv) + self.values(queries);
        3 * self.hidden() + mlp.max(attention) + self.values(self.ranks as usize)
    }

    /// One step of decoding for each row: a layer, logits in f32, and partial sums of attention over `pages` pages.
    pub(super) fn decode(&self, pages: u64) -> u64 {
        let parts = (pages * PAGE_TOKENS as u64).div_ceil(cuda::DECODE_CHUNK as u64).max(1);
        let heads = self.config.num_heads as u64 * (self.config.head_dim as u64 + 2);
        let partial = block(self.device, self.count * parts * heads * F32);
        self.layer() + 2 * self.hidden() + self.logits() + partial
    }

    /// Logits in f32.
    pub(super) fn logits(&self) -> u64 {
        block(self.device, self.count.saturating_mul(self.config.vocab_size as u64 * F32))
    }
}
