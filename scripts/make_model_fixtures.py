"""Tiny random checkpoints and transformers' answers about them: tests/fixtures/models/<name>/.

Each folder is a Hugging Face model directory (config, generation config, safetensors) plus `expected.json`:
  tokens       sequences of ids
  logprobs     natural log of each token given those before it (null for the first)
  logits_last  the whole row of logits at the last position
  greedy       12 greedy ids after each sequence; no end-of-sequence id among them
All answers are computed in f32 with eager attention, from the weights as they stand in the file.

usage: make_model_fixtures.py [NAME...]        needs: torch, transformers
"""
import json
import shutil
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config
from safetensors import safe_open

from fixture_io import FIXTURES, answers, random_sequences, randomize, use_one_thread, write_json

OUT = FIXTURES / "models"
BASE = dict(
    vocab_size=96, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, rms_norm_eps=1e-5,
    bos_token_id=1, eos_token_id=2, pad_token_id=None,
)
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}

# name: (configuration class, changes to BASE, options)
#   dtype      of the file; f32 unless given
#   published  write config.json with the keys of files published before transformers 5
#              (rope_theta, rope_scaling, torch_dtype) instead of rope_parameters and dtype
#   shard      maximum bytes of one file
#   eos        end-of-sequence ids of generation_config.json where they differ from config.json
CASES = {
    "llama-gqa-tied": (LlamaConfig, {"rope_parameters": PLAIN}, {"eos": [2, 0]}),
    "llama-mha-untied-bf16": (
        LlamaConfig,
        {"num_key_value_heads": 4, "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "rope_parameters": PLAIN},
        {"dtype": torch.bfloat16, "published": True},
    ),
    "llama-head-dim": (
        LlamaConfig,
        {"head_dim": 12, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"dtype": torch.bfloat16},
    ),
    "llama-rope-llama3": (
        LlamaConfig,
        {"rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
        {"dtype": torch.bfloat16, "published": True},
    ),
    "llama-rope-linear": (
        LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}},
        {"dtype": torch.bfloat16, "published": True},
    ),
    "llama-rope-yarn": (
        LlamaConfig,
        {"num_attention_heads": 2, "num_key_value_heads": 1,
         "rope_parameters": {
             "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}},
        {"dtype": torch.bfloat16, "published": True},
    ),
    "qwen2-gqa": (
        Qwen2Config,
        {"num_key_value_heads": 1, "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"dtype": torch.bfloat16, "published": True, "eos": [2, 0]},
    ),
    "qwen2-sliding": (
        Qwen2Config,
        {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1,
         "rope_parameters": PLAIN},
        {"dtype": torch.bfloat16, "published": True},
    ),
    "qwen2-yarn": (
        Qwen2Config,
        {"num_attention_heads": 2, "num_key_value_heads": 1,
         "rope_parameters": {
             "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128,
             "beta_fast": 4.0, "beta_slow": 0.5, "attention_factor": 1.3}},
        {"dtype": torch.bfloat16},
    ),
    "qwen3-gqa-tied": (
        Qwen3Config,
        {"head_dim": 12, "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {},
    ),
    "llama-sharded": (
        LlamaConfig,
        {"tie_word_embeddings": False, "rope_parameters": PLAIN},
        {"dtype": torch.bfloat16, "shard": 22_500},
    ),
}


def write_published_config(folder):
    """Re-writes config.json with the key names that most published files carry."""
    path = folder / "config.json"
    c = json.loads(path.read_text())
    rope = c.pop("rope_parameters")
    c["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    c["rope_scaling"] = None if kind == "default" else {"rope_type": kind, **rope}
    c["torch_dtype"] = c.pop("dtype")
    c["transformers_version"] = "4.46.0"
    c.pop("layer_types", None)
    if c["hidden_size"] == c["num_attention_heads"] * c.get("head_dim", 0):
        c.pop("head_dim")
    path.write_text(json.dumps(c, indent=2, sort_keys=True) + "\n")


def make(name, seed):
    config_class, changes, options = CASES[name]
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(seed)
    config = config_class(**{**BASE, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    randomize(model, generator)
    model.tie_weights()
    model.generation_config.eos_token_id = options.get("eos", 2)
    model.to(options.get("dtype", torch.float32))
    model.save_pretrained(folder, max_shard_size=options.get("shard", "1GB"))
    if options.get("published"):
        write_published_config(folder)

    # Answers come from the folder as written, read the way a user would read it.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for key in ("hidden_size", "num_key_value_heads", "rope_parameters", "tie_word_embeddings"):
        assert getattr(model.config, key) == getattr(config, key), (name, key)
    if config_class is not LlamaConfig:
        assert model.config.layer_types == config.layer_types, name
    sequences = random_sequences(generator, BASE["vocab_size"], (5, 17, 40), first_id=3)
    expected, margin = answers(model, sequences)
    # A close call, or an end-of-sequence id, would make the greedy ids a test of something else.
    if margin < 5e-3 or any(t in (0, 2) for row in expected["greedy"] for t in row):
        return None
    shards = sorted(folder.glob("*.safetensors"))
    for shard in shards:
        shard.chmod(0o644)
    assert (len(shards) == 2) == ("shard" in options), (name, shards)
    names = {k for s in shards for k in safe_open(s, "pt").keys()}
    assert ("lm_head.weight" in names) == (not config.tie_word_embeddings), name
    write_json(folder / "expected.json", expected)
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name:24} seed {seed} {size:7} bytes  greedy margin {margin:.4f}")
    return size


def main():
    use_one_thread()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    total = 0
    for name in sys.argv[1:] or CASES:
        seed = sum(name.encode())
        while (size := make(name, seed)) is None:
            seed += 1
        total += size
    print(f"{total} bytes in all")


if __name__ == "__main__":
    main()
