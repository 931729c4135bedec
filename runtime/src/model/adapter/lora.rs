//! What an adapter is made from.

/// Low-rank adaptation (<https://arxiv.org/abs/2106.09685>), with PEFT's names and rules.
#[derive(Debug, Clone)]
pub struct LoraConfig {
    /// Rank of every module without a pattern of its own.
    pub r: usize,
    /// Numerator of the scale: `alpha / r`, or `alpha / sqrt(r)` with `rslora`.
    pub alpha: f64,
    /// Probability of zeroing an input of A during training.
    pub dropout: f64,
    /// Rank-stabilised scale.
    pub rslora: bool,
    /// Module names (`q_proj`, ...), or the single entry `all-linear`.
    pub target_modules: Vec<String>,
    /// Ranks of modules whose name matches `(.*\.)?KEY$`.
    pub rank_pattern: std::collections::BTreeMap<String, usize>,
    /// Alphas of modules whose name matches `(.*\.)?KEY$`.
    pub alpha_pattern: std::collections::BTreeMap<String, f64>,
    /// Answer requests with the branches added to the weights (on a GPU): faster, but the weights' precision rounds what
    /// the adapter adds, so that the sampler's log-probabilities differ from the trainer's.
    pub merge_for_requests: bool,
    /// Seed of A's initial values.
    pub seed: u64,
}
