//! The models: one decoder, and for each family a table of its tensors.
//!
//! A family is a table: name, shape and role of every tensor. [`Layout`] gives each a [`ParamId`]; the loader, the decoder,
//! adapters, training, the exporter and the memory plan walk that.

mod adapter;
mod decoder;
mod layout;
mod llama;
mod loaded;
mod qwen2;
mod qwen3;
mod random;
mod rope;
mod weights;

pub use adapter::{Adapter, LoraConfig, LoraWeights};
pub(crate) use adapter::{Difference, LoraShape};
pub use decoder::{Decoder, KvSource, ModelParams, PackedKv, PagedKv, RowAdapters};
pub use layout::{Attention, DenseMlp, Layer, Layout, Linear, Mixer, Mlp, ParamId};
pub(crate) use loaded::{LoadedModel, Moved};
pub use random::RandomWeights;
pub use weights::{LayerParams, ModelWeights};

use crate::config::{Family, ModelConfig};
use crate::weights::WeightSource;
use crate::{Error, Result};

/// A projection (linear layer) of a decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Module {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention output.
    O,
    /// Gate of the MLP.
    Gate,
    /// Up projection of the MLP.
    Up,
    /// Down projection of the MLP.
    Down,
}

/// A vector of a layer: a norm's weight or a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vector {
    /// RMSNorm before attention.
    InputNorm,
    /// RMSNorm before the MLP.
    PostNorm,
    /// RMSNorm of each query head.
    QNorm,
    /// RMSNorm of each key head.
    KNorm,
    /// Bias of a projection.
    Bias(Module),
}

/// What a tensor is to the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorRole {
    /// Token embedding.
    Embedding,
    /// RMSNorm before the head.
    FinalNorm,
    /// Output head, when it is not the embedding.
    Head,
    /// Weight of a layer's projection.
    Linear(Module),
    /// A layer's vector.
    Vector(Vector),
}

/// A size that the configuration gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dim {
    /// `hidden_size`
    Hidden,
    /// `intermediate_size`
    Intermediate,
    /// `vocab_size`
    Vocab,
    /// `num_heads * head_dim`
    Queries,
    /// `num_kv_heads * head_dim`
    KeyValues,
    /// `head_dim`
    Head,
}

impl Dim {
    fn of(self, c: &ModelConfig) -> usize {
        match self {
            Self::Hidden => c.hidden_size,
            Self::Intermediate => c.intermediate_size,
            Self::Vocab => c.vocab_size,
            Self::Queries => c.num_heads * c.head_dim,
            Self::KeyValues => c.num_kv_heads * c.head_dim,
            Self::Head => c.head_dim,
        }
    }
}

/// One row of a family's table.
#[derive(Debug, Clone, Copy)]
pub struct TableRow {
    /// Hugging Face name; below `model.layers.N.` for the tensors of a layer.
    pub name: &'static str,
    /// What it is.
    pub part: TensorRole,
    /// `[out, in]`, or one size for a vector.
    pub shape: &'static [Dim],
}

/// The tensors of one model, in file order.
#[derive(Debug, Clone)]
pub struct TensorSpec {
    /// Full Hugging Face name.
    pub name: String,
    /// Layer, when it belongs to one.
    pub layer: Option<usize>,
    /// What it is.
    pub part: TensorRole,
    /// Shape in the file.
    pub shape: Vec<usize>,
}

/// The table of a family: Llama's rows, and those that the family has besides.
pub fn table(family: Family) -> impl Iterator<Item = &'static TableRow> + Clone {
    let more = match family {
        Family::Llama => &[],
        Family::Qwen2 => qwen2::MORE,
        Family::Qwen3 => qwen3::MORE,
    };
    llama::TABLE.iter().chain(more)
}

/// Every tensor that a model of this configuration has.
#[must_use]
pub fn tensors(config: &ModelConfig) -> Vec<TensorSpec> {
    tensors_of(table(config.family), config)
}

/// The tensors of a table: those outside the layers, then layer by layer.
fn tensors_of(rows: impl Iterator<Item = &'static TableRow> + Clone, config: &ModelConfig) -> Vec<TensorSpec> {
    let spec = |entry: &TableRow, layer: Option<usize>| TensorSpec {
        name: layer.map_or_else(|| entry.name.to_owned(), |l| format!("model.layers.{l}.{}", entry.name)),
        layer,
        part: entry.part,
        shape: entry.shape.iter().map(|d| d.of(config)).collect(),
    };
    let in_layer = |e: &&TableRow| matches!(e.part, TensorRole::Linear(_) | TensorRole::Vector(_));
    let wanted = |e: &&TableRow| !(e.part == TensorRole::Head && config.tie_word_embeddings);
    let outer = rows.clone().filter(|e| !in_layer(e)).filter(wanted).map(|e| spec(e, None));
    let layers = (0..config.num_layers).flat_map(|l| rows.clone().filter(in_layer).map(move |e| spec(e, Some(l))));
    outer.chain(layers).collect()
}

/// Refuses weights that are not the tensors of the configuration, by name and shape alone: nothing is read, and no size of
/// the configuration is used that the file does not bear out.
pub(crate) fn check_shapes(config: &ModelConfig, source: &dyn WeightSource) -> Result<()> {
    let path = || source.path().to_owned();
    for TensorSpec { name, shape: want, .. } in tensors(config) {
        let shape = source.shape(&name)?;
        if shape != want {
            let (got, want) = (format!("{shape:?}"), format!("{want:?}"));
            return Err(Error::TensorShape { path: path(), name, got, want });
        }
    }
    Ok(())
}

/// The configuration with only these layers, and the file's layer for each of them.
pub(crate) fn keep_layers(config: &ModelConfig, layers: Option<&[usize]>) -> Result<(ModelConfig, Vec<usize>)> {
    let count = config.num_layers;
    let Some(layers) = layers else { return Ok((config.clone(), (0..count).collect())) };
    let mut seen = vec![false; count];
    let bad = layers.iter().find(|&&l| l >= count || std::mem::replace(&mut seen[l], true));
    if let Some(&layer) = bad.or(if layers.is_empty() { Some(&0) } else { None }) {
        return Err(Error::Layers { layer, count });
    }
    let window = &config.sliding_window;
    let sliding_window = if window.is_empty() { vec![] } else { layers.iter().map(|&l| window[l]).collect() };
    Ok((ModelConfig { num_layers: layers.len(), sliding_window, ..config.clone() }, layers.to_vec()))
}

/// A row of a table.
const fn entry(name: &'static str, part: TensorRole, shape: &'static [Dim]) -> TableRow {
    TableRow { name, part, shape }
}
