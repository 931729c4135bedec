//! Llama: SmolLM2, TinyLlama, Llama 3.x.

use super::Dim::{Hidden, Intermediate, KeyValues, Queries, Vocab};
use super::{Module, TableRow, TensorRole, Vector, entry};

pub(super) const TABLE: &[TableRow] = &[
    entry("model.embed_tokens.weight", TensorRole::Embedding, &[Vocab, Hidden]),
    entry("model.norm.weight", TensorRole::FinalNorm, &[Hidden]),
    entry("lm_head.weight", TensorRole::Head, &[Vocab, Hidden]),
    entry("input_layernorm.weight", TensorRole::Vector(Vector::InputNorm), &[Hidden]),
    entry("self_attn.q_proj.weight", TensorRole::Linear(Module::Q), &[Queries, Hidden]),
    entry("self_attn.k_proj.weight", TensorRole::Linear(Module::K), &[KeyValues, Hidden]),
    entry("self_attn.v_proj.weight", TensorRole::Linear(Module::V), &[KeyValues, Hidden]),
    entry("self_attn.o_proj.weight", TensorRole::Linear(Module::O), &[Hidden, Queries]),
    entry("post_attention_layernorm.weight", TensorRole::Vector(Vector::PostNorm), &[Hidden]),
    entry("mlp.gate_proj.weight", TensorRole::Linear(Module::Gate), &[Intermediate, Hidden]),
    entry("mlp.up_proj.weight", TensorRole::Linear(Module::Up), &[Intermediate, Hidden]),
    entry("mlp.down_proj.weight", TensorRole::Linear(Module::Down), &[Hidden, Intermediate]),
];
