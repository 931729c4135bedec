//! The ops, one file each.
//!
//! An op has its native forward, its native backward, and the same mathematics as one burn expression. The expression
//! is what runs on [`Device::Reference`](crate::Device::Reference), where its gradient comes from burn's autodiff, and what the native code is
//! checked against: a native backward is verified by code that nobody here wrote.

mod add;
mod attention;
mod cross_entropy;
mod distill;
mod divergence;
mod embedding;
mod head;
mod linear;
mod log_prob;
mod policy_gradient;
mod rms_norm;
mod rope;
mod rows;
pub(crate) mod sample;
mod swiglu;

pub use crate::op::{Op, Recorded};
pub(crate) use crate::op::{check_layouts, ensure, ensure_index};
pub use add::{Add, add};
pub use attention::{Attention, Sequences, attention};
pub(crate) use attention::{check_window, reference_parts, reference_sequence};
pub use cross_entropy::linear_cross_entropy;
pub use distill::{Distill, linear_distill};
pub use divergence::Divergence;
pub use embedding::{Embedding, embedding};
pub use head::{Head, LogitRows, Precision, Rows, Teacher, TeacherRows, TopRows, gpu_loss_bytes, logits};
pub use linear::{
    Dropout, Epilogue, GROUPED_RANKS, Linear, LoraModule, LoraModules, LoraSegment, LoraSegments, LowRank, Projection,
    linear, merge, project, project_segments, project_within,
};
pub use log_prob::linear_log_prob;
pub use policy_gradient::linear_policy_gradient;
pub use rms_norm::{RmsNorm, rms_norm};
pub use rope::{QkRope, RopeTable, qk_rope};
pub use rows::{SelectRows, select_rows};
pub use sample::{
    LISTED, LogitsProcessorSpec, LogitsProcessors, PendingSamples, SampleArgs, SampleBuffer, SampleParams,
    SampleResult, Token,
};
pub use swiglu::{SwiGlu, swiglu};
