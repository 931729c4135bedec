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

/// Files that others include, with the name they are included by.
pub(super) const HEADERS: &[(&str, &str)] = &[
    ("attention.cuh", include_str!("../../kernels/attention.cuh")),
    ("common.cuh", include_str!("../../kernels/common.cuh")),
    ("distill.cuh", include_str!("../../kernels/distill.cuh")),
    ("logits.cuh", include_str!("../../kernels/logits.cuh")),
    ("mma.cuh", include_str!("../../kernels/mma.cuh")),
];

/// All kernels. To add a file, add its entry here.
pub(super) const FILES: &[File] = &[
    File {
        name: "attention_backward.cu",
        source: include_str!("../../kernels/attention_backward.cu"),
        kernels: &[
            "attention_backward_delta",
            "attention_backward_q_d64",
            "attention_backward_q_d96",
            "attention_backward_q_d128",
            "attention_backward_q_d256",
            "attention_backward_kv_d64",
            "attention_backward_kv_d96",
            "attention_backward_kv_d128",
            "attention_backward_kv_d256",
        ],
    },
    File {
        name: "attention_decode.cu",
        source: include_str!("../../kernels/attention_decode.cu"),
        kernels: &[
            "attention_decode_d64",
            "attention_decode_d96",
            "attention_decode_d128",
            "attention_decode_d256",
            "attention_combine_d64",
            "attention_combine_d96",
            "attention_combine_d128",
            "attention_combine_d256",
        ],
    },
    File {
        name: "attention_forward.cu",
        source: include_str!("../../kernels/attention_forward.cu"),
        kernels: &[
            "attention_forward_d64",
            "attention_forward_d96",
            "attention_forward_d128",
            "attention_forward_d256",
            "attention_paged_d64",
            "attention_paged_d96",
            "attention_paged_d128",
            "attention_paged_d256",
        ],
    },
    File {
        name: "distill.cu",
        source: include_str!("../../kernels/distill.cu"),
        kernels: &["distill_rows", "distill_rows_bf16"],
    },
    File {
        name: "distill_top_k.cu",
        source: include_str!("../../kernels/distill_top_k.cu"),
        kernels: &["distill_top_k_rows", "distill_top_k_rows_bf16"],
    },
    File {
        name: "elementwise.cu",
        source: include_str!("../../kernels/elementwise.cu"),
        kernels: &[
            "add",
            "accumulate",
            "accumulate_bf16",
            "scale",
            "scale_bf16",
            "cast_to_bf16",
            "cast_to_f32",
            "fill",
            "add_bias",
            "dropout",
            "column_sum_partials",
            "sum_partials",
        ],
    },
    File {
        name: "embedding.cu",
        source: include_str!("../../kernels/embedding.cu"),
        kernels: &["embedding_forward", "select_rows_forward", "embedding_backward", "select_rows_backward"],
    },
    File { name: "gemv.cu", source: include_str!("../../kernels/gemv.cu"), kernels: &["gemv", "gemv_f32"] },
    File {
        name: "history.cu",
        source: include_str!("../../kernels/history.cu"),
        kernels: &["adjust_logits", "adjust_logits_bf16", "count_tokens", "clear_history", "mark_prompt"],
    },
    File {
        name: "kv_cache.cu",
        source: include_str!("../../kernels/kv_cache.cu"),
        kernels: &["kv_write", "kv_copy_page"],
    },
    File {
        name: "norm.cu",
        source: include_str!("../../kernels/norm.cu"),
        kernels: &["rms_norm_forward", "rms_norm_backward"],
    },
    File {
        name: "optimizer.cu",
        source: include_str!("../../kernels/optimizer.cu"),
        kernels: &["adamw", "square_sum_partials", "square_sum_finish"],
    },
    File {
        name: "rope.cu",
        source: include_str!("../../kernels/rope.cu"),
        kernels: &["qk_norm_rope_forward", "qk_norm_rope_paged", "qk_norm_rope_backward"],
    },
    File {
        name: "sampler.cu",
        source: include_str!("../../kernels/sampler.cu"),
        kernels: &["sample_partials", "sample_partials_bf16", "sample_rows", "sample_rows_bf16"],
    },
    File {
        name: "swiglu.cu",
        source: include_str!("../../kernels/swiglu.cu"),
        kernels: &["swiglu_forward", "swiglu_backward"],
    },
    File {
        name: "token_losses.cu",
        source: include_str!("../../kernels/token_losses.cu"),
        kernels: &[
            "cross_entropy_rows",
            "cross_entropy_rows_bf16",
            "policy_gradient_rows",
            "policy_gradient_rows_bf16",
            "log_prob_rows",
            "log_prob_rows_bf16",
        ],
    },
];
