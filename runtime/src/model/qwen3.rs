//! Qwen3 dense: Llama with RMSNorm on every query and key head.

use super::Dim::Head;
use super::{TableRow, TensorRole, Vector, entry};

pub(super) const MORE: &[TableRow] = &[
    entry("self_attn.q_norm.weight", TensorRole::Vector(Vector::QNorm), &[Head]),
    entry("self_attn.k_norm.weight", TensorRole::Vector(Vector::KNorm), &[Head]),
];
