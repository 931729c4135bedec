"""Compares `arle` with llama.cpp on a GGUF file: greedy continuations and perplexity.

llama.cpp computes from the same weights, dequantized to f32 and with an f32 cache, as `arle` does.
  greedy      64 ids after each prompt; they may part only where llama.cpp's two best logits are within 1e-3
  tokens      the ids of each prompt's text
  perplexity  the first --chunks pieces of --context tokens of a text, each on its own, all positions after the
              first; within --tolerance (0.005) of each other

usage: check_llamacpp.py --gguf MODEL.gguf --text wikitext-2-test.txt [--arle target/release/arle]
       check_llamacpp.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --text wikitext-2-test.txt --write-fixture
The second writes llama.cpp's answers to tests/fixtures/smollm2_q4_1.json and does not run `arle`.
Exit code 0: equal. 1: different. 2: `arle` could not be asked.        needs: llama-cpp-python
"""
import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import llamacpp

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURE = ROOT / "tests" / "fixtures" / "smollm2_q4_1.json"
NEW_TOKENS = 64
PASSAGE_TOKENS = 64
NEAR_TIE = 1e-3
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = [
    "The capital of France is",
    CHAT.format("Explain in two sentences why the sky is blue."),
    CHAT.format("Write a Python function that returns the n-th Fibonacci number."),
]


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--gguf", required=True)
    p.add_argument("--text", required=True, type=pathlib.Path, help="test.txt of wikitext-2, for the perplexity")
    p.add_argument("--arle", default=ROOT / "target" / "release" / "arle", type=pathlib.Path)
    p.add_argument("--chunks", type=int, default=8)
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--tolerance", type=float, default=0.005)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--write-fixture", action="store_true")
    return p.parse_args()


def ask(arle, *args):
    """The JSON objects, one a line, of one run of `arle`."""
    run = subprocess.run([arle, *map(str, args), "--json"], capture_output=True, text=True)
    if run.returncode != 0:
        print(f"arle {args[0]} ended with {run.returncode}:\n{run.stderr[-2000:]}", file=sys.stderr)
        sys.exit(2)
    return [json.loads(line) for line in run.stdout.splitlines()]


def score(arle, gguf, sequences):
    """Log-probabilities of each sequence, from `arle score --tokens-file`."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump(sequences, f)
        f.flush()
        parts = ask(arle, "score", "--model", gguf, "--tokens-file", f.name)
    rows, tokens = [p["logprobs"] for p in parts], [p["tokens"] for p in parts]
    if tokens != sequences or [len(r) for r in rows] != [len(s) for s in sequences]:
        sys.exit("arle score did not answer for the tokens it was given")
    return rows


def perplexity(rows):
    values = [v for row in rows for v in row[1:]]
    return math.exp(-sum(values) / len(values))


def write_fixture(peer, text):
    """Answers of llama.cpp that a test can hold `arle` to without llama.cpp."""
    prompts = [peer.tokenize(p, special=True) for p in PROMPTS]
    greedy = [peer.greedy(ids, NEW_TOKENS) for ids in prompts]
    passage = peer.tokenize(text[:4000])[:PASSAGE_TOKENS]
    logprobs = [None if v is None else round(v, 4) for v in peer.logprobs(passage)]
    result = {
        "about": f"SmolLM2-135M-Instruct Q4_1, dequantized to f32, by llama-cpp-python {llamacpp.VERSION}",
        "text": PROMPTS, "prompts": prompts, "greedy": [g for g, _ in greedy],
        "closest_call": [round(min(ahead), 4) for _, ahead in greedy],
        "passage": passage, "passage_logprobs": logprobs,
    }
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in result.items())
    FIXTURE.write_text("{\n" + lines + "\n}\n")
    print(f"{FIXTURE.name}: {FIXTURE.stat().st_size} bytes, closest calls {result['closest_call']}, "
          f"perplexity of the passage {perplexity([logprobs]):.4f}")


def same_greedy(ours, theirs, ahead):
    """True, or where and why two greedy continuations part."""
    for i, (a, b) in enumerate(zip(ours, theirs)):
        if a != b:
            return ahead[i] < NEAR_TIE, f"part at {i}: {a} and {b}, llama.cpp's choice ahead by {ahead[i]:.6f}"
    if len(ours) != len(theirs):
        return False, f"{len(ours)} ids and {len(theirs)}"
    return True, "equal"


def main():
    a = parse()
    text = a.text.read_text()
    peer = llamacpp.Model(llamacpp.convert(a.gguf, "f32"), a.threads, exact=True)
    if a.write_fixture:
        return write_fixture(peer, text)
    if not a.arle.exists():
        print(f"{a.arle} does not exist; build it with: cargo build --release", file=sys.stderr)
        sys.exit(2)
    good = True

    def report(ok, *words):
        nonlocal good
        good &= ok
        print("same     " if ok else "DIFFERENT", *words, flush=True)

    for prompt in PROMPTS:
        ids = peer.tokenize(prompt, special=True)
        theirs, ahead = peer.greedy(ids, NEW_TOKENS)
        (ours,) = ask(a.arle, "generate", "--model", a.gguf, "--tokens", ",".join(map(str, ids)), "--max-new-tokens",
                   NEW_TOKENS, "--temperature", 0, "--ignore-eos")
        report(*same_greedy(ours["tokens"], theirs, ahead), f"greedy after {prompt[:40]!r}")
    for sample in (PROMPTS[0], text[:2000]):
        (ours,) = ask(a.arle, "score", "--model", a.gguf, "--text", sample)
        report(ours["tokens"] == peer.tokenize(sample), f"tokens of {sample[:40]!r}")
    ids = peer.tokenize(text)[:a.chunks * a.context]
    pieces = [ids[i:i + a.context] for i in range(0, len(ids), a.context)]
    theirs = perplexity([peer.logprobs(p) for p in pieces])
    ours = perplexity(score(a.arle, a.gguf, pieces))
    gap = abs(ours - theirs) / theirs
    report(gap <= a.tolerance, f"perplexity of {len(ids)} tokens: ours {ours:.4f}, llama.cpp {theirs:.4f}, "
                               f"{100 * gap:.4f} % apart")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
