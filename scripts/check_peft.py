"""Loads an adapter folder in PEFT, on its base model, and compares log-probabilities with given ones.

usage: check_peft.py DIR_BASE DIR_ADAPTER EXPECTED_JSON [TOLERANCE]

EXPECTED_JSON has "tokens" and "logprobs", each one list or a list of lists (the shapes of `arle score --json` and
of the fixtures). The largest difference must be at most TOLERANCE x max(1, |log-prob|); TOLERANCE is 1e-4 unless
given. Also fails when PEFT finds a tensor that it does not know or misses one that it wants.
Exit code 0: equal. 1: different.        needs: torch, transformers, peft
"""
import json
import pathlib
import sys

import torch
import transformers
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def load(base, adapter):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    config = LoraConfig.from_pretrained(adapter)
    config.inference_mode = True
    model = get_peft_model(model, config).eval()
    weights = load_file(pathlib.Path(adapter) / "adapter_model.safetensors")
    report = set_peft_model_state_dict(model, weights)
    missing = [k for k in report.missing_keys if "lora_" in k]
    if missing or report.unexpected_keys:
        sys.exit(f"the adapter's tensors differ from PEFT's: missing {missing}, unknown {report.unexpected_keys}")
    return model


def rows(value):
    return value if isinstance(value[0], list) else [value]


@torch.no_grad()
def main():
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    base, adapter, expected = sys.argv[1:4]
    tolerance = float(sys.argv[4]) if len(sys.argv) == 5 else 1e-4
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    expected = json.loads(pathlib.Path(expected).read_text())
    model = load(base, adapter)
    worst, scored = 0.0, 0
    for ids, given in zip(rows(expected["tokens"]), rows(expected["logprobs"]), strict=True):
        scores = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for i, (token, value) in enumerate(zip(ids[1:], given[1:], strict=True)):
            ours = scores[i, token].item()
            worst = max(worst, abs(ours - value) / max(1.0, abs(ours)))
            scored += 1
    print(json.dumps({"tokens_scored": scored, "worst_relative_difference": worst, "tolerance": tolerance}))
    if scored == 0 or not worst <= tolerance:
        sys.exit(1)


if __name__ == "__main__":
    main()
