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
    ("draw.cuh", text!("draw.cuh")),
    ("extras.cuh", text!("extras.cuh")),
    ("logits.cuh", text!("logits.cuh")),
    ("mma.cuh", text!("mma.cuh")),
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
    File { name: "distill.cu", source: text!("distill.cu"), kernels: &["distill_rows", "distill_rows_bf16"] },
    File {
        name: "distill_top_k.cu",
        source: text!("distill_top_k.cu"),
        kernels: &["distill_top_k_rows", "distill_top_k_rows_bf16"],
    },
    File {
        name: "elementwise.cu",
        source: text!("elementwise.cu"),
        kernels: &[
            "accumulate",
            "accumulate_bf16",
            "add",
            "add_bias",
            "cast_to_bf16",
            "cast_to_f32",
            "column_sum_partials",
            "dropout",
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
    File { name: "gemv.cu", source: text!("gemv.cu"), kernels: &["gemv", "gemv_f32"] },
    File {
        name: "history.cu",
        source: text!("history.cu"),
        kernels: &["adjust_logits", "count_tokens", "mark_prompt"],
    },
    File { name: "kv_cache.cu", source: text!("kv_cache.cu"), kernels: &["kv_copy_page", "kv_write"] },
    File { name: "listed.cu", source: text!("listed.cu"), kernels: &["list_log_probs"] },
    File { name: "lora.cu", source: text!("lora.cu"), kernels: &["lora_up"] },
    File { name: "norm.cu", source: text!("norm.cu"), kernels: &["rms_norm_backward", "rms_norm_forward"] },
    File {
        name: "optimizer.cu",
        source: text!("optimizer.cu"),
        kernels: &["adamw", "square_sum_finish", "square_sum_partials"],
    },
    File {
        name: "rope.cu",
        source: text!("rope.cu"),
        kernels: &["qk_norm_rope_backward", "qk_norm_rope_forward", "qk_norm_rope_paged"],
    },
    File {
        name: "sampler.cu",
        source: text!("sampler.cu"),
        kernels: &["feed_tokens", "sample_partials", "sample_partials_bf16", "sample_rows", "sample_rows_bf16"],
    },
    File { name: "swiglu.cu", source: text!("swiglu.cu"), kernels: &["swiglu_backward", "swiglu_forward"] },
    File {
        name: "token_losses.cu",
        source: text!("token_losses.cu"),
        kernels: &[
            "cross_entropy_rows",
            "cross_entropy_rows_bf16",
            "log_prob_rows",
            "log_prob_rows_bf16",
            "policy_gradient_rows",
            "policy_gradient_rows_bf16",
        ],
    },
];
