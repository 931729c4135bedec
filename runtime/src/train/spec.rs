//! How a student is trained.

use crate::model::LoraConfig;

/// How the student is trained.
#[derive(Debug, Clone)]
pub struct Training {
    /// What is trained.
    pub trainable: Trainable,
    /// Layers, from the first on, that keep only their input during the forward pass and run again during backward.
    /// Backward begins at the last layer, so the memory of the others is free by then.
    pub recomputed_layers: usize,
    /// What waits in the host's memory instead of the GPU's.
    pub offload: Offload,
    /// The teacher completes prompts as well. One that only scores has KV memory of one page.
    pub teacher_generates: bool,
}

/// What is trained.
#[derive(Debug, Clone)]
pub enum Trainable {
    /// Low-rank branches on frozen weights.
    Lora(LoraConfig),
    /// Every weight of the student.
    Full,
}

/// What lies in pinned memory of the host and passes through the GPU when it is needed; on a GPU only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// The layers of the teacher, one after another.
    pub teacher: bool,
    /// Masters and moments, a piece at a time.
    pub optimizer: bool,
}
