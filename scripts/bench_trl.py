"""Seconds a step of TRL's GKDTrainer on the CPU, by phase. One JSON object on stdout.

Student and teacher have SmolLM2-135M's shape and random weights; the student learns a LoRA on all linear layers. All
prompts and completions have fixed lengths (no end-of-sequence id), so every step does the same work: on-policy
(lmbda 1), reverse KL (beta 1), sampling at temperature 1. Gradient checkpointing is off and the cache on, both faster
than TRL's defaults.
  rollout  sampling of the completions
  teacher  forward of the teacher
  train    forward of the student, loss, backward, clipping and optimizer
  other    the rest of the step: collator, bookkeeping
The phases are those of the fastest step after --warmup steps: other work on the machine only ever makes a step slower.

usage: bench_trl.py fp32|bf16 [--threads N] [--steps N]        needs: torch, transformers, peft, trl 1.16.0
"""
import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
import warnings

os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TOKENIZERS_PARALLELISM="false")
warnings.filterwarnings("ignore")

import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast,
                          TrainerCallback)
from trl.experimental.gkd import GKDConfig, GKDTrainer

VOCAB, RANK = 49152, 16
SHAPE = dict(
    vocab_size=VOCAB, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, head_dim=64, tie_word_embeddings=True, max_position_embeddings=8192, rms_norm_eps=1e-5,
    bos_token_id=None, eos_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
)


def model(dtype, seed):
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=dtype, attn_implementation="sdpa")
    made.generation_config = GenerationConfig()  # no end-of-sequence id
    return made


def tokenizer():
    """The trainer wants one for its padding id; rows come as ids."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def rows(count, prompt, new):
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        ids = torch.randint(10, VOCAB, (prompt + new,), generator=generator).tolist()
        yield {"prompt": "", "input_ids": ids, "completion_mask": [0] * prompt + [1] * new}


class Clock(TrainerCallback):
    """Seconds by phase of each step."""

    def __init__(self):
        self.steps, self.now = [], {}

    def add(self, phase, start):
        self.now[phase] = self.now.get(phase, 0.0) + time.perf_counter() - start

    def timed(self, phase, call):
        def run(*args, **kwargs):
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.add(phase, start)
        return run

    def on_train_begin(self, *_, **__):
        self.last = time.perf_counter()

    def on_pre_optimizer_step(self, *_, **__):
        self.before_optimizer = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.add("optimizer", self.before_optimizer)
        now = time.perf_counter()
        step, self.last = now - self.last, now
        p, self.now = self.now, {}
        train = p["loss"] - p["teacher"] + p["backward"] + p["optimizer"]
        self.steps.append({"step": step, "rollout": p["rollout"], "teacher": p["teacher"], "train": train,
                           "other": step - p["rollout"] - p["teacher"] - train})
        print(f"step {len(self.steps)}: " + " ".join(f"{k} {v:.2f}" for k, v in self.steps[-1].items()),
              file=sys.stderr, flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dtype", choices=["fp32", "bf16"])
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--prompts", type=int, default=8)
    p.add_argument("--prompt-len", type=int, default=64)
    p.add_argument("--new", type=int, default=48)
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--warmup", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[a.dtype]
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    student, teacher = get_peft_model(model(dtype, 1), lora), model(dtype, 2).requires_grad_(False).eval()
    args = GKDConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=a.prompts, max_steps=a.steps, lmbda=1.0, beta=1.0,
        temperature=1.0, max_new_tokens=a.new, max_length=a.prompt_len + a.new, learning_rate=1e-4,
        lr_scheduler_type="constant", optim="adamw_torch_fused", gradient_checkpointing=False, bf16=a.dtype == "bf16",
        use_cpu=True, report_to="none", save_strategy="no", logging_steps=10**6, disable_tqdm=True)
    clock = Clock()
    trainer = GKDTrainer(
        model=student, teacher_model=teacher, args=args, processing_class=tokenizer(), callbacks=[clock],
        train_dataset=Dataset.from_list(list(rows(a.prompts * a.steps, a.prompt_len, a.new))))

    sample = trainer.generate_on_policy_outputs

    def without_eos(unwrapped, inputs, generation_config):
        """Training puts the tokenizer's end-of-sequence id on model and trainer; the lengths here are fixed."""
        unwrapped.generation_config.eos_token_id = generation_config.eos_token_id = None
        ids, mask, labels = sample(unwrapped, inputs, generation_config)
        if (labels != -100).sum(1).tolist() != [a.new] * a.prompts:
            raise RuntimeError(f"a completion is not {a.new} tokens long")
        return ids, mask, labels

    trainer.generate_on_policy_outputs = clock.timed("rollout", without_eos)
    trainer.compute_loss = clock.timed("loss", trainer.compute_loss)
    trainer.teacher_model.forward = clock.timed("teacher", trainer.teacher_model.forward)
    trainer.accelerator.backward = clock.timed("backward", trainer.accelerator.backward)
    trainer._clip_grad_norm = clock.timed("optimizer", trainer._clip_grad_norm)
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    kept = clock.steps[a.warmup:]
    fastest = min(kept, key=lambda s: s["step"])
    median = statistics.median(s["step"] for s in kept)
    print(json.dumps({**{k: round(v, 3) for k, v in fastest.items()}, "median_step": round(median, 3),
                      "steps": len(kept), "dtype": a.dtype,
                      "version": f"{trl.__version__}, torch {torch.__version__}"}))


if __name__ == "__main__":
    main()
