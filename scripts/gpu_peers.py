"""PyTorch's figures beside ours on a GPU, random weights of a given shape. `scripts/bench_gpu` runs it. One JSON object on stdout.

  generate  transformers' generate with its growing cache, greedy: decode tokens/s of --batch sequences
  train     teacher forward, student forward, JSD (beta 0.5) of the completions, backward, fused AdamW, without padding;
            heads and loss a chunk of rows at a time, whose gradient is made at once, so no [tokens, vocabulary] stays
  linear    torch.nn.functional.linear in bf16 (cuBLAS), seconds a call and TFLOP/s

usage: gpu_peers.py generate|train|linear [options]           needs: torch, transformers, and peft for train --mode lora
"""
import argparse
import importlib.metadata
import json
import os
import statistics
import time

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
import torch.nn.functional as F

# rows, inputs, outputs: large, Qwen3-4B's training and decode shapes
LINEAR = [(8192, 8192, 8192), (4096, 2560, 9728), (4096, 2560, 2560), (2048, 2560, 151936), (1, 2560, 9728),
          (16, 2560, 9728), (64, 2560, 9728), (256, 2560, 9728)]
HEAD_ROWS = 2048


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(device, call):
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def build(path, device, seed):
    """A model of the shape in a config.json, made on the device."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    with open(path) as f:
        shape = json.load(f)
    config = AutoConfig.for_model(shape.pop("model_type"), **{k: v for k, v in shape.items() if v is not None})
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.generation_config = GenerationConfig()  # no end-of-sequence id
    return model


def generate(a):
    from transformers import GenerationConfig
    model = build(a.model, a.device, 1).eval().requires_grad_(False)
    ids = torch.randint(0, model.config.vocab_size, (a.batch, a.prompt_len), device=a.device)

    def run(new):
        config = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0, use_cache=True)
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        assert out.shape[1] == a.prompt_len + new, "a completion is short"

    run(8)
    whole = [seconds(a.device, lambda: run(a.new)) for _ in range(a.repeat)]
    first = statistics.median(seconds(a.device, lambda: run(1)) for _ in range(3))
    median = statistics.median(whole)
    return {"batch": a.batch, "prompt": a.prompt_len, "new": a.new, "seconds": median, "first": first,
            "decode": a.batch * (a.new - 1) / (median - first), "output_tokens_per_s": a.batch * a.new / median}


def jsd(student, teacher):
    """Sum over rows of the Jensen-Shannon divergence of two sets of logits."""
    p, q = teacher.float().log_softmax(-1), student.float().log_softmax(-1)
    mean = torch.logaddexp(p, q) - 0.6931471805599453
    kl = lambda of: F.kl_div(mean, of, reduction="sum", log_target=True)
    return 0.5 * (kl(p) + kl(q))


class Trainer:
    def __init__(self, a):
        self.a, self.clock = a, {}
        self.teacher = build(a.teacher, a.device, 2).eval().requires_grad_(False)
        student = build(a.model, a.device, 1)
        self.causal = student
        if a.mode == "lora":
            from peft import LoraConfig, get_peft_model
            config = LoraConfig(r=32, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
            student = get_peft_model(student, config, autocast_adapter_dtype=False)
            self.causal = student.base_model.model
        student.train()
        self.trained = [p for p in student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, weight_decay=0.0, fused=a.device == "cuda")

    def time(self, phase, call):
        box = []
        self.clock[phase] = self.clock.get(phase, 0.0) + seconds(self.a.device, lambda: box.append(call()))
        return box[0]

    def loss(self, hidden, graded, rows):
        """Loss and gradient of the hidden states, chunk by chunk; the head's own gradient adds up on the way."""
        leaf = hidden.detach().requires_grad_(True)
        total = 0.0
        for h, t in zip(leaf.split(HEAD_ROWS), graded.split(HEAD_ROWS)):
            with torch.no_grad():
                target = F.linear(t, self.teacher.lm_head.weight)
            part = jsd(F.linear(h, self.causal.lm_head.weight), target) / rows
            part.backward()
            total += part.detach()
        return leaf.grad, total

    def step(self, ids):
        self.clock = {}
        rows = ids.shape[0] * (ids.shape[1] - self.a.prompt_len)
        total = 0.0
        for batch in ids.split(self.a.micro):
            cut = lambda out: out.last_hidden_state[:, self.a.prompt_len - 1:-1].flatten(0, 1)
            with torch.no_grad():
                graded = self.time("teacher", lambda: cut(self.teacher.model(batch, use_cache=False)))
            hidden = self.time("forward", lambda: cut(self.causal.model(batch, use_cache=False)))
            gradient, part = self.time("head_loss", lambda: self.loss(hidden, graded, rows))
            self.time("backward", lambda: hidden.backward(gradient))
            total += part
        self.time("optimizer", self.update)
        return float(total)

    def update(self):
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def train(a):
    trainer = Trainer(a)
    length = a.prompt_len + a.new
    ids = torch.randint(0, trainer.causal.config.vocab_size, (a.batch, length), device=a.device)
    steps, loss = [], 0.0
    for number in range(a.warmup + a.repeat):
        if number == a.warmup and a.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        loss = trainer.step(ids)
        if number >= a.warmup:
            steps.append({**trainer.clock, "step": time.perf_counter() - start})
    middle = {k: statistics.median(s[k] for s in steps) for k in steps[0]}
    peak = torch.cuda.max_memory_allocated() if a.device == "cuda" else None
    return {"mode": a.mode, "sequences": a.batch, "tokens": a.batch * length, "micro": a.micro, **middle, "loss": loss,
            "training_tokens_per_s": a.batch * length / middle["step"], "card_peak_bytes": peak}


def linear(a):
    found = []
    for m, k, n in LINEAR:
        x, w = (torch.randn(s, device=a.device, dtype=torch.bfloat16) for s in ((m, k), (n, k)))
        many = max(3, min(200, int(2e13 / (2 * m * k * n)))) if a.device == "cuda" else 1
        run = lambda: [F.linear(x, w) for _ in range(many)]
        run()
        best = min(seconds(a.device, run) for _ in range(3)) / many
        found.append({"shape": f"{m}x{k}x{n}", "seconds": best, "tflops": 2 * m * k * n / best / 1e12,
                      "gb_per_s": 2 * (m * k + k * n + m * n) / best / 1e9})
    return {"shapes": found, "peak_tflops": max(f["tflops"] for f in found)}


def versions():
    found = {"torch": torch.__version__}
    for name in ("transformers", "peft"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("part", choices=["generate", "train", "linear"])
    p.add_argument("--model", help="config.json of the model, or of the student")
    p.add_argument("--teacher", help="train: config.json")
    p.add_argument("--mode", choices=["lora", "full"], default="lora")
    p.add_argument("--batch", type=int, default=1, help="sequences")
    p.add_argument("--micro", type=int, default=16, help="train: sequences of a micro-batch")
    p.add_argument("--prompt-len", type=int, default=128)
    p.add_argument("--new", type=int, default=256)
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--warmup", type=int, default=2)
    p.add_argument("--device", default="cuda")
    a = p.parse_args()
    if a.part != "linear":
        import transformers
        transformers.logging.set_verbosity_error()
    # cuDNN's attention, torch's first choice on Hopper, builds a plan for every new length.
    torch.backends.cuda.enable_cudnn_sdp(False)
    result = {"generate": generate, "train": train, "linear": linear}[a.part](a)
    name = torch.cuda.get_device_name() if a.device == "cuda" else a.device
    print(json.dumps({**result, "versions": versions(), "card": name}), flush=True)


if __name__ == "__main__":
    main()
