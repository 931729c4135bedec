"""Our log-probabilities and greedy tokens against transformers', on random checkpoints made on the spot. `scripts/check/gpu` runs it.

A checkpoint is saved in bf16. Its reference is transformers in f32 on the same values; transformers in bf16 shows what
rounding alone does, and ours may be at most so much worse:

  log-probs  mean difference to f32 at most 1.5 times that of transformers in bf16, the largest at most 3 times; for a few
             tokens, which bf16 may hit by chance, at most 3 times the largest one of the long sequence
  greedy     no token's f32 log-prob is further below the best one than bf16 explains (0 where all tokens are equal),
             alone and in a batch of 8, and its reported log-prob is near the f32 one
  adapter    log-probs with a LoRA that PEFT wrote, on all linear layers, against PEFT

Prints a line a check: ok or FAIL, name, what was seen, separated by tabs.

usage: gpu_models.py --arle PATH [--device cuda]              needs: torch, transformers, peft
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

# layers, hidden, intermediate, heads, KV heads, head_dim, vocabulary
TINY = (2, 256, 512, 4, 2, 64, 1000)
MEDIUM = (6, 1024, 3072, 16, 8, 128, 32000)
QWEN2 = (6, 896, 4864, 14, 2, 64, 32000)
SHAPES = [
    ("qwen3 tiny", Qwen3Config, TINY, True), ("qwen3 6 layers", Qwen3Config, MEDIUM, True),
    ("llama tiny", LlamaConfig, TINY, False), ("llama 6 layers", LlamaConfig, (6, 576, 1536, 9, 3, 64, 32000), True),
    ("qwen2 tiny", Qwen2Config, TINY, True), ("qwen2 6 layers", Qwen2Config, QWEN2, False),
]
NEW = 24
# Below these, differences are those of the last rounding whatever the model.
LEAST_MEAN, LEAST_MAX = 1e-3, 1e-2
# The long sequence comes first: its rounding bounds that of a few tokens.
LENGTHS, FEW = (300, 2, 17, 1100), 16


def build(kind, shape, tied):
    """Weights large enough that tokens differ, norms and biases that cannot be forgotten unnoticed."""
    layers, hidden, inner, heads, kv_heads, head_dim, vocab = shape
    sizes = dict(vocab_size=vocab, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                 num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=2048,
                 rms_norm_eps=1e-6, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2, initializer_range=0.04)
    if kind is not Qwen2Config:
        sizes["head_dim"] = head_dim
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**sizes), dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.endswith("norm.weight"):
                values.copy_(1 + 0.2 * torch.randn_like(values))
            elif name.endswith("bias"):
                values.copy_(0.2 * torch.randn_like(values))
    return model.to(torch.bfloat16)


def load(path, place):
    """The checkpoint in f32 and in bf16. Each is loaded: a conversion would round the rotary frequencies for good."""
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=t, attn_implementation="sdpa").eval().to(place)
              for t in (torch.float32, torch.bfloat16)]
    if any(model.model.rotary_emb.inv_freq.dtype != torch.float32 for model in models):
        raise RuntimeError("the reference's rotary frequencies are not in f32")
    return models


def adapt(path, models, folder, rank):
    """Saves a LoRA whose both factors are random, and puts it on the reference models."""
    adapted = []
    for model in models:
        config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        made = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
        generator = torch.Generator().manual_seed(rank)
        with torch.no_grad():
            for name, values in sorted(made.named_parameters()):
                if "lora_" in name:
                    values.copy_((0.05 * torch.randn(values.shape, generator=generator)).bfloat16())
        adapted.append(made)
    adapted[0].save_pretrained(folder)
    return adapted


@torch.no_grad()
def logprobs(model, tokens):
    """ln p of every next token, `[len, vocab]` in f32."""
    return model(torch.tensor([tokens], device=model.device)).logits.float().log_softmax(-1)[0].cpu()


class Check:
    def __init__(self, a):
        self.a, self.failed, self.largest = a, 0, 0.0
        self.place = "cuda" if a.device.startswith("cuda") else "cpu"

    def line(self, good, name, seen):
        self.failed += not good
        print(f"{'ok' if good else 'FAIL'}\t{name}\t{seen}", flush=True)

    def arle(self, *args):
        done = subprocess.run([self.a.arle, *args, "--device", self.a.device, "--json"], capture_output=True, text=True,
                              timeout=self.a.limit)
        if done.returncode:
            raise RuntimeError(f"arle {args[0]} ended with {done.returncode}: {' '.join(done.stderr.split()[-60:])}")
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def score(self, name, path, models, length, *more):
        generator = torch.Generator().manual_seed(length)
        tokens = torch.randint(3, models[0].config.vocab_size, (length,), generator=generator).tolist()
        pick = lambda table: table[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
        want, bf16 = [pick(logprobs(model, tokens)) for model in models]
        rounding = (bf16 - want).abs()
        listed = ",".join(map(str, tokens))
        ours = torch.tensor(self.arle("score", "--model", path, "--tokens", listed, *more)[0]["logprobs"][1:])
        off = (ours - want).abs()
        # `<=` with NaN on either side is false.
        few = len(off) < FEW
        most = max(3 * rounding.max(), 3 * self.largest if few else 0.0, LEAST_MAX)
        good = bool(off.max() <= most and (few or off.mean() <= max(1.5 * rounding.mean(), LEAST_MEAN)))
        self.largest = rounding.max()
        self.line(good, f"{name}: log-probs of {length} tokens",
                  f"mean {off.mean():.1e} (bf16 torch {rounding.mean():.1e}), max {off.max():.1e} ({rounding.max():.1e})")

    def greedy(self, name, path, models, count):
        prompt = [5, 6, 7, 8, 9, 10, 11]
        args = ["generate", "--model", path, "--tokens", ",".join(map(str, prompt)), "--temperature", "0",
                "--max-tokens", str(NEW), "--ignore-eos", "--n", str(count)]
        found = self.arle(*args)
        if len(found) != count or any(len(f["tokens"]) != NEW for f in found):
            return self.line(False, f"{name}: greedy, {count} at once", "a completion is missing or short")
        worst_gap, worst_off, best, allowed = 0.0, 0.0, 0, LEAST_MAX
        for completion in found:
            tokens = prompt + completion["tokens"]
            exact, rounded = [logprobs(model, tokens)[len(prompt) - 1:-1] for model in models]
            chosen = torch.tensor(completion["tokens"])[:, None]
            here = exact.gather(1, chosen)[:, 0]
            gap = exact.max(-1).values - here
            off = (torch.tensor(completion["logprobs"]) - here).abs()
            allowed = max(allowed, 3 * (rounded - exact).abs().max().item())
            worst_gap, worst_off = max(worst_gap, gap.max().item()), max(worst_off, off.max().item())
            best += int((gap == 0).sum())
            if not bool(torch.isfinite(gap).all() and torch.isfinite(off).all()):
                worst_gap = float("inf")
        alike = len({tuple(f["tokens"]) for f in found}) == 1
        self.line(worst_gap <= allowed and worst_off <= allowed, f"{name}: greedy, {count} at once",
                  f"{best} of {count * NEW} tokens are f32's best, gap {worst_gap:.1e}, log-prob off {worst_off:.1e} "
                  f"(allowed {allowed:.1e}){'' if alike else ', completions differ from each other'}")

    def model(self, folder, name, kind, shape, tied):
        path = os.path.join(folder, name.replace(" ", "-"))
        build(kind, shape, tied).save_pretrained(path)
        models = load(path, self.place)
        checks = [lambda n=n: self.score(name, path, models, n) for n in LENGTHS]
        checks += [lambda n=n: self.greedy(name, path, models, n) for n in (1, 8)]
        checks.append(lambda: self.adapter(folder, name, path, models))  # the last: it changes the models
        for check in checks:
            try:
                check()
            except Exception as e:  # one failure must not hide the others
                self.line(False, name, f"{type(e).__name__}: {e}"[:600].replace("\t", " ").replace("\n", " "))

    def adapter(self, folder, name, path, models):
        where = os.path.join(folder, "adapter")
        adapted = adapt(path, models, where, rank=16)
        for length in (17, 300):
            self.score(f"{name}, LoRA by PEFT", path, adapted, length, "--adapter", where)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--arle", required=True)
    p.add_argument("--device", default="cuda")
    p.add_argument("--limit", type=float, default=180, help="seconds of one call of arle")
    p.add_argument("--only", default="", help="checks whose name starts with this")
    a = p.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = False
    check = Check(a)
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, shape, tied in SHAPES:
            if name.startswith(a.only):
                check.model(folder, name, kind, shape, tied)
    sys.exit(1 if check.failed else 0)


if __name__ == "__main__":
    main()
