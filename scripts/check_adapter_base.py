"""Opens an adapter folder as other programs do that find its base by `base_model_name_or_path` alone.

usage: check_adapter_base.py DIR_ADAPTER EXPECTED_JSON [CONVERT_LORA_TO_GGUF]

PEFT's AutoPeftModelForCausalLM has to find base and adapter, and to give the log-probabilities in EXPECTED_JSON ("tokens" and
"logprobs" as `arle score --json` prints them). With the path of llama.cpp's convert_lora_to_gguf.py, that has to convert the
folder without being told the base.
Exit code 0: both do. 1: not.        needs: torch, transformers, peft; for the converter also gguf
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
import transformers
from peft import AutoPeftModelForCausalLM


@torch.no_grad()
def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    adapter, expected = sys.argv[1], json.loads(pathlib.Path(sys.argv[2]).read_text())
    transformers.logging.set_verbosity_error()
    model = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32).eval()
    scores = model(torch.tensor([expected["tokens"]])).logits[0].log_softmax(-1)
    ours = [scores[i, token].item() for i, token in enumerate(expected["tokens"][1:])]
    worst = max(abs(a - b) for a, b in zip(ours, expected["logprobs"][1:], strict=True))
    print(f"AutoPeftModelForCausalLM: base {model.peft_config['default'].base_model_name_or_path}, largest difference {worst:.2e}")
    failed = worst > 1e-3
    if len(sys.argv) == 4:
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "adapter.gguf"
            run = subprocess.run([sys.executable, sys.argv[3], adapter, "--outfile", out], capture_output=True, text=True)
            written = out.stat().st_size if out.exists() else 0
        print(f"convert_lora_to_gguf.py: exit code {run.returncode}, {written} bytes" + run.stderr[-400:] * (run.returncode != 0))
        failed |= run.returncode != 0 or written == 0
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
