//! Llama: SmolLM2, TinyLlama, Llama 3.x.

use super::Dim::{Hidden, Intermediate, KeyValues, Queries, Vocab};
use super::Shard::{Column, Replicated, Row};
use super::{Module, Shard, TableRow, TensorRole, Vector, entry};

pub(super) const TABLE: &[TableRow] = &[
    entry("model.embed_tokens.weight", TensorRole::Embedding, &[Vocab, Hidden], Shard::Vocab),
    entry("model.norm.weight", TensorRole::FinalNorm, &[Hidden], Replicated),
    entry("lm_head.weight", TensorRole::Head, &[Vocab, Hidden], Shard::Vocab),
    entry("input_layernorm.weight", TensorRole::Vector(Vector::InputNorm), &[Hidden], Replicated),
    entry("self_attn.q_proj.weight", TensorRole::Linear(Module::Q), &[Queries, Hidden], Column),
    entry("self_attn.k_proj.weight", TensorRole::Linear(Module::K), &[KeyValues, Hidden], Column),
    entry("self_attn.v_proj.weight", TensorRole::Linear(Module::V), &[KeyValues, Hidden], Column),
    entry("self_attn.o_proj.weight", TensorRole::Linear(Module::O), &[Hidden, Queries], Row),
    entry("post_attention_layernorm.weight", TensorRole::Vector(Vector::PostNorm), &[Hidden], Replicated),
    entry("mlp.gate_proj.weight", TensorRole::Linear(Module::Gate), &[Intermediate, Hidden], Column),
    entry("mlp.up_proj.weight", TensorRole::Linear(Module::Up), &[Intermediate, Hidden], Column),
    entry("mlp.down_proj.weight", TensorRole::Linear(Module::Down), &[Hidden, Intermediate], Row),
];
