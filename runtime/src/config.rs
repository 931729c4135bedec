//! What a decoder looks like, whichever file it came from.

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
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v carry a bias.
    pub attention_bias: bool,
    /// Per layer: attend to this many last positions only; empty when no layer slides.
    pub sliding_window: Vec<Option<usize>>,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Ids that end a generation (`generation_config.json` first, then `config.json`).
    pub eos_token_ids: Vec<u32>,
    /// Id put before a text by tokenizers that ask for it.
    pub bos_token_id: Option<u32>,
}
