"""LoRA adapters written by PEFT for two of the model fixtures: tests/fixtures/adapters/<name>/.

`expected.json` has the keys of the model fixtures' `expected.json` plus `base`, the name of the model fixture.
Both factors are random, so that the adapter changes every answer (PEFT's own start has B = 0).

usage: make_peft_fixtures.py        needs: torch, transformers, peft; the model fixtures
"""
import json
import shutil

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from fixture_io import FIXTURES, answers, random_sequences, use_one_thread, write_json

OUT = FIXTURES / "adapters"
CASES = {
    "llama-all-linear": ("llama-gqa-tied", dict(r=4, lora_alpha=8, target_modules="all-linear")),
    "qwen3-patterns-rslora": ("qwen3-gqa-tied", dict(
        r=3, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"down_proj": 5, "layers.1.self_attn.q_proj": 2},
        alpha_pattern={"v_proj": 9, "layers.0.mlp.down_proj": 4})),
}


def make(name, seed):
    base, options = CASES[name]
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(seed)
    source = FIXTURES / "models" / base
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
    sequences = random_sequences(generator, model.config.vocab_size, (6, 23), first_id=3)
    before, _ = answers(model.eval(), sequences, new_tokens=0)
    model.name_or_path = base  # or PEFT writes the path of this machine into the adapter
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", bias="none", lora_dropout=0.0, **options)).eval()
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    with torch.no_grad():
        for key, p in sorted(model.named_parameters()):
            if "lora_" in key:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    expected, margin = answers(model, sequences)
    assert margin > 5e-3, (name, "a greedy choice is too close; change the seed")
    moved = max(abs(a - b) for x, y in zip(expected["logprobs"], before["logprobs"]) for a, b in zip(x[1:], y[1:]))
    assert moved > 0.5, (name, moved)
    model.save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"].sort()  # PEFT writes a set, in an order that changes from run to run
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").unlink(missing_ok=True)  # a template for model cards
    (folder / "adapter_model.safetensors").chmod(0o644)
    write_json(folder / "expected.json", {"base": base, **expected})
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name:24} {size:7} bytes  greedy margin {margin:.4f}  log-probs moved by up to {moved:.2f}")


def main():
    use_one_thread()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in CASES:
        make(name, seed=sum(name.encode()))


if __name__ == "__main__":
    main()
