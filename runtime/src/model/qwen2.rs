//! Qwen2 and Qwen2.5: Llama with biases on q, k and v.

use super::Dim::{KeyValues, Queries};
use super::{Module, TableRow, TensorRole, Vector, entry};

pub(super) const MORE: &[TableRow] = &[
    entry("self_attn.q_proj.bias", TensorRole::Vector(Vector::Bias(Module::Q)), &[Queries]),
    entry("self_attn.k_proj.bias", TensorRole::Vector(Vector::Bias(Module::K)), &[KeyValues]),
    entry("self_attn.v_proj.bias", TensorRole::Vector(Vector::Bias(Module::V)), &[KeyValues]),
];
