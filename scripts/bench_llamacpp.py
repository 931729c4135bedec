"""llama.cpp's tokens/s on the CPU: decode at 1 and 16 sequences, and prefill. One JSON object on stdout.

Every sequence has 128 prompt tokens and 64 new ones. Prefill is all prompts of 16 sequences at once; decode feeds fixed
ids and computes the logits of every sequence, so no sampler is in the figure. Cache type, attention and batch sizes are
llama.cpp's own defaults. The best of --repeat runs counts: other work on the machine only ever makes a run slower.

usage: bench_llamacpp.py MODEL.gguf f16|f32 [--threads N] [--repeat N]        needs: llama-cpp-python
"""
import argparse
import json
import os
import time

import llamacpp

PROMPT, NEW, SEQUENCES = 128, 64, 16


def prefill(model, sequences):
    model.clear()
    items = [(100 + (37 * i + s) % 4000, i, s, i == PROMPT - 1) for s in range(sequences) for i in range(PROMPT)]
    start = time.perf_counter()
    model.decode(items)
    return sequences * PROMPT / (time.perf_counter() - start)


def decode(model, sequences):
    start = time.perf_counter()
    for step in range(NEW):
        model.decode([(200 + step, PROMPT + step, s, True) for s in range(sequences)])
    return sequences * NEW / (time.perf_counter() - start)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("gguf")
    p.add_argument("weights", choices=llamacpp.FILE_TYPES)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--repeat", type=int, default=3)
    a = p.parse_args()
    model = llamacpp.Model(llamacpp.convert(a.gguf, a.weights), a.threads, SEQUENCES, PROMPT + NEW)
    best = {"decode_1": 0.0, "decode_16": 0.0, "prefill": 0.0}
    prefill(model, 1)  # warm-up: pages of the file, threads
    for _ in range(a.repeat):
        prefill(model, 1)
        best["decode_1"] = max(best["decode_1"], decode(model, 1))
        best["prefill"] = max(best["prefill"], prefill(model, SEQUENCES))
        best["decode_16"] = max(best["decode_16"], decode(model, SEQUENCES))
    model.close()
    print(json.dumps({**{k: round(v, 1) for k, v in best.items()}, "version": llamacpp.VERSION}))


if __name__ == "__main__":
    main()
