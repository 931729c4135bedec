//! The kernel files of `autograd/kernels`, part of the program.

/// A file and what it defines.
pub(super) struct File {
    /// Below `autograd/kernels`.
    pub(super) name: &'static str,
    /// Its text.
    pub(super) source: &'static str,
    /// Its `extern "C" __global__` functions. A test compares them with the compiled code.
    pub(super) kernels: &'static [&'static str],
}

macro_rules! text {
    ($file:literal) => {
        include_str!(concat!("../../kernels/", $file))
    };
}

/// Files that others include, with the name they are included by.
pub(super) const HEADERS: &[(&str, &str)] = &[
    ("attention.cuh", text!("attention.cuh")),
    ("common.cuh", text!("common.cuh")),
    ("distill.cuh", text!("distill.cuh")),
    ("sample.cuh", text!("sample.cuh")),
    ("logits_processors.cuh", text!("logits_processors.cuh")),
    ("logits.cuh", text!("logits.cuh")),
    ("mma.cuh", text!("mma.cuh")),
    ("swiglu.cuh", text!("swiglu.cuh")),
];

/// All kernels. To add a file, add its entry here.
pub(super) const FILES: &[File] = &[
    File {
        name: "attention_backward.cu",
        source: text!("attention_backward.cu"),
        kernels: &[
            "attention_backward_delta",
            "attention_backward_kv_d128",
            "attention_backward_kv_d256",
            "attention_backward_kv_d64",
            "attention_backward_kv_d96",
            "attention_backward_q_d128",
            "attention_backward_q_d256",
            "attention_backward_q_d64",
            "attention_backward_q_d96",
        ],
    },
    File {
        name: "attention_decode.cu",
        source: text!("attention_decode.cu"),
        kernels: &[
            "attention_combine_d128",
            "attention_combine_d256",
            "attention_combine_d64",
            "attention_combine_d96",
            "attention_decode_d128",
            "attention_decode_d256",
            "attention_decode_d64",
            "attention_decode_d96",
        ],
    },
    File {
        name: "attention_forward.cu",
        source: text!("attention_forward.cu"),
        kernels: &[
            "attention_forward_d128",
            "attention_forward_d256",
            "attention_forward_d64",
            "attention_forward_d96",
            "attention_paged_d128",
            "attention_paged_d256",
            "attention_paged_d64",
            "attention_paged_d96",
        ],
    },
    File {
        name: "attention_single.cu",
        source: text!("attention_single.cu"),
        kernels: &["attention_single_d128", "attention_single_d256", "attention_single_d64", "attention_single_d96"],
    },
    File { name: "distill.cu", source: text!("distill.cu"), kernels: &["distill_rows"] },
    File { name: "distill_top_k.cu", source: text!("distill_top_k.cu"), kernels: &["distill_top_k_rows"] },
    File {
        name: "elementwise.cu",
        source: text!("elementwise.cu"),
        kernels: &[
            "accumulate",
            "add",
            "cast_to_f32",
            "column_sum_partials",
            "dropout",
            "exclude_columns",
            "fill",
            "scale",
            "scale_bf16",
            "sum_partials",
        ],
    },
    File {
        name: "embedding.cu",
        source: text!("embedding.cu"),
        kernels: &["embedding_backward", "embedding_forward", "select_rows_backward", "select_rows_forward"],
    },
    File {
        name: "skinny_gemm.cu",
        source: text!("skinny_gemm.cu"),
        kernels: &[
            "skinny_gemm_1",
            "skinny_gemm_2",
            "skinny_gemm_3",
            "skinny_gemm_4",
            "skinny_gemm_6",
            "skinny_gemm_8",
        ],
    },
    File {
        name: "teacher_rows.cu",
        source: text!("teacher_rows.cu"),
        kernels: &["expand_top_rows", "place_logits_bf16", "place_logits_f32"],
    },
    File {
        name: "history.cu",
        source: text!("history.cu"),
        kernels: &["adjust_logits", "count_tokens", "mark_prompt"],
    },
    File { name: "top_log_probs.cu", source: text!("top_log_probs.cu"), kernels: &["list_log_probs"] },
    File {
        name: "lora.cu",
        source: text!("lora.cu"),
        kernels: &["lora_down_grouped", "lora_up", "lora_up_grouped", "lora_up_swiglu"],
    },
    File {
        name: "matmul_batch_invariant.cu",
        source: text!("matmul_batch_invariant.cu"),
        kernels: &[
            "matmul_batch_invariant_few",
            "matmul_batch_invariant_few_f32",
            "matmul_batch_invariant_many",
            "matmul_batch_invariant_many_f32",
        ],
    },
    File { name: "norm.cu", source: text!("norm.cu"), kernels: &["rms_norm_backward", "rms_norm_forward"] },
    File { name: "optimizer.cu", source: text!("optimizer.cu"), kernels: &["adamw", "square_sum_partials"] },
    File {
        name: "rope.cu",
        source: text!("rope.cu"),
        kernels: &["qk_norm_rope_backward", "qk_norm_rope_forward", "qk_norm_rope_paged"],
    },
    File {
        name: "sampler.cu",
        source: text!("sampler.cu"),
        kernels: &["feed_tokens", "sample_partials", "sample_rows"],
    },
    File { name: "swiglu.cu", source: text!("swiglu.cu"), kernels: &["swiglu_backward", "swiglu_forward"] },
    File {
        name: "token_losses.cu",
        source: text!("token_losses.cu"),
        kernels: &["cross_entropy_rows", "drawn_log_probs", "log_prob_rows", "policy_gradient_rows"],
    },
];

/// Kernels that a graph may start while those before them still run: they wait themselves, by `take_turn` or
/// `wait_for_previous` of `common.cuh`.
pub(super) const OVERLAPPING: &[&str] = &[
    "attention_combine_d128",
    "attention_combine_d256",
    "attention_combine_d64",
    "attention_combine_d96",
    "attention_decode_d128",
    "attention_decode_d256",
    "attention_decode_d64",
    "attention_decode_d96",
    "embedding_forward",
    "skinny_gemm_1",
    "skinny_gemm_2",
    "skinny_gemm_3",
    "skinny_gemm_4",
    "skinny_gemm_6",
    "skinny_gemm_8",
    "lora_down_grouped",
    "lora_up",
    "lora_up_grouped",
    "lora_up_swiglu",
    "qk_norm_rope_paged",
    "rms_norm_forward",
    "swiglu_forward",
];

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// The text of a kernel: from its name to the next kernel. Kernels of a macro are named up to their number.
    fn text_of(name: &str) -> &'static str {
        let file = FILES.iter().find(|f| f.kernels.contains(&name)).unwrap_or_else(|| panic!("{name} is in no file"));
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let mut kernels = file.source.split("__global__").skip(1);
        kernels
            .find(|text| {
                text.contains(&format!("{stem}("))
                    || text.contains(&format!("{stem}##"))
                    || text.contains(&format!("CAT({stem},"))
            })
            .unwrap_or_else(|| panic!("{name} is not in {}", file.name))
    }

    /// The program's own text, this file left out.
    fn sources(folder: &Path) -> String {
        let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        let text = |path: PathBuf| match path.extension() {
            _ if path.is_dir() => sources(&path),
            Some(end) if end == "rs" && !path.ends_with("cuda/table.rs") => {
                std::fs::read_to_string(&path).expect("a source")
            }
            _ => String::new(),
        };
        entries.map(text).collect()
    }

    #[test]
    fn every_kernel_is_launched_somewhere() {
        let text = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
        for name in FILES.iter().flat_map(|file| file.kernels) {
            // Numbers, as of head widths, are put in when a kernel is launched.
            let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
            let written =
                [format!("\"{name}\""), format!("\"{stem}{{"), format!("\"{}\"", stem.trim_end_matches("_d"))];
            assert!(written.iter().any(|written| text.contains(written)), "nothing launches {name}");
        }
    }

    #[test]
    fn kernels_that_overlap_wait_for_those_before_them() {
        for name in OVERLAPPING {
            let text = text_of(name);
            let waits = ["take_turn();", "wait_for_previous();"].iter().any(|call| text.contains(call));
            assert!(waits, "{name} does not wait");
        }
    }
}
