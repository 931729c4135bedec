//! The one decoder: training, scoring, prefill and decode run this forward.
//!
//! What differs between them is the memory that attention looks into (a packed batch, or pages) and whether the tape
//! records.

use std::sync::Arc;

use autograd::kv::{KvPool, PagedBatch};
use autograd::ops::{self, Attention, Dropout, Epilogue, LoraSegments, Projection, QkRope, RopeTable, Sequences};
use autograd::{Device, Index, Tape, Tensor};

use super::{Adapter, LayerParams, Linear, Mixer, Mlp, ModelWeights, rope};
use crate::Result;
use crate::config::ModelConfig;

/// A model's shape and rotary table; the weights come with every call.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// Shape and constants.
    pub config: Arc<ModelConfig>,
    rope: Arc<RopeTable>,
}

/// What one forward pass computes with.
#[derive(Debug, Clone)]
pub struct ModelParams {
    /// The base weights.
    pub weights: Arc<ModelWeights>,
    /// A LoRA adapter on them.
    pub adapter: Option<Arc<Adapter>>,
    /// Dropout on the adapter's inputs: probability and key of this micro-batch.
    pub dropout: Option<Dropout>,
    /// Layers, from the first on, that keep only their input and run again during backward.
    pub recomputed: usize,
    /// Answer requests with the adapter added to the weights, rounded to their precision (on a GPU).
    pub merge: bool,
}

impl ModelParams {
    /// Inference with these weights.
    #[must_use]
    pub fn inference(weights: Arc<ModelWeights>, adapter: Option<Arc<Adapter>>) -> Self {
        Self { weights, adapter, dropout: None, recomputed: 0, merge: false }
    }

    /// The adapter, for all rows of a batch.
    #[must_use]
    pub fn row_adapters(&self) -> RowAdapters<'_> {
        RowAdapters::Same(self.adapter.as_deref(), self.dropout)
    }

    /// The same in memory of its own, except for base weights that `old` has too: those are not trained.
    ///
    /// # Errors
    /// The device is out of memory.
    pub(crate) fn copied_from(&self, old: &Self) -> Result<Self> {
        if let Some(adapter) = self.adapter.as_ref().filter(|_| self.merge) {
            let weights = Arc::new(self.weights.merged(adapter)?);
            return Ok(Self { weights, adapter: None, ..self.clone() });
        }
        let frozen = Arc::ptr_eq(&self.weights, &old.weights);
        let weights = if frozen { self.weights.clone() } else { Arc::new(self.weights.copied()?) };
        let adapter = self.adapter.as_ref().map(|a| a.copied(self.weights.layout()).map(Arc::new)).transpose()?;
        Ok(Self { weights, adapter, ..self.clone() })
    }

    /// Overwrites this copy's values with those of `from`, of which it was made.
    ///
    /// # Errors
    /// The device was lost.
    pub(crate) fn assign(&self, from: &Self) -> Result<()> {
        if let Some(adapter) = from.adapter.as_ref().filter(|_| from.merge) {
            return self.weights.assign_merged(&from.weights, adapter);
        }
        if !Arc::ptr_eq(&self.weights, &from.weights) {
            self.weights.iter().zip(from.weights.iter()).try_for_each(|(to, from)| to.assign(from))?;
        }
        if let (Some(to), Some(from)) = (&self.adapter, &from.adapter) {
            to.iter().zip(from.iter()).try_for_each(|(to, from)| to.assign(from))?;
        }
        Ok(())
    }
}

/// The LoRA adapters of a batch's rows.
#[derive(Debug, Clone, Copy)]
pub enum RowAdapters<'a> {
    /// One for all rows, or none, with dropout on its inputs while it is trained.
    Same(Option<&'a Adapter>, Option<Dropout>),
    /// One for each segment of rows; inference only.
    Segments(&'a LoraSegments),
}

/// Where attention finds keys and values.
pub trait KvSource {
    /// Attention of one layer's new rows of queries, keys and values, which are normed and rotated and become part of the
    /// memory.
    ///
    /// # Errors
    /// What the ops refuse.
    fn attend(
        &mut self,
        tape: &mut Tape,
        decoder: &Decoder,
        layer: usize,
        qkv: &Tensor,
        norms: Option<[&Tensor; 2]>,
    ) -> Result<Tensor>;
}

/// Sequences that are wholly in the batch.
pub struct PackedKv<'a>(pub &'a Sequences);

impl KvSource for PackedKv<'_> {
    fn attend(
        &mut self,
        tape: &mut Tape,
        decoder: &Decoder,
        layer: usize,
        qkv: &Tensor,
        norms: Option<[&Tensor; 2]>,
    ) -> Result<Tensor> {
        let c = &decoder.config;
        let qkv = ops::qk_rope(tape, decoder.rope(self.0.positions()), qkv, norms)?;
        let op = Attention {
            sequences: self.0.clone(),
            heads: c.num_heads,
            kv_heads: c.num_kv_heads,
            scale: decoder.scale(),
            window: decoder.window(layer),
        };
        Ok(ops::attention(tape, op, &qkv)?)
    }
}

/// Sequences whose earlier tokens are in pages.
pub struct PagedKv<'a> {
    /// The pool.
    pub pool: &'a mut KvPool,
    /// Rows of the batch and their pages.
    pub batch: &'a PagedBatch,
}

impl KvSource for PagedKv<'_> {
    fn attend(
        &mut self,
        _: &mut Tape,
        decoder: &Decoder,
        layer: usize,
        qkv: &Tensor,
        norms: Option<[&Tensor; 2]>,
    ) -> Result<Tensor> {
        let qkv = self.pool.write(layer, decoder.rope(self.batch.positions()), qkv, norms, self.batch)?;
        Ok(self.pool.attend(layer, &qkv, self.batch, decoder.scale(), decoder.window(layer))?)
    }
}

impl Decoder {
    /// A decoder for sequences of up to `positions` tokens.
    #[must_use]
    pub fn new(config: ModelConfig, positions: usize) -> Self {
        let rope = Arc::new(rope::table(&config, positions));
        Self { config: Arc::new(config), rope }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.config.head_dim as f32).sqrt()
    }

    fn window(&self, layer: usize) -> Option<usize> {
        self.config.sliding_window.get(layer).copied().flatten()
    }

    /// Final hidden states `[T, H]` of a packed batch, after the last norm.
    ///
    /// # Errors
    /// Ids or positions out of range.
    pub fn forward_packed(
        &self,
        tape: &mut Tape,
        pass: &ModelParams,
        ids: &Index,
        sequences: &Sequences,
    ) -> Result<Tensor> {
        let x = self.residual_packed(tape, pass, ids, sequences)?;
        self.norm(tape, &x, pass.weights.final_norm())
    }

    /// [`Decoder::forward_packed`] before the last norm: the sum that all layers wrote to.
    ///
    /// # Errors
    /// Ids or positions out of range.
    pub fn residual_packed(
        &self,
        tape: &mut Tape,
        pass: &ModelParams,
        ids: &Index,
        sequences: &Sequences,
    ) -> Result<Tensor> {
        let mut x = ops::embedding(tape, pass.weights.embedding(), ids)?;
        for layer in 0..self.config.num_layers {
            if layer < pass.recomputed {
                let (this, pass, sequences) = (self.clone(), pass.clone(), sequences.clone());
                x = tape.checkpoint(&x, move |tape, x| {
                    let adapters = pass.row_adapters();
                    let result = this.layer(tape, (&pass.weights, adapters), layer, x, &mut PackedKv(&sequences));
                    result.map_err(|e| match e {
                        crate::Error::Op(e) => e,
                        other => unreachable!("a layer only runs ops: {other}"),
                    })
                })?;
            } else {
                let params = (&*pass.weights, pass.row_adapters());
                x = self.layer(tape, params, layer, &x, &mut PackedKv(sequences))?;
            }
        }
        Ok(x)
    }

    /// The last norm, which nothing records.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn normalize(&self, weights: &ModelWeights, residual: &Tensor) -> Result<Tensor> {
        self.norm(&mut Tape::off(), residual, weights.final_norm())
    }

    /// The sum `[T, H]` that all layers wrote to, of rows whose earlier tokens are in pages; their keys and values are added
    /// there.
    ///
    /// # Errors
    /// Ids or positions out of range.
    pub fn residual_paged(
        &self,
        weights: &ModelWeights,
        adapters: RowAdapters<'_>,
        ids: &Index,
        memory: &mut PagedKv<'_>,
    ) -> Result<Tensor> {
        let mut tape = Tape::off();
        let mut x = ops::embedding(&mut tape, weights.embedding(), ids)?;
        for layer in 0..self.config.num_layers {
            x = self.layer(&mut tape, (weights, adapters), layer, &x, memory)?;
        }
        Ok(x)
    }

    fn layer(
        &self,
        tape: &mut Tape,
        (weights, adapters): (&ModelWeights, RowAdapters<'_>),
        index: usize,
        x: &Tensor,
        memory: &mut dyn KvSource,
    ) -> Result<Tensor> {
        let layer = &weights.layout().layers[index];
        let params = &weights.layer(index)?;
        let projections = LayerProjections { params, adapters };
        let norm = |id| Epilogue { norm: Some((params.get(id), self.eps())), ..Epilogue::default() };
        let onto = |x| Epilogue { residual: Some(x), ..Epilogue::default() };
        let x = match &layer.mixer {
            Mixer::Attention(attention) => {
                let qkv = projections.project(tape, &attention.qkv, x, norm(layer.mixer_norm))?;
                let norms = attention.qk_norm.map(|norms| norms.map(|id| params.get(id)));
                let attended = memory.attend(tape, self, index, &qkv, norms)?;
                projections.project(tape, &[attention.output], &attended, onto(x))?
            }
        };
        match &layer.mlp {
            Mlp::Dense(mlp) => {
                let gated = Epilogue { swiglu: true, ..norm(layer.mlp_norm) };
                let inner = projections.project(tape, &mlp.gate_up, &x, gated)?;
                projections.project(tape, &[mlp.down], &inner, onto(&x))
            }
        }
    }

    fn rope(&self, positions: &Index) -> QkRope {
        QkRope {
            table: self.rope.clone(),
            positions: positions.clone(),
            heads: [self.config.num_heads, self.config.num_kv_heads],
            eps: self.eps(),
        }
    }

    fn eps(&self) -> f32 {
        self.config.rms_norm_eps as f32
    }

    fn norm(&self, tape: &mut Tape, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        Ok(ops::rms_norm(tape, x, w, self.eps())?)
    }

    /// Where the weights live.
    #[must_use]
    pub fn device(weights: &ModelWeights) -> Device {
        weights.embedding().device()
    }
}

/// The projections of one layer.
struct LayerProjections<'a> {
    params: &'a LayerParams<'a>,
    adapters: RowAdapters<'a>,
}

impl LayerProjections<'_> {
    /// Projections of `x` side by side, each with its LoRA adapter when the rows have one, and what is around them.
    fn project(&self, tape: &mut Tape, linears: &[Linear], x: &Tensor, around: Epilogue<'_>) -> Result<Tensor> {
        let projection = |linear: &Linear| Projection {
            weight: self.params.get(linear.weight),
            bias: linear.bias.map(|id| self.params.get(id)),
            low_rank: None,
        };
        let mut projections: Vec<Projection<'_>> = linears.iter().map(projection).collect();
        match self.adapters {
            RowAdapters::Segments(segments) => {
                let indices: Vec<usize> = linears.iter().map(|linear| linear.index).collect();
                Ok(ops::project_segments(x, (&projections, &indices), segments, around)?)
            }
            RowAdapters::Same(adapter, dropout) => {
                for (projection, linear) in projections.iter_mut().zip(linears) {
                    let lora = adapter.and_then(|adapter| adapter.modules.get(&linear.weight));
                    projection.low_rank =
                        lora.map(|lora| lora.low_rank(dropout.map(|d| of_projection(d, linear.index))));
                }
                Ok(ops::project_within(tape, x, &projections, around)?)
            }
        }
    }
}

/// Every projection has a dropout mask of its own: the key is mixed with its index by an odd constant.
fn of_projection(dropout: Dropout, index: usize) -> Dropout {
    Dropout { key: dropout.key.wrapping_add((index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)), ..dropout }
}
