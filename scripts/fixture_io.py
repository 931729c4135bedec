"""How the fixture makers write numbers and files, so that a second run gives the same bytes."""
import json
import pathlib

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"

DIGITS = 9  # enough to give back every f32 exactly


def use_one_thread():
    """The order of a sum depends on the number of threads; one thread makes it repeatable."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def plain(value, digits=DIGITS):
    """Tensors, tuples and numbers as nested lists of numbers with a fixed count of significant digits."""
    if isinstance(value, torch.Tensor):
        value = value.detach().tolist()
    if isinstance(value, dict):
        return {k: plain(v, digits) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v, digits) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    return value


def write_json(path, value, digits=DIGITS):
    """Compact JSON: one line for each top-level key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pack = lambda v: json.dumps(plain(v, digits), separators=(",", ":"))
    rows = [f"{json.dumps(k)}: {pack(v)}" for k, v in value.items()]
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def random_sequences(generator, vocab, lengths, first_id):
    """Token ids in [first_id, vocab), one list for each length."""
    return [torch.randint(first_id, vocab, (n,), generator=generator).tolist() for n in lengths]


def randomize(model, generator, std=0.3):
    """Weights wide enough that logits differ clearly, and norms and biases that are not 1 and 0."""
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            draw = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.3 * draw if "norm" in name else std * draw)


@torch.no_grad()
def answers(model, sequences, new_tokens=12):
    """What a causal language model says about each sequence, from whole forward passes without a cache."""
    out = {"tokens": sequences, "logprobs": [], "logits_last": [], "greedy": []}
    margin = float("inf")
    for ids in sequences:
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].double()
        scores = logits.log_softmax(-1)
        out["logprobs"].append([None] + [scores[i, t].item() for i, t in enumerate(ids[1:])])
        out["logits_last"].append(logits[-1])
        grown = list(ids)
        for _ in range(new_tokens):
            row = model(torch.tensor([grown]), use_cache=False).logits[0, -1]
            best = row.topk(2).values
            margin = min(margin, (best[0] - best[1]).item())
            grown.append(row.argmax().item())
        out["greedy"].append(grown[len(ids):])
    return out, margin
