//! Qwen3 dense: RMSNorm on every query and key head, no biases.

use super::Dim::{Head, Hidden, Intermediate, KeyValues, Queries, Vocab};
use super::Shard::{Column, Replicated, Row};
use super::{Entry, Module, Part, Shard, Vector, entry};

pub(super) const TABLE: &[Entry] = &[
    entry("model.embed_tokens.weight", Part::Embedding, &[Vocab, Hidden], Shard::Vocab),
    entry("model.norm.weight", Part::FinalNorm, &[Hidden], Replicated),
    entry("lm_head.weight", Part::Head, &[Vocab, Hidden], Shard::Vocab),
    entry("input_layernorm.weight", Part::Vector(Vector::InputNorm), &[Hidden], Replicated),
    entry("self_attn.q_proj.weight", Part::Linear(Module::Q), &[Queries, Hidden], Column),
    entry("self_attn.k_proj.weight", Part::Linear(Module::K), &[KeyValues, Hidden], Column),
    entry("self_attn.v_proj.weight", Part::Linear(Module::V), &[KeyValues, Hidden], Column),
    entry("self_attn.o_proj.weight", Part::Linear(Module::O), &[Hidden, Queries], Row),
    entry("self_attn.q_norm.weight", Part::Vector(Vector::QNorm), &[Head], Replicated),
    entry("self_attn.k_norm.weight", Part::Vector(Vector::KNorm), &[Head], Replicated),
    entry("post_attention_layernorm.weight", Part::Vector(Vector::PostNorm), &[Hidden], Replicated),
    entry("mlp.gate_proj.weight", Part::Linear(Module::Gate), &[Intermediate, Hidden], Column),
    entry("mlp.up_proj.weight", Part::Linear(Module::Up), &[Intermediate, Hidden], Column),
    entry("mlp.down_proj.weight", Part::Linear(Module::Down), &[Hidden, Intermediate], Row),
];
