"""TRL's GKDTrainer for `run`: the same student, teacher, questions, mix of completions and seconds.

Its defaults but for what the study fixes (beta 0.5, half of the completions by the teacher, temperature 1, learning rate, batch),
fused AdamW, bf16, and no warm-up, which would take all its steps. As many sequences at a time as fit: --micro. Writes the student,
and told.json with seconds, steps and peak memory.
"""
import argparse
import json
import pathlib
import time

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.gkd import GKDConfig, GKDTrainer


def parse():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--student", required=True)
    p.add_argument("--teacher", required=True)
    p.add_argument("--prompts", required=True, type=pathlib.Path)
    p.add_argument("--seconds", type=float, required=True)
    p.add_argument("--out", required=True, type=pathlib.Path)
    p.add_argument("--batch", type=int, required=True)
    p.add_argument("--micro", type=int, required=True)
    p.add_argument("--new", type=int, required=True)
    p.add_argument("--lr", type=float, required=True)
    return p.parse_args()


class Budget(TrainerCallback):
    """Ends training after the step in which the seconds are used up."""

    def __init__(self, seconds):
        self.seconds, self.steps, self.taken = seconds, 0, 0.0

    def on_train_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        torch.cuda.synchronize() if torch.cuda.is_available() else None
        self.steps, self.taken = state.global_step, time.perf_counter() - self.start
        print(f"step {self.steps}: {self.taken:.1f} s", flush=True)
        control.should_training_stop = self.taken >= self.seconds


def main():
    a = parse()
    cuda = torch.cuda.is_available()
    # Small steps are lost in weights of bf16: the student has f32 ones and computes in bf16, as ours does.
    dtypes = [torch.float32, torch.bfloat16 if cuda else torch.float32]
    student, teacher = (AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa") for path, dtype in zip((a.student, a.teacher), dtypes))
    if cuda:
        student, teacher = student.cuda(), teacher.cuda()
    tokenizer = AutoTokenizer.from_pretrained(a.teacher, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = [json.loads(line) for line in a.prompts.read_text().splitlines()]
    data = Dataset.from_list([{"messages": [*row["prompt"], {"role": "assistant", "content": row["completion"]}]} for row in rows])
    config = GKDConfig(
        output_dir=str(a.out / "trainer"), per_device_train_batch_size=a.micro, gradient_accumulation_steps=a.batch // a.micro,
        max_steps=100_000, learning_rate=a.lr, lr_scheduler_type="constant", optim="adamw_torch_fused" if cuda else "adamw_torch",
        lmbda=0.5, beta=0.5, seq_kd=True, temperature=1.0, max_new_tokens=a.new, max_length=600 + a.new, bf16=cuda,
        use_cpu=not cuda, report_to="none", save_strategy="no", logging_steps=10**6, disable_tqdm=True, seed=0)
    budget = Budget(a.seconds)
    GKDTrainer(model=student, teacher_model=teacher, args=config, processing_class=tokenizer, train_dataset=data, callbacks=[budget]).train()
    student.to(torch.bfloat16).save_pretrained(a.out)
    tokenizer.save_pretrained(a.out)
    peak = torch.cuda.max_memory_allocated() if cuda else None
    told = {"seconds": budget.taken, "steps": budget.steps, "tokens": None, "peak_bytes": peak}
    (a.out / "told.json").write_text(json.dumps(told))


main()
