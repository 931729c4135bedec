//! What memory is taken for, as errors and plans name it.

/// A purpose that memory is planned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// Weights of all models, and their adapters.
    Weights,
    /// Copies of what is trained: to train, or to answer requests meanwhile.
    Copies,
    /// Sums of gradients in f32.
    Gradients,
    /// Both moments, and the masters in f32 where weights have less.
    Optimizer,
    /// Keys and values of running and cached sequences.
    Kv,
    /// What passes through the layers: of a micro-batch for its backward pass, or of a step of requests.
    Activations,
    /// Rows of logits.
    Logits,
    /// What products and transfers need besides their operands, and many small buffers.
    Workspace,
    /// Captured decode steps.
    Graphs,
    /// Driver and libraries, outside the allocator.
    Driver,
}

impl Entry {
    /// Its name in a printed plan.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Copies => "copies",
            Self::Gradients => "gradients",
            Self::Optimizer => "optimizer",
            Self::Kv => "kv",
            Self::Activations => "activations",
            Self::Logits => "logits",
            Self::Workspace => "workspace",
            Self::Graphs => "graphs",
            Self::Driver => "driver",
        }
    }

    /// What makes it smaller.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Weights => "choose a smaller model, offload the teacher, or stop other programs on the device",
            Self::Copies | Self::Gradients => "train fewer weights: an adapter, or one of smaller rank",
            Self::Optimizer => "offload the optimizer, or train fewer weights: an adapter, or one of smaller rank",
            Self::Kv => "give the KV memory less",
            Self::Activations => "use fewer tokens in a micro-batch or scheduler step, or compute more layers again",
            Self::Logits => "use fewer tokens in a micro-batch, or fewer sequences at a time",
            Self::Graphs => "run fewer sequences at a time",
            Self::Workspace | Self::Driver => "stop other programs on the device",
        }
    }
}
