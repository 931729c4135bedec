//! What a decoder looks like, whichever file it came from.
//!
//! `hf` reads and writes Hugging Face's `config.json`, `gguf` reads GGUF metadata. A field that the decoder
//! cannot honour is refused there, never dropped.

mod gguf;
mod hf;
mod keys;
mod rope;

use std::path::Path;

use crate::{Error, Result};

/// The model families that the one decoder implements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama, SmolLM2, TinyLlama, Llama 3.x (`model_type = "llama"`).
    Llama,
    /// Qwen2 and Qwen2.5 (`model_type = "qwen2"`): Llama with biases on q, k and v.
    Qwen2,
    /// Qwen3 dense (`model_type = "qwen3"`): per-head RMSNorm on q and k, free `head_dim`.
    Qwen3,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];
}

/// How rotary frequencies are changed for contexts beyond the pre-training length.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Plain RoPE.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// How many times longer the context becomes.
        factor: f64,
    },
    /// Llama 3's piecewise scaling by wavelength.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are scaled in full.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are not scaled.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_max_position: usize,
    },
    /// YaRN (<https://arxiv.org/abs/2309.00071>).
    Yarn {
        /// How many times longer the context becomes.
        factor: f64,
        /// Rotations at which interpolation starts.
        beta_fast: f64,
        /// Rotations at which interpolation is complete.
        beta_slow: f64,
        /// Context length of pre-training.
        original_max_position: usize,
        /// Factor on cos and sin; `None` means `0.1 ln(factor) + 1`.
        attention_factor: Option<f64>,
    },
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Change of the frequencies for long contexts.
    pub scaling: RopeScaling,
}

/// Shape and constants of one decoder-only model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which family's names, biases and norms apply.
    pub family: Family,
    /// Width of the residual stream, H.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key / value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head; `num_heads * head_dim` need not equal `hidden_size`.
    pub head_dim: usize,
    /// Rows of the embedding and of the output head.
    pub vocab_size: usize,
    /// The first so many of them belong to tokens; the others are padding, which is in no softmax and never sampled. All of
    /// them, until a run compares the model with one of another padding.
    pub token_ids: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v carry a bias.
    pub attention_bias: bool,
    /// Probability of leaving out an attention weight in training. The trainer has no such dropout and refuses it.
    pub attention_dropout: f64,
    /// Per layer: attend to this many last positions only; empty when no layer slides.
    pub sliding_window: Vec<Option<usize>>,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Ids that end a generation (`generation_config.json` first, then `config.json`).
    pub eos_token_ids: Vec<u32>,
    /// Id put before a text by tokenizers that ask for it.
    pub bos_token_id: Option<u32>,
}

/// Columns of a weight, generously: products of sizes stay far from the end of 64 bits.
const MOST_COLUMNS: usize = 1 << 22;
/// Rows of the embedding, generously.
const MOST_ROWS: usize = 1 << 28;
/// Layers, generously.
const MOST_LAYERS: usize = 1 << 12;
/// Positions are 32-bit numbers.
const MOST_POSITIONS: usize = i32::MAX as usize;

/// A size between 1 and `most`.
fn within(path: &Path, key: &str, size: usize, most: usize) -> Result<()> {
    match size {
        0 => Err(Error::bad_key(path, key, 0, "at least 1 is needed")),
        size if size > most => Err(Error::bad_key(path, key, size, format!("no model has more than {most}"))),
        _ => Ok(()),
    }
}

impl ModelConfig {
    /// Refuses shapes that no decoder of these families can have, and sizes beyond which no model is.
    fn check(self, path: &Path) -> Result<Self> {
        let (heads, kv_heads) = (self.num_heads, self.num_kv_heads);
        let sizes = [
            ("hidden_size", self.hidden_size, MOST_COLUMNS),
            ("intermediate_size", self.intermediate_size, MOST_COLUMNS),
            ("num_hidden_layers", self.num_layers, MOST_LAYERS),
            ("num_attention_heads", heads, MOST_COLUMNS),
            ("num_key_value_heads", kv_heads, MOST_COLUMNS),
            ("head_dim", self.head_dim, MOST_COLUMNS),
            ("num_attention_heads * head_dim", heads.saturating_mul(self.head_dim), MOST_COLUMNS),
            ("num_key_value_heads * head_dim", kv_heads.saturating_mul(self.head_dim), MOST_COLUMNS),
            ("vocab_size", self.vocab_size, MOST_ROWS),
            ("max_position_embeddings", self.max_position_embeddings, MOST_POSITIONS),
        ];
        sizes.into_iter().try_for_each(|(key, size, most)| within(path, key, size, most))?;
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let want = format!("it must divide the {} attention heads", self.num_heads);
            return Err(Error::bad_key(path, "num_key_value_heads", self.num_kv_heads, want));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::bad_key(path, "head_dim", self.head_dim, "rotary embedding needs an even width"));
        }
        if !(self.rope.theta.is_finite() && self.rope.theta > 0.0) {
            return Err(Error::bad_key(path, "rope_theta", self.rope.theta, "a positive number is needed"));
        }
        if !(0.0..1.0).contains(&self.attention_dropout) {
            let want = "a probability below 1 is needed";
            return Err(Error::bad_key(path, "attention_dropout", self.attention_dropout, want));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(Error::bad_key(path, "rms_norm_eps", self.rms_norm_eps, "a number of at least 0 is needed"));
        }
        Ok(self)
    }
}
