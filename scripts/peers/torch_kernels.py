"""torch's kernels, for `peers/gpu.py`: matrix products, attention, a distillation loss. Best of three runs of several calls."""
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def best(device, call, calls):
    """Seconds of one call, the queue kept full."""
    for _ in range(3):
        call()
    found = []
    for _ in range(3):
        wait(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait(device)
        found.append((time.perf_counter() - start) / calls)
    return min(found)


def linear(job, device):
    shapes = []
    for m, k, n in job["shapes"]:
        x, w = (torch.randn(s, device=device, dtype=torch.bfloat16) for s in ((m, k), (n, k)))
        seconds = best(device, lambda: F.linear(x, w), job["calls"])
        shapes.append({"shape": [m, k, n], "seconds": seconds, "tflops": 2 * m * k * n / seconds / 1e12})
    return {"shapes": shapes, "peak_tflops": max(s["tflops"] for s in shapes)}


def attention(job, device):
    """Causal, equal lengths, as many key-value heads as heads; by torch's flash kernel and by cuDNN's."""
    shapes = []
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    if device != "cuda":
        backends = {"flash": SDPBackend.MATH}
    torch.backends.cuda.enable_cudnn_sdp(True)
    for b, h, s, d in job["shapes"]:
        q, k, v = (torch.randn(b, h, s, d, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        upstream = torch.randn(b, h, s, d, device=device, dtype=torch.bfloat16)
        found = {"shape": [b, h, s, d]}
        for name, backend in backends.items():
            with sdpa_kernel(backend):
                @torch.no_grad()
                def forward():
                    return F.scaled_dot_product_attention(q, k, v, is_causal=True)

                def both():
                    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                    return torch.autograd.grad(out, (q, k, v), upstream)

                try:
                    found[name] = {"forward": best(device, forward, job["calls"]), "both": best(device, both, job["calls"])}
                except RuntimeError as e:
                    found[name] = {"not_measured": str(e)[:200]}
        shapes.append(found)
    return {"shapes": shapes}


def divergence(student, teacher):
    """Sum over rows of the Jensen-Shannon divergence (beta 0.5) of two sets of logits, in f32 as TRL has it."""
    q, p = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    mean = torch.logaddexp(p, q) - 0.6931471805599453
    kl = lambda of: F.kl_div(mean, of, reduction="sum", log_target=True)
    return 0.5 * (kl(p) + kl(q))


def whole(hidden, head, target, target_head):
    """Both products and the divergence at once."""
    with torch.no_grad():
        wanted = F.linear(target, target_head)
    (divergence(F.linear(hidden, head), wanted) / hidden.shape[0]).backward()


def chunked(hidden, head, target, target_head, rows):
    """A chunk of rows at a time, its gradient made at once: no [tokens, vocabulary] matrix stays."""
    for h, t in zip(hidden.split(rows), target.split(rows)):
        with torch.no_grad():
            wanted = F.linear(t, target_head)
        (divergence(F.linear(h, head), wanted) / hidden.shape[0]).backward()


def jsd(job, device):
    """Forward and backward from hidden states: seconds, and the most memory including heads, hidden states, gradients."""
    t, h, vocab = job["tokens"], job["hidden"], job["vocab"]
    normal = lambda rows, scale: (torch.randn(rows, h, device=device, dtype=torch.float32) * scale).bfloat16()
    heads = [normal(vocab, 0.02) for _ in range(2)]
    hidden, target = normal(t, 1.0), normal(t, 1.0)
    hidden.requires_grad_(True)
    heads[0].requires_grad_(True)
    ways = {"eager": lambda: whole(hidden, heads[0], target, heads[1]),
            "chunked": lambda: chunked(hidden, heads[0], target, heads[1], job["rows"])}
    found = {}
    for name, way in ways.items():
        def call():
            hidden.grad = heads[0].grad = None
            way()
        try:
            call()
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = best(device, call, job["calls"])
            peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
            found[name] = {"seconds": seconds, "peak_bytes": peak}
        except torch.OutOfMemoryError:
            found[name] = {"not_measured": "out of memory"}
        hidden.grad = heads[0].grad = None
        if device == "cuda":
            torch.cuda.empty_cache()
    return found
