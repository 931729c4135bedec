//! Qwen3 dense: Llama with RMSNorm on every query and key head.

use super::Dim::Head;
use super::Shard::Replicated;
use super::{Entry, Part, Vector, entry};

pub(super) const MORE: &[Entry] = &[
    entry("self_attn.q_norm.weight", Part::Vector(Vector::QNorm), &[Head], Replicated),
    entry("self_attn.k_norm.weight", Part::Vector(Vector::KNorm), &[Head], Replicated),
];
