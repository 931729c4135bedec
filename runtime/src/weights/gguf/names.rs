//! GGUF's tensor names and Hugging Face's.

/// Names outside the layers.
const GLOBAL: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Names inside layer N: `blk.N.<left>` is `model.layers.N.<right>`.
const LAYER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

fn look_up(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    table.iter().find(|(gguf, _)| *gguf == name).map(|(_, hf)| *hf)
}

/// The Hugging Face name of a GGUF tensor; `None` if the families here have no such tensor.
pub(super) fn hugging_face_name(gguf: &str) -> Option<String> {
    let (stem, kind) = gguf.rsplit_once('.')?;
    if !matches!(kind, "weight" | "bias") {
        return None;
    }
    let Some(in_layer) = stem.strip_prefix("blk.") else {
        if kind == "bias" {
            return None;
        }
        return Some(format!("{}.{kind}", look_up(&GLOBAL, stem)?));
    };
    let (layer, part) = in_layer.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    if kind == "bias" && !matches!(part, "attn_q" | "attn_k" | "attn_v") {
        return None;
    }
    Some(format!("model.layers.{layer}.{}.{kind}", look_up(&LAYER, part)?))
}

#[cfg(test)]
mod tests {
    use super::hugging_face_name;

    #[test]
    fn names_map_or_are_refused() {
        let map = |name| hugging_face_name(name);
        assert_eq!(map("output.weight").as_deref(), Some("lm_head.weight"));
        assert_eq!(map("blk.11.attn_q.bias").as_deref(), Some("model.layers.11.self_attn.q_proj.bias"));
        assert_eq!(map("blk.0.attn_output.bias"), None);
        assert_eq!(map("output.bias"), None);
        assert_eq!(map("blk.0.ffn_gate_inp.weight"), None);
        assert_eq!(map("blk.x.attn_q.weight"), None);
        assert_eq!(map("token_embd.scale"), None);
        assert_eq!(map("weight"), None);
    }
}
