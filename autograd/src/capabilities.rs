//! What a device's kernels and memory can do: the facts that engine, memory plan and commands decide by.

/// Whether a row's results depend on the rows beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchInvariance {
    /// Never, whatever is asked.
    Always,
    /// Not while the mode is held ([`crate::Device::hold_mode`]).
    Mode,
    /// They do.
    Unsupported,
}

/// What is chosen for a device where nothing is said.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    /// Tokens of one scheduler step that keep it busy: a GPU wants whole prompts, a CPU short steps between which running
    /// sequences get their next token.
    pub step_tokens: usize,
    /// Sequences a server runs at once.
    pub served_sequences: usize,
    /// Sequences that an evaluation or a training run has under way at once.
    pub batch_sequences: usize,
    /// Tokens of the sequences that an evaluation has under way at once.
    pub batch_tokens: usize,
    /// Tokens of a micro-batch with low-rank branches. Larger ones are 3 % faster and take 3 GB more (0.6B on an H200).
    pub lora_micro_batch: usize,
    /// Tokens of a micro-batch where every weight is trained, which misses those 3 GB.
    pub full_micro_batch: usize,
    /// Tokens of one forward pass, at most, that a person waits for after Ctrl-C: a second or two.
    pub interruptible_tokens: usize,
    /// Tokens of an answer whose request names no length; `None` for as many as fit. A small model that never ends would
    /// go on for minutes on a CPU.
    pub answer_tokens: Option<usize>,
}

/// What a device can do. One constant for each kind of device, beside its kernels.
#[derive(Debug, Clone, Copy)]
pub struct Capabilities {
    /// Bytes of a value of activations and weights.
    pub value_bytes: usize,
    /// Whether its memory is apart from the host's: weights and optimizer state can be kept on the host instead.
    pub own_memory: bool,
    /// Whether steps of decodes are captured once and launched as one graph.
    pub graphs: bool,
    /// Whether tokens are sampled where the logits are.
    pub samples: bool,
    /// Whether it computes while the host looks at results.
    pub asynchronous: bool,
    /// Whether requests run with a copy of trained weights: the optimizer changes these in place.
    pub copies_trained_weights: bool,
    /// Bytes that an allocation of so many bytes takes.
    pub block_bytes: fn(usize) -> usize,
    /// Whether results depend on the batch.
    pub batch_invariance: BatchInvariance,
    /// Where nothing is said.
    pub defaults: Defaults,
}

/// Of a device that computes on the host's cores, in f32.
pub(crate) const HOST: Capabilities = Capabilities {
    value_bytes: 4,
    own_memory: false,
    graphs: false,
    samples: false,
    asynchronous: false,
    copies_trained_weights: false,
    block_bytes: |bytes| bytes,
    batch_invariance: BatchInvariance::Unsupported,
    defaults: Defaults {
        step_tokens: 512,
        served_sequences: 32,
        batch_sequences: 64,
        batch_tokens: 1 << 14,
        lora_micro_batch: 2048,
        full_micro_batch: 2048,
        interruptible_tokens: 512,
        answer_tokens: Some(1024),
    },
};
