"""The table of `scripts/bench/gpu`, in Markdown."""
import json

# One H200, 2026-11-23: vLLM 0.25.1 (no LoRA, CUDA graphs, torch.compile), TRL 1.16.0 (reverse KL). Shown, never divided by.
RECORDED = [
    ("vLLM, one sequence, 128 in, 512 out", "594 tok/s at 0.6B, 284 at 4B"),
    ("vLLM, 64 sequences, 128 in, 256 out, no LoRA", "0.69 s at 0.6B, 1.32 s at 4B"),
    ("vLLM, 256 requests", "22,771 output tok/s at 0.6B, 12,315 at 4B"),
    ("vLLM, engine start", "63 s at 0.6B"),
    ("TRL DistillationTrainer, step of 0.6B by 1.7B", "LoRA 15.4 s (rollout 14.2), every weight 7.9 s (rollout 7.1)"),
    ("TRL GKDTrainer, the same, LoRA", "63.8 s"),
]


def short(path):
    """qwen3-0.6b.json: 0.6b"""
    return path.stem.split("-")[-1]


def parameters(path):
    """Weights of the layers, and of the head."""
    c = json.loads(path.read_text())
    h, heads = c["hidden_size"], (2 * c["num_attention_heads"] + 2 * c["num_key_value_heads"]) * c["head_dim"]
    return c["num_hidden_layers"] * (h * heads + 3 * h * c["intermediate_size"]), h * c["vocab_size"]


def training_flops(a, student, teacher, mode):
    """Matrix products of the student's pass and of both heads; attention and a LoRA's own products are left out. Two
    operations a weight and token forward, two for the gradient of the input, two for that of a weight that learns. The
    first layer's input needs no gradient, which is not taken off."""
    (layers, head), (_, teacher_head) = parameters(student), parameters(teacher)
    tokens, scored = a.prompts * (a.prompt_len + a.new), a.prompts * a.new
    times = 4 if mode == "lora" else 6
    return times * (tokens * layers + scored * head) + 2 * scored * teacher_head


class Table:
    def __init__(self, run):
        self.run, self.a, self.lines = run, run.a, []

    def value(self, part, *keys):
        found = self.run.parts.get(part, {})
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def row(self, figure, unit, ours, peer, name, more=True, aim=""):
        """`more`: a larger figure is the better one. Rows of which nothing was measured are left out."""
        if ours is None and peer is None:
            return
        ratio = (ours / peer if more else peer / ours) if ours and peer else None
        self.lines.append(f"| {figure} | {unit} | {number(ours)} | {number(peer)} | {name if peer else ''} | "
                          f"{f'{ratio:.2f}x' if ratio else ''} | {aim} |")

    def kernels(self):
        ours = {line["name"]: line for line in self.value("kernels ours", "lines") or []}
        seconds = lambda name: micro(ours.get(name, {}).get("seconds"))
        torch = {"x".join(map(str, found["shape"])): found for part in ("linear torch", "attention torch")
                 for found in self.value(part, "shapes") or []}
        shapes = dict.fromkeys([*(name.split()[-1] for name in ours if not name.startswith("jsd ")), *torch])
        for shape in shapes:
            sizes, peer = shape.split("x"), torch.get(shape, {})
            if len(sizes) == 3:
                self.row(f"linear {shape}", "us", seconds(f"linear {shape}"), micro(peer.get("seconds")), "torch (cuBLAS)", False, "1.0x")
                continue
            b, h, s, d = sizes
            for kernel in ("flash", "cudnn") if "cudnn" in peer else ("flash",):
                for way, words in (("forward", "forward"), ("both", "forward + backward")):
                    self.row(f"attention {words}, {b} x {s}, {h} heads of {d}", "us", seconds(f"attention {way} {shape}"),
                             micro(peer.get(kernel, {}).get(way)), f"torch SDPA, {kernel}", False, "1.0x" if kernel == "flash" else "")
        mine = next((line for name, line in ours.items() if name.startswith("jsd ")), {})
        for way in ("chunked", "eager"):
            self.row("JSD from hidden states, forward + backward: time", "ms", thousand(mine.get("seconds")),
                     thousand(self.value("jsd torch", way, "seconds")), f"torch, {way}", False, "below")
            self.row("the same: peak memory", "GiB", gib(mine.get("peak_bytes")), gib(self.value("jsd torch", way, "peak_bytes")),
                     f"torch, {way}", False, "below, < 11 GB")

    def generation(self):
        a = self.a
        aims = {"one": ["1,500", "420"], "requests": ["28,000", "14,000"]}
        for i, shape in enumerate((a.small, a.large)):
            name = short(shape)
            self.row(f"{name}: one sequence, {a.prompt_len} in, {a.alone} out", "tok/s", self.value(f"one {name} ours", "decode_1"),
                     self.value(f"one {name} torch", "decode"), "transformers generate", True, aims["one"][i])
            peer = self.value(f"requests {name} torch", "output_tokens_per_s")
            self.row(f"{name}: {a.requests} requests", "out tok/s", self.value(f"requests {name} ours", "output_tokens_per_s"), peer,
                     f"transformers generate, {max(1, a.requests // 2)} of equal lengths", True, aims["requests"][i])

    def steps(self, steps):
        for name, mode, student, teacher, _ in steps:
            ours, torch, trl = (f"opd {name} {mode} {who}" for who in ("ours", "torch", "TRL"))
            small = student == self.a.small
            words = {"lora": "LoRA r32", "merged": "LoRA r32, merged for the rollout", "full": "every weight",
                     "offloaded": "every weight, AdamW's on the host"}[mode]
            title, peer = f"step {name}, {words}", trl if mode != "merged" else trl.replace("merged", "lora")
            aim = "20x" if small and mode != "full" else "10x"
            self.row(title, "s", self.value(ours, "step"), self.value(peer, "step"), "TRL", False, aim)
            limit = {self.a.small: "0.45 s", self.a.large: "1.0 s"}.get(student, "") if mode in ("lora", "merged") else ""
            self.row(f"{title}: rollout", "s", self.value(ours, "rollout"), self.value(peer, "rollout"), "TRL", False, limit)
            self.row(f"{title}: peak memory", "GiB", gib(self.value(ours, "gpu_peak_bytes")), gib(self.value(peer, "gpu_peak_bytes")),
                     "TRL", False, "below")
            if mode != "merged":
                self.training(title, mode, student, teacher, ours, torch)
            self.row(f"{title}: mismatch KL x 1e6", "nats", million(self.value(ours, "mismatch_kl")), None, "")

    def training(self, title, mode, student, teacher, ours, torch):
        heads = self.value(torch, "head_loss")
        # Ours makes the heads' gradients in the forward pass, as the peer's head_loss does.
        peer = {k: self.value(torch, k) for k in ("teacher", "forward", "backward", "optimizer")}
        if heads is not None:
            peer["forward"] += heads
        self.row(f"{title}: teacher", "s", self.value(ours, "teacher"), peer["teacher"], "transformers", False)
        for phase, words in (("forward", "forward, heads, loss"), ("backward", "backward"), ("optimizer", "optimizer")):
            self.row(f"{title}: {words}", "s", self.value(ours, phase), peer[phase], "transformers, peft", False)
        names = ["forward", "backward", "optimizer"]
        whole = [sum(side[n] for n in names) if all(side[n] for n in names) else None
                 for side in ({n: self.value(ours, n) for n in names}, peer)]
        tokens = self.a.prompts * (self.a.prompt_len + self.a.new)
        self.row(f"{title}: training pass", "tok/s", *(tokens / s if s else None for s in whole), "transformers, peft", True, "1.5x")
        best = self.value("linear torch", "peak_tflops")
        flops = training_flops(self.a, student, teacher, mode)
        self.row(f"{title}: training pass, share of the best product", "%",
                 *(flops / s / 1e12 / best * 100 if s and best else None for s in whole), "transformers, peft", True,
                 "50 %" if student == self.a.large else "")

    def exact(self, figure, unit, part, key, base, more):
        """A row of `deterministic`, whose peer is ARLE without it."""
        if (ours := self.value(part, key)) is not None:
            self.row(f"{figure}, deterministic", unit, ours, self.value(base, key), "ARLE without it", more, "0.80x")

    def rest(self):
        a = self.a
        for kind, words in (("file", "safetensors file in the page cache"), ("random", "random weights made")):
            name = f"start {kind}"
            self.row(f"start to first token, {short(a.small)}, {words}", "s",
                     None if self.value(name, "not_measured") else self.value(name, "wall_s"), None, "", False, "2 s" if kind == "file" else "")
        for shape in (a.small, a.large):
            name = f"requests {short(shape)}"
            self.exact(f"{short(shape)}: {a.requests} requests", "out tok/s", f"{name} exact", "output_tokens_per_s", f"{name} ours", True)
        name = f"{short(a.small)} by {short(a.middle)}"
        self.exact(f"step {name}, LoRA r32", "s", f"opd {name} lora exact", "step", f"opd {name} lora ours", False)


def micro(seconds):
    return seconds * 1e6 if seconds else None


def thousand(seconds):
    return seconds * 1e3 if seconds else None


def million(value):
    return value * 1e6 if value is not None else None


def gib(count):
    return count / 2**30 if count else None


def number(value):
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def markdown(run, steps):
    about, table = run.about, Table(run)
    table.kernels()
    table.generation()
    table.steps(steps)
    table.rest()
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    head = [f"{about['date']}, commit {about['commit']}, {about['card']}; {versions or 'no peers'}; {about['seconds']} s.", "",
            "| figure | unit | ARLE | peer | which | times better | aim |", "|---|---|---|---|---|---|---|"]
    missing = [f"- {name}: {part['not_measured']}" for name, part in run.parts.items() if "not_measured" in part]
    if missing:
        missing = ["", "Not measured:", "", *missing]
    recorded = ["", "Recorded on one H200 on 2026-11-23, not part of this run:", "", *(f"- {what}: {said}" for what, said in RECORDED)]
    return "\n".join(head + table.lines + missing + recorded)
