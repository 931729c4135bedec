"""Ops with their gradients from PyTorch's autograd: tests/fixtures/ops.json.

Each entry: `attrs`, `inputs`, `outputs`, `upstream` (the gradient that arrives at each output) and `grads` (the
gradient of sum(output * upstream) with respect to each input that has one). A tensor is {"shape", "data"}, row-major.
Inputs are exact in f32, answers computed in f64. Tokens are packed: [T, ...], all sequences one after another, with
borders in `cu_seqlens`.

usage: make_op_fixtures.py        needs: torch, transformers
"""
import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from fixture_io import FIXTURES, use_one_thread, write_json
from make_loss_fixtures import jsd

GENERATOR = torch.Generator().manual_seed(7)


def draw(*shape):
    return torch.randn(*shape, generator=GENERATOR).double()


def tensor(t):
    return {"shape": list(t.shape), "data": t.flatten()}


def entry(forward, inputs, attrs=None):
    """Runs `forward(**inputs)`, which returns {name: output}, and its backward for random upstream gradients."""
    inputs = {k: v.float().double() for k, v in inputs.items()}
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    outputs = forward(**leaves)
    upstream = {k: draw(*v.shape) for k, v in outputs.items()}
    total = sum((outputs[k] * upstream[k]).sum() for k in outputs)
    grads = torch.autograd.grad(total, list(leaves.values()))
    pack = lambda d: {k: tensor(v) for k, v in d.items()}
    return {"attrs": attrs or {}, "inputs": pack(inputs), "outputs": pack(outputs), "upstream": pack(upstream),
            "grads": pack(dict(zip(leaves, grads)))}


def rms_norm():
    eps = 1e-5
    forward = lambda x, weight: {"y": x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight}
    x = draw(5, 16)
    x[0] *= 1e-3  # small enough for eps to count
    return entry(forward, {"x": x, "weight": 1 + 0.3 * draw(16)}, {"eps": eps})


def rope():
    """Hugging Face's convention: the two halves of a head rotate, not neighbouring pairs."""
    heads, kv_heads, width, theta = 3, 1, 8, 10000.0
    positions = [0, 1, 2, 0, 1, 2, 3, 1000]
    frequencies = theta ** (-torch.arange(0, width, 2).double() / width)
    angles = torch.tensor(positions).double()[:, None] * frequencies
    angles = torch.cat([angles, angles], -1)

    def forward(q, k):
        by_head = lambda x, n: x.view(len(positions), n, width).transpose(0, 1)[None]
        flat = lambda x: x[0].transpose(0, 1).reshape(len(positions), -1)
        a, b = apply_rotary_pos_emb(by_head(q, heads), by_head(k, kv_heads), angles.cos()[None], angles.sin()[None])
        return {"q": flat(a), "k": flat(b)}

    attrs = {"heads": heads, "kv_heads": kv_heads, "head_dim": width, "theta": theta, "positions": positions}
    return entry(forward, {"q": draw(8, heads * width), "k": draw(8, kv_heads * width)}, attrs)


def swiglu():
    return entry(lambda gate, up: {"y": F.silu(gate) * up}, {"gate": 3 * draw(4, 12), "up": draw(4, 12)})


def attention(window):
    """Causal attention inside each sequence; with a window a token sees itself and the `window` - 1 before it."""
    heads, kv_heads, width, borders = 4, 2, 8, [0, 5, 13]
    scale = width ** -0.5

    def forward(q, k, v):
        out = []
        for a, b in zip(borders, borders[1:]):
            n = b - a
            split = lambda x, h: x[a:b].view(n, h, width).transpose(0, 1)
            share = lambda x: split(x, kv_heads).repeat_interleave(heads // kv_heads, 0)
            distance = torch.arange(n)[:, None] - torch.arange(n)[None]
            hidden = (distance < 0) | (distance >= (window or n))
            scores = (split(q, heads) @ share(k).transpose(1, 2) * scale).masked_fill(hidden, float("-inf"))
            out.append((scores.softmax(-1) @ share(v)).transpose(0, 1).reshape(n, heads * width))
        return {"y": torch.cat(out)}

    inputs = {"q": 2 * draw(13, heads * width), "k": draw(13, kv_heads * width), "v": draw(13, kv_heads * width)}
    attrs = {"heads": heads, "kv_heads": kv_heads, "head_dim": width, "scale": scale, "cu_seqlens": borders,
             "window": window}
    return entry(forward, inputs, attrs)


def linear():
    forward = lambda x, weight, bias: {"y": F.linear(x, weight, bias)}
    return entry(forward, {"x": draw(6, 16), "weight": 0.3 * draw(12, 16), "bias": draw(12)})


def linear_lora():
    scaling = 1.5

    def forward(x, weight, a, b):
        return {"y": F.linear(x, weight) + scaling * F.linear(F.linear(x, a), b)}

    return entry(forward, {"x": draw(6, 16), "weight": 0.3 * draw(12, 16), "a": 0.3 * draw(3, 16),
                           "b": 0.3 * draw(12, 3)}, {"scaling": scaling})


def embedding():
    ids = [3, 0, 3, 8, 1]
    return entry(lambda weight: {"y": F.embedding(torch.tensor(ids), weight)}, {"weight": draw(9, 8)}, {"ids": ids})


def linear_cross_entropy():
    """Natural-log loss of each target from hidden states; -100 marks a token that does not count (loss 0)."""
    targets = [4, 21, -100, 0, 20]

    def forward(hidden, weight):
        return {"loss": F.cross_entropy(F.linear(hidden, weight), torch.tensor(targets), reduction="none")}

    return entry(forward, {"hidden": draw(5, 12), "weight": 0.3 * draw(22, 12)}, {"targets": targets})


def linear_distillation(beta, temperature):
    """Generalized JSD of each token from both hidden states, through both output heads; the teacher is constant."""
    teacher, head = draw(5, 10).float().double(), (0.4 * draw(22, 10)).float().double()

    def forward(hidden, weight):
        return {"loss": jsd(F.linear(hidden, weight), F.linear(teacher, head), beta, temperature)}

    attrs = {"beta": beta, "temperature": temperature, "teacher_hidden": tensor(teacher), "teacher_weight": tensor(head)}
    return entry(forward, {"hidden": draw(5, 12), "weight": 0.4 * draw(22, 12)}, attrs)


def main():
    use_one_thread()
    result = {
        "rms_norm": rms_norm(), "rope": rope(), "swiglu": swiglu(), "attention": attention(None),
        "attention_window": attention(3), "embedding": embedding(), "linear": linear(), "linear_lora": linear_lora(),
        "linear_cross_entropy": linear_cross_entropy(), "linear_jsd": linear_distillation(0.5, 1.0),
        "linear_forward_kl": linear_distillation(0, 2.0), "linear_reverse_kl": linear_distillation(1, 1.0),
    }
    path = FIXTURES / "ops.json"
    write_json(path, result)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
