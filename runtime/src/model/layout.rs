//! A model's layers as data: which parameter stands where.
//!
//! ```text
//! family table  ->  tensors(config)  ->  Layout        ids by place: embedding, layers[i].{mixer, mlp}, final norm, head
//! (names, sizes)    (names, shapes)       |
//!                   ParamId = index       +-> ModelWeights: a tensor for each id      (loader, exporter, optimizer)
//!                                         +-> Adapter: A and B by their weight's id   (LoRA targets, PEFT's names)
//!                                         +-> memory plan: fused groups, LoRA's shapes
//!                                         +-> Decoder: a Projection (op) of each Linear's weight, bias, A and B
//! ```
//!
//! Another kind of layer is a variant of [`Mixer`] or [`Mlp`], its rows in a family's table and its arm in the decoder.

use super::{Module, TableRow, TensorRole, TensorSpec, Vector, table, tensors_of};
use crate::config::ModelConfig;

/// A parameter of a model: its index among the tensors of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub u32);

impl ParamId {
    /// The same as an index.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A projection (linear layer): what an adapter may be on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// `[out, in]`
    pub weight: ParamId,
    /// `[out]`
    pub bias: Option<ParamId>,
    /// Its index among the model's projections. Random values for it (LoRA's A, dropout) are keyed by it.
    pub index: usize,
}

/// What mixes the tokens of a sequence.
#[derive(Debug, Clone)]
pub enum Mixer {
    /// Softmax attention.
    Attention(Attention),
}

/// Parameters of softmax attention.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Queries, keys and values.
    pub qkv: [Linear; 3],
    /// RMSNorm of each query head and each key head.
    pub qk_norm: Option<[ParamId; 2]>,
    /// Output.
    pub output: Linear,
}

/// What transforms each token by itself.
#[derive(Debug, Clone)]
pub enum Mlp {
    /// SwiGLU.
    Dense(DenseMlp),
}

/// Parameters of a SwiGLU MLP.
#[derive(Debug, Clone)]
pub struct DenseMlp {
    /// Gate and up projection.
    pub gate_up: [Linear; 2],
    /// Down projection.
    pub down: Linear,
}

/// One layer: `x += mixer(norm(x)); x += mlp(norm(x))`.
#[derive(Debug, Clone)]
pub struct Layer {
    /// RMSNorm before the mixer.
    pub mixer_norm: ParamId,
    /// The mixer.
    pub mixer: Mixer,
    /// RMSNorm before the MLP.
    pub mlp_norm: ParamId,
    /// The MLP.
    pub mlp: Mlp,
}

impl Layer {
    /// The projections in groups of one input. A group is fused: its weights are contiguous on a GPU, and one matmul
    /// computes them.
    #[must_use]
    pub fn projections(&self) -> Vec<&[Linear]> {
        let Mixer::Attention(attention) = &self.mixer;
        let Mlp::Dense(mlp) = &self.mlp;
        let one = std::slice::from_ref;
        vec![&attention.qkv, one(&attention.output), &mlp.gate_up, one(&mlp.down)]
    }

    /// The projections, in the order of their indices.
    pub fn linears(&self) -> impl Iterator<Item = Linear> {
        self.projections().into_iter().flatten().copied()
    }

    /// Blocks of parameters that are contiguous on a GPU, of more than one parameter each: the weights of a group of
    /// projections, and their biases where all of them have one.
    #[must_use]
    pub fn fused(&self) -> Vec<Vec<ParamId>> {
        let groups = self.projections().into_iter().filter(|group| group.len() > 1);
        let blocks = groups.flat_map(|group| {
            let weights = group.iter().map(|linear| linear.weight).collect();
            let biases: Option<Vec<ParamId>> = group.iter().map(|linear| linear.bias).collect();
            std::iter::once(weights).chain(biases)
        });
        blocks.collect()
    }
}

/// Which parameter stands where in a model.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Name and shape of every parameter, by id: those outside the layers, then layer by layer.
    pub params: Vec<TensorSpec>,
    /// Token embedding.
    pub embedding: ParamId,
    /// Output head; the embedding when they are tied.
    pub head: ParamId,
    /// RMSNorm before the head.
    pub final_norm: ParamId,
    /// Layers, first to last.
    pub layers: Vec<Layer>,
}

impl Layout {
    /// The layout of a model of this configuration.
    #[must_use]
    pub fn new(config: &ModelConfig) -> Self {
        Self::from_rows(table(config.family), config)
    }

    /// The layout that a table's rows make.
    ///
    /// # Panics
    /// When the table lacks what every decoder has.
    fn from_rows(rows: impl Iterator<Item = &'static TableRow> + Clone, config: &ModelConfig) -> Self {
        let params = tensors_of(rows, config);
        let find = |layer: Option<usize>, part: TensorRole| {
            let index = params.iter().position(|spec| spec.layer == layer && spec.part == part)?;
            Some(ParamId(u32::try_from(index).expect("fewer than 2^32 tensors")))
        };
        let need = |layer, part| find(layer, part).unwrap_or_else(|| panic!("the table has no {part:?}"));
        let mut count = 0..;
        let mut linear = |layer, module| Linear {
            weight: need(Some(layer), TensorRole::Linear(module)),
            bias: find(Some(layer), TensorRole::Vector(Vector::Bias(module))),
            index: count.next().expect("it has no end"),
        };
        let vector = |layer, vector| find(Some(layer), TensorRole::Vector(vector));
        let layer = |l| {
            let qkv = [Module::Q, Module::K, Module::V].map(|module| linear(l, module));
            let qk_norm = vector(l, Vector::QNorm).zip(vector(l, Vector::KNorm)).map(|(q, k)| [q, k]);
            let mixer = Mixer::Attention(Attention { qkv, qk_norm, output: linear(l, Module::O) });
            let gate_up = [Module::Gate, Module::Up].map(|module| linear(l, module));
            let mlp = Mlp::Dense(DenseMlp { gate_up, down: linear(l, Module::Down) });
            let norm = |vector| need(Some(l), TensorRole::Vector(vector));
            Layer { mixer_norm: norm(Vector::InputNorm), mixer, mlp_norm: norm(Vector::PostNorm), mlp }
        };
        let layers = (0..config.num_layers).map(layer).collect();
        let embedding = need(None, TensorRole::Embedding);
        let head = find(None, TensorRole::Head).unwrap_or(embedding);
        let final_norm = need(None, TensorRole::FinalNorm);
        Self { embedding, head, final_norm, layers, params }
    }

    /// Ids of the parameters outside the layers are below this; those of the layers follow.
    pub(super) fn outer(&self) -> usize {
        self.params.iter().take_while(|spec| spec.layer.is_none()).count()
    }

    /// Ids of a layer's parameters, as a range of indices.
    pub(super) fn of_layer(&self, layer: usize) -> std::ops::Range<usize> {
        let count = (self.params.len() - self.outer()) / self.layers.len();
        let first = self.outer() + layer * count;
        first..first + count
    }

    /// The path of a projection: `model.layers.N.self_attn.q_proj`.
    #[must_use]
    pub fn module_name(&self, linear: Linear) -> &str {
        let name = &self.params[linear.weight.index()].name;
        name.strip_suffix(".weight").unwrap_or(name)
    }

    /// `[out, in]` of a projection.
    #[must_use]
    pub fn module_shape(&self, linear: Linear) -> [usize; 2] {
        let shape = &self.params[linear.weight.index()].shape;
        [shape[0], shape[1]]
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{llama, qwen2, qwen3};
    use super::*;
    use crate::files::ModelFiles;

    fn fixtures() -> Vec<ModelFiles> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models");
        let dirs = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        dirs.map(|dir| ModelFiles::open(&dir).unwrap()).collect()
    }

    #[test]
    fn every_parameter_of_every_family_has_one_place_and_one_name() {
        for files in fixtures() {
            let layout = Layout::new(&files.config);
            let mut placed = vec![layout.embedding, layout.final_norm, layout.head];
            for (index, layer) in layout.layers.iter().enumerate() {
                let first = placed.len();
                placed.extend([layer.mixer_norm, layer.mlp_norm]);
                placed.extend(layer.linears().flat_map(|linear| [Some(linear.weight), linear.bias]).flatten());
                let Mixer::Attention(attention) = &layer.mixer;
                placed.extend(attention.qk_norm.into_iter().flatten());
                assert!(placed[first..].iter().all(|id| layout.of_layer(index).contains(&id.index())));
                assert!(layer.linears().map(|linear| linear.index).eq(index * 7..index * 7 + 7));
            }
            placed.sort();
            placed.dedup();
            assert!(placed.iter().map(|id| id.index()).eq(0..layout.params.len()), "{:?}", files.config.family);
            let mut names: Vec<&String> = layout.params.iter().map(|spec| &spec.name).collect();
            names.sort();
            assert!(names.into_iter().eq(files.weights.tensors().keys()), "{:?}", files.config.family);
        }
    }

    #[test]
    fn a_family_is_its_table() {
        // No family has biases and norms of heads; one that has both needs these rows alone.
        let files = fixtures().into_iter().find(|files| !files.config.tie_word_embeddings).unwrap();
        let rows = llama::TABLE.iter().chain(qwen2::MORE).chain(qwen3::MORE);
        let layout = Layout::from_rows(rows, &files.config);
        assert_ne!(layout.head, layout.embedding);
        let layer = &layout.layers[1];
        let Mixer::Attention(attention) = &layer.mixer;
        assert!(attention.qk_norm.is_some() && attention.qkv.iter().all(|linear| linear.bias.is_some()));
        assert_eq!(layout.module_name(attention.output), "model.layers.1.self_attn.o_proj");
        let blocks = layer.fused();
        let names = |block: &Vec<ParamId>| {
            let short = |id: &ParamId| layout.params[id.index()].name.rsplit("_proj").next().unwrap().to_owned();
            block.iter().map(short).collect::<Vec<_>>()
        };
        assert_eq!(
            blocks.iter().map(names).collect::<Vec<_>>(),
            [vec![".weight"; 3], vec![".bias"; 3], vec![".weight"; 2]]
        );
        // What is one block in memory is contiguous in the table too, as groups of offloaded layers need it.
        assert!(blocks.iter().all(|block| block.is_sorted_by(|a, b| a.0 + 1 == b.0)));
    }
}
