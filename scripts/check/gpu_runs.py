"""Short distillation runs on a GPU: against the CPU's, killed and resumed, their adapter in PEFT. `scripts/check/gpu` runs it.

Student and teacher are random Qwen3 checkpoints of four layers, made on the spot, with the tokenizer of tests/fixtures/tiny-chat.

  given      completions of the data: every token is the same on both devices, so each step's loss differs by rounding
             (bf16 against f32) only: by at most 2 %
  on policy  the student's own samples, which part after some tokens because of that rounding: losses and held-out KL differ
             by sampling noise, each by at most 15 %, their means by at most 5 %; the KL has to fall
  resume     a run that was killed twice ends with the metrics and the bytes of one that was not
  adapter    what the run learned gives the same log-probs in PEFT

Prints a line a check: ok or FAIL, name, what was seen, separated by tabs.

usage: gpu_runs.py --arle PATH --train PATH [--device cuda]              needs: torch, transformers, peft
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, Qwen3Config

from gpu_models import Check, load

TOKENIZER = pathlib.Path(__file__).resolve().parent.parent.parent / "tests" / "fixtures" / "tiny-chat"
STEPS = 12
RECIPE = """
[student]
model = "student"
[teacher]
kind = "model"
model = "teacher"
[lora]
r = 16
alpha = 32
[data]
path = "rows.jsonl"
eval_rows = 16
[rollout]
prompts_per_step = 16
max_new_tokens = 32
max_prompt_tokens = 120
ignore_eos = true
[loss]
kind = "jsd"
[optim]
lr = 3e-3
[schedule]
kind = "cosine"
warmup_steps = 2
max_steps = {steps}
[eval]
every = 4
[checkpoint]
every = 2
"""


def checkpoint(folder, seed):
    """Weights large enough that student and teacher disagree about most tokens."""
    shape = json.loads((TOKENIZER / "config.json").read_text())
    config = Qwen3Config(vocab_size=shape["vocab_size"], hidden_size=256, intermediate_size=512, num_hidden_layers=4,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=512, rms_norm_eps=1e-6,
                         tie_word_embeddings=True, bos_token_id=None, eos_token_id=shape["eos_token_id"], initializer_range=0.06)
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / name, folder)


class Runs:
    def __init__(self, a, folder):
        self.a, self.folder = a, pathlib.Path(folder)
        self.check = Check(a)
        checkpoint(self.folder / "student", 1)
        checkpoint(self.folder / "teacher", 2)
        rows = [{"prompt": f"Why is number {i} blue?", "completion": f"Because the sea around number {i} is as deep as {i * 7}."}
                for i in range(STEPS * 16 + 16)]
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (self.folder / "recipe.toml").write_text(RECIPE.format(steps=STEPS))

    def command(self, name, device, *more):
        return [self.a.train, str(self.folder / "recipe.toml"), "--out", str(self.folder / name), "--json",
                "--set", f"runtime.device={device}", *more]

    def train(self, name, device, *more):
        done = subprocess.run(self.command(name, device, *more), capture_output=True, text=True, timeout=self.a.limit)
        if done.returncode:
            raise RuntimeError(f"arle-train on {device} ended with {done.returncode}: {' '.join(done.stderr.split()[-60:])}")
        return self.metrics(name)

    def metrics(self, name):
        """Without what measures time or memory, or counts how far the host was ahead of the GPU."""
        lines = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if not k.startswith(("time/", "perf/", "gpu/", "engine/"))} for line in lines]

    def follow(self, name, keys, each, mean, *more):
        """Every value of these metrics within `each` of the CPU's, the means within `mean`."""
        runs = [self.train(f"{name}, {place}", device, *more) for place, device in (("host", "cpu"), ("card", self.a.device))]
        for key in keys:
            cpu, card = ([line[key] for line in run if line.get(key) is not None] for run in runs)
            if not cpu or len(cpu) != len(card):
                self.check.line(False, f"{name}: {key}", f"{len(card)} values, the CPU's run has {len(cpu)}")
                continue
            worst = max(abs(b - a) / abs(a) for a, b in zip(cpu, card))
            means = [sum(values) / len(values) for values in (cpu, card)]
            off = abs(means[1] - means[0]) / abs(means[0])
            self.check.line(worst <= each and off <= mean, f"{name}: {key} follows the CPU's",
                            f"{cpu[0]:.4f} -> {cpu[-1]:.4f} on the CPU, {card[0]:.4f} -> {card[-1]:.4f}; largest difference "
                            f"{worst:.1%} (allowed {each:.0%}), of the means {off:.1%} ({mean:.0%})")
        return runs

    def given(self):
        self.follow("given", ["loss"], 0.02, 0.01, "--set", "loss.lmbda=0")

    def on_policy(self):
        runs = self.follow("on policy", ["loss", "eval/kl", "eval/kl_teacher_samples"], 0.15, 0.05)
        kl = [line["eval/kl"] for line in runs[1] if line.get("eval/kl") is not None]
        self.check.line(kl[-1] < 0.8 * kl[0], "on policy: held-out KL falls", f"{kl[0]:.4f} -> {kl[-1]:.4f}")

    def resume(self):
        device, settings = self.a.device, ["--set", "lora.dropout=0.1"]
        want = self.train("whole", device, *settings)
        for round, lines in enumerate((5, 9)):
            again = ["--resume"] if round else []
            child = subprocess.Popen(self.command("killed", device, *settings, *again), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.wait(child, lines)
            child.kill()
            if child.wait() != -9:
                raise RuntimeError("the run was over before it was killed")
        got = self.train("killed", device, *settings, "--resume")
        differing = [key for line, other in zip(want, got) for key in line if line[key] != other.get(key)]
        files = ["adapter_model.safetensors", "optimizer.safetensors"]
        read = lambda run, name: (self.folder / run / "checkpoints" / "latest" / name).read_bytes()
        differing += [name for name in files if read("whole", name) != read("killed", name)]
        self.check.line(len(want) == len(got) and not differing, "resume: killed twice, the same bits",
                        f"{len(got)} lines of metrics, {len(files)} files" + (f"; differing: {sorted(set(differing))}" if differing else ""))

    def wait(self, child, lines):
        path, end = self.folder / "killed" / "metrics.jsonl", time.monotonic() + self.a.limit
        while not path.exists() or len(path.read_text().splitlines()) < lines:
            if child.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"no {lines} lines of metrics before the run ended")
            time.sleep(0.002)

    def adapter(self):
        where = self.folder / "on policy, card" / "checkpoints" / "latest"
        path = str(self.folder / "student")
        models = [PeftModel.from_pretrained(model, where, autocast_adapter_dtype=False).eval() for model in load(path, self.check.place)]
        self.check.score("the run's adapter in PEFT", path, models, 200, "--adapter", str(where))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--arle", required=True)
    p.add_argument("--train", required=True, help="arle-train")
    p.add_argument("--device", default="cuda")
    p.add_argument("--limit", type=float, default=120, help="seconds of one run")
    a = p.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(a, folder)
        for part in (runs.given, runs.on_policy, runs.resume, runs.adapter):
            try:
                part()
            except Exception as e:  # one failure must not hide the others
                runs.check.line(False, part.__name__.replace("_", " "), f"{type(e).__name__}: {e}"[:600].replace("\t", " ").replace("\n", " "))
    sys.exit(1 if runs.check.failed else 0)


if __name__ == "__main__":
    main()
