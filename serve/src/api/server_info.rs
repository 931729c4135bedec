//! What the server is, in the form that vLLM's clients read.

use axum::Json;
use axum::extract::State;
use runtime::kv::PAGE_SIZE;
use serde_json::{Value, json};

use crate::app::Shared;
use crate::config::LogprobsMode;
use crate::openapi::Operation;
use crate::openapi::schema::{Members, any, count, map, one_of, text};

/// `GET /version`
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// `GET /get_world_size`: how many processes hold the weights.
pub(crate) async fn world_size() -> Json<Value> {
    Json(json!({"world_size": 1}))
}

/// `GET /server_info`: the settings that clients ask about. What they would need and is not there is `null`, as vLLM has it:
/// no engine that takes weights over the network.
pub(crate) async fn info(State(app): State<Shared>) -> Json<Value> {
    let (config, models) = (&app.config, app.models.list());
    let first = &models[0];
    let files = first.files();
    // A rank above the width of the model adds nothing.
    let lora = (config.max_adapters > 0)
        .then(|| json!({"max_loras": config.max_adapters, "max_lora_rank": files.config.hidden_size}));
    let vllm_config = json!({
        "model_config": {
            "model": files.path.display().to_string(),
            "served_model_name": first.names(),
            "dtype": files.hf_config["dtype"].as_str().or_else(|| files.hf_config["torch_dtype"].as_str())
                .map_or_else(|| "torch.float32".to_owned(), |name| format!("torch.{name}")),
            "max_model_len": first.context(),
            "vocab_size": first.vocab_size(),
            "logprobs_mode": match config.logprobs_mode {
                LogprobsMode::Raw => "raw_logprobs",
                LogprobsMode::Processed => "processed_logprobs",
            },
        },
        "cache_config": {
            "block_size": PAGE_SIZE,
            "num_gpu_blocks": first.of(&app.runtime.snapshot()).scheduler.total_pages,
            "enable_prefix_caching": true,
        },
        "parallel_config": {
            "world_size": 1, "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 1,
        },
        "scheduler_config": {"max_num_seqs": config.max_sequences},
        "lora_config": lora,
        "weight_transfer_config": null,
    });
    Json(json!({"vllm_config": vllm_config}))
}

pub(crate) fn describe_version() -> Operation {
    Operation::new("getVersion", "The program's version").answers(Members::new().always("version", text(), "").closed())
}

pub(crate) fn describe_world_size() -> Operation {
    Operation::new("getWorldSize", "Processes that hold the weights")
        .query("include_dp", one_of(&["true", "false"]), "Accepted: there is one process.")
        .answers(Members::new().always("world_size", count(), "").closed())
}

pub(crate) fn describe_info() -> Operation {
    Operation::new("getServerInfo", "Settings, under vLLM's names")
        .query("config_format", one_of(&["json", "text"]), "Accepted: the answer is JSON.")
        .answers(Members::new().always("vllm_config", map(any()), "").closed())
}
