"""TRL's DistillationTrainer, for `peers/gpu.py`: a whole step of on-policy distillation by phase, and its peak memory.

Random weights, prompts and completions of fixed lengths (no end-of-sequence id), so every step does the same work. Its
defaults but: no gradient checkpointing (faster), fused AdamW, no warm-up of the learning rate. Phases, in seconds:
  rollout    sampling of the completions by transformers' generate
  forward    student, teacher, heads and loss
  backward
  optimizer  clipping, AdamW
  other      the rest of the step: tokenizer, padding, bookkeeping
"""
import contextlib
import json
import statistics
import sys
import tempfile
import time
import warnings

warnings.filterwarnings("ignore")

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from torch_kernels import wait
from torch_models import RANK, build, peak


def tokenizer(vocab):
    """One word a token, so that prompts have the wanted length; the template adds nothing."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", padding_side="left")
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return made


def rows(job, vocab, steps):
    generator = torch.Generator().manual_seed(3)
    for _ in range(job["prompts"] * steps):
        ids = torch.randint(2, vocab, (job["prompt_len"],), generator=generator).tolist()
        yield {"prompt": [{"role": "user", "content": " ".join(f"w{i}" for i in ids)}]}


class Clock(TrainerCallback):
    """Seconds by phase of each step; every timer waits for the device before it starts and before it ends."""

    def __init__(self, device, warmup):
        self.device, self.warmup, self.steps, self.now = device, warmup, [], {}

    def moment(self):
        wait(self.device)
        return time.perf_counter()

    def add(self, phase, start):
        self.now[phase] = self.now.get(phase, 0.0) + self.moment() - start

    def timed(self, phase, call):
        def run(*args, **kwargs):
            start = self.moment()
            try:
                return call(*args, **kwargs)
            finally:
                self.add(phase, start)
        return run

    def reset_peak(self):
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def on_train_begin(self, *_, **__):
        self.last = self.moment()
        if self.warmup == 0:
            self.reset_peak()

    def on_pre_optimizer_step(self, *_, **__):
        self.before_optimizer = self.moment()

    def on_step_end(self, *_, **__):
        self.add("optimizer", self.before_optimizer)
        now = time.perf_counter()
        step, self.last = now - self.last, now
        phases, self.now = self.now, {}
        self.steps.append({"step": step, **phases, "other": step - sum(phases.values())})
        print(" ".join(f"{k} {v:.3f}" for k, v in self.steps[-1].items()), file=sys.stderr, flush=True)
        if len(self.steps) == self.warmup:
            self.reset_peak()


def make(job, device, vocab, steps):
    student, teacher = build(job["model"], device, 1), build(job["teacher"], device, 2).requires_grad_(False).eval()
    if job["mode"] == "lora":
        student = get_peft_model(student, LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    accumulate = job["prompts"] // job["micro"]
    config = DistillationConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=job["micro"], gradient_accumulation_steps=accumulate,
        max_steps=steps, learning_rate=1e-5, lr_scheduler_type="constant", warmup_steps=0, optim="adamw_torch_fused", beta=0.5,
        temperature=1.0, top_p=1.0, top_k=0, max_completion_length=job["new"], gradient_checkpointing=False, bf16=True,
        use_cpu=device == "cpu", report_to="none", save_strategy="no", logging_steps=10**6, disable_tqdm=True)
    made = DistillationTrainer(model=student, teacher_model=teacher, args=config, processing_class=tokenizer(vocab),
                               train_dataset=Dataset.from_list(list(rows(job, vocab, steps))))
    # The trainer takes the tokenizer's end-of-sequence id; the lengths here are fixed.
    made.generation_config.eos_token_id = None
    made.eos_token_ids = []
    return made


def trl(job, device):
    with open(job["model"]) as f:
        vocab = json.load(f)["vocab_size"]
    steps = job["warmup"] + job["steps"]
    trainer, clock = make(job, device, vocab, steps), Clock(device, job["warmup"])
    sample = trainer._generate_single_turn

    def whole(*args, **kwargs):
        """Training has put the end-of-sequence id back on the model by now."""
        for module in trainer.accelerator.unwrap_model(trainer.model).modules():
            if hasattr(module, "generation_config"):
                module.generation_config.eos_token_id = None
        completions = sample(*args, **kwargs)
        if [len(c) for c in completions] != [job["new"]] * job["prompts"]:
            raise RuntimeError(f"not {job['prompts']} completions of {job['new']} tokens")
        return completions

    trainer._generate_single_turn = clock.timed("rollout", whole)
    trainer.compute_loss = clock.timed("forward", trainer.compute_loss)
    trainer.accelerator.backward = clock.timed("backward", trainer.accelerator.backward)
    trainer._clip_grad_norm = clock.timed("optimizer", trainer._clip_grad_norm)
    trainer.add_callback(clock)
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    kept = clock.steps[job["warmup"]:]
    return {**{k: statistics.median(s[k] for s in kept) for k in kept[0]}, "steps": len(kept), "gpu_peak_bytes": peak(device)}
