"""transformers and peft, for `peers/gpu.py`: sampling, and a step of distillation after its rollout."""
import json
import statistics
import time

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, logging

from torch_kernels import divergence, wait

logging.set_verbosity_error()
# Rows of hidden states whose logits exist at once.
HEAD_ROWS = 2048
RANK = 32


def build(path, device, seed):
    """A bf16 model of the shape in a config.json, made on the device. No end-of-sequence id: nothing stops early."""
    with open(path) as f:
        shape = json.load(f)
    config = AutoConfig.for_model(shape.pop("model_type"), **{k: v for k, v in shape.items() if v is not None})
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.generation_config = GenerationConfig()
    return model


def seconds(device, call):
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def peak(device):
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def generate(job, device):
    """`generate` with its growing cache, temperature 1, equal lengths."""
    model = build(job["model"], device, 1).eval().requires_grad_(False)
    batch, prompt, new = job["batch"], job["prompt_len"], job["new"]
    ids = torch.randint(0, model.config.vocab_size, (batch, prompt), device=device)

    def run(count):
        config = GenerationConfig(max_new_tokens=count, do_sample=True, top_k=0, pad_token_id=0, use_cache=True)
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        if out.shape[1] != prompt + count:
            raise RuntimeError("a completion is short")

    run(8)
    whole = seconds(device, lambda: run(new))
    first = statistics.median(seconds(device, lambda: run(1)) for _ in range(3))
    return {"batch": batch, "prompt": prompt, "new": new, "seconds": whole, "first": first,
            "decode": batch * (new - 1) / (whole - first), "output_tokens_per_s": batch * new / whole}


class Trainer:
    """Teacher and student on packed completions of equal lengths: no padding, no gradient checkpointing, fused AdamW."""

    def __init__(self, job, device):
        self.job, self.device, self.clock = job, device, {}
        self.teacher = build(job["teacher"], device, 2).eval().requires_grad_(False)
        student = build(job["model"], device, 1)
        self.causal = student
        if job["mode"] == "lora":
            from peft import LoraConfig, get_peft_model
            config = LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
            student = get_peft_model(student, config, autocast_adapter_dtype=False)
            self.causal = student.base_model.model
        student.train()
        self.trained = [p for p in student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, weight_decay=0.0, fused=device == "cuda")

    def time(self, name, call):
        box = []
        self.clock[name] = self.clock.get(name, 0.0) + seconds(self.device, lambda: box.append(call()))
        return box[0]

    def loss(self, hidden, graded, rows):
        """Loss and gradient of the hidden states, chunk by chunk; the head's own gradient adds up on the way."""
        leaf = hidden.detach().requires_grad_(True)
        total = 0.0
        for h, t in zip(leaf.split(HEAD_ROWS), graded.split(HEAD_ROWS)):
            with torch.no_grad():
                target = F.linear(t, self.teacher.lm_head.weight)
            part = divergence(F.linear(h, self.causal.lm_head.weight), target) / rows
            part.backward()
            total += part.detach()
        return leaf.grad, total

    def step(self, ids, micro):
        self.clock = {}
        prompt, total = self.job["prompt_len"], 0.0
        rows = ids.shape[0] * (ids.shape[1] - prompt)
        for batch in ids.split(micro):
            cut = lambda out: out.last_hidden_state[:, prompt - 1:-1].flatten(0, 1)
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


def train(job, device):
    """The fastest of the sizes of micro-batch that fit."""
    trainer = Trainer(job, device)
    length = job["prompt_len"] + job["new"]
    ids = torch.randint(0, trainer.causal.config.vocab_size, (job["batch"], length), device=device)
    found, tried = None, {}
    for micro in job["micro"]:
        try:
            measured = measure(trainer, ids, micro, job["repeat"])
        except torch.OutOfMemoryError:
            tried[micro] = "out of memory"
            trainer.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            continue
        tried[micro] = measured["step"]
        if found is None or measured["step"] < found["step"]:
            found = {**measured, "micro": micro}
    if found is None:
        return {"not_measured": f"out of memory with micro-batches of {' and '.join(map(str, tried))} sequences"}
    return {"mode": job["mode"], "tokens": job["batch"] * length, **found, "steps_by_micro": tried}


def measure(trainer, ids, micro, repeat):
    steps = []
    for number in range(1 + repeat):
        if number == 1 and trainer.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        loss = trainer.step(ids, micro)
        steps.append({**trainer.clock, "step": time.perf_counter() - start, "loss": loss})
    middle = {k: statistics.median(s[k] for s in steps[1:]) for k in steps[0]}
    return {**middle, "gpu_peak_bytes": peak(trainer.device)}
