"""Damages model folders, GGUF files, adapters, recipes and data, and runs ARLE on each: none may panic, hang or take memory.

usage: fuzz_files.py --arle PATH/arle --train PATH/arle-train [--files 5000] [--seed 1] [--keep DIR]

Every damaged file goes to one run of `arle score`, `arle generate` or `arle-train`. Counted are: right (exit code 0), refused
(another exit code with an error on stderr), and the faults: panic, signal, hang (10 s), memory (more than 1 GiB resident), and
a refusal without words. Faults are printed with the damage; --keep copies their folders. Exit code 1 when there is one.
needs: Python 3.9 on Linux
"""
import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading

FIXTURES = pathlib.Path(__file__).parent.parent / "tests" / "fixtures"
NUMBERS = ["0", "1", "-1", "134217728", "4294967296", "1099511627776", "9223372036854775807", "18446744073709551615", "1e300",
           "4.5", "null", "true", '"8"', "[]", "{}"]
SECONDS, BYTES = 10, 1 << 30
RECIPE = """[student]
model = "model"
[teacher]
system_prompt = "You are helpful."
[lora]
r = 4
alpha = 8
[data]
path = "rows"
[rollout]
prompts_per_step = 2
group_size = 1
max_new_tokens = 4
max_prompt_tokens = 100
[schedule]
max_steps = 1
[runtime]
max_running = 4
kv_bytes = 1000000
token_budget = 64
"""


def flip(r, b):
    at = r.randrange(len(b))
    return b[:at] + bytes([b[at] ^ r.randrange(1, 256)]) + b[at + 1:]


def cut(r, b):
    return b[: r.randrange(len(b))]


def insert(r, b):
    at = r.randrange(len(b))
    return b[:at] + r.randbytes(r.randrange(1, 9)) + b[at:]


def remove(r, b):
    at = r.randrange(len(b))
    return b[:at] + b[at + r.randrange(1, 33):]


def number(r, b):
    """Another value in the place of a number of the text (of a header)."""
    places = [m.span() for m in re.finditer(rb"(?<=[:\[, =])-?\d+(\.\d+)?", b[:20000])]
    if not places:
        return flip(r, b)
    start, end = r.choice(places)
    return b[:start] + r.choice(NUMBERS).encode() + b[end:]


def wide(r, b):
    """An absurd 32- or 64-bit number in the first bytes: lengths, counts, sizes of binary headers."""
    at = r.randrange(min(len(b), 2000))
    width = r.choice([4, 8])
    value = r.choice([0, 1, (1 << (8 * width)) - 1, 1 << (8 * width - 1), 1 << (8 * width - 5)])
    return b[:at] + value.to_bytes(width, "little") + b[at + width:]


def values(r, b):
    """One value of a JSON document replaced by another of the document, or by an odd one."""
    try:
        document = json.loads(b)
    except ValueError:
        return flip(r, b)
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)) and len(node[key]) < 400:
                walk(node[key])

    if isinstance(document, (dict, list)):
        walk(document)
    if not places:
        return flip(r, b)
    (node, key), (other, name) = r.choice(places), r.choice(places)
    odd = [None, True, "", "x", [], {}, -1, 2**40, 1e300, [[]], {"type": "Strip", "content": "a", "start": 9, "stop": 9}]
    node[key] = json.loads(json.dumps(other[name] if r.random() < 0.3 else r.choice(odd)))
    return json.dumps(document).encode()


TEXT, BINARY = [number, values, values, number, flip, cut, insert, remove], [flip, cut, insert, remove, wide, wide, wide]

# Name: weight, folder, the file that is damaged, how, and the command in the folder that has it.
SCORE = ["ARLE", "score", "--device", "cpu", "--model", "model", "--text", "Why is it blue?", "--json"]
TOKENS = ["ARLE", "score", "--device", "cpu", "--model", "model", "--tokens", "1,2,3", "--json"]
GENERATE = ["ARLE", "generate", "--device", "cpu", "--model", "model", "--chat", "Why?", "--max-tokens", "3", "--json"]
TRAIN = ["TRAIN", "recipe.toml", "--set", "runtime.device=cpu", "--set", "schedule.max_steps=1", "--out", "run", "--json"]
CASES = {
    "config.json": (4, "tiny-chat", "config.json", TEXT, GENERATE),
    "generation_config.json": (1, "tiny-chat", "generation_config.json", TEXT, GENERATE),
    "tokenizer.json": (5, "tiny-chat", "tokenizer.json", TEXT, SCORE),
    "tokenizer_config.json": (2, "tiny-chat", "tokenizer_config.json", TEXT, GENERATE),
    "model.safetensors": (3, "tiny-chat", "model.safetensors", BINARY + [number, number], SCORE),
    "shard": (1, "models/llama-sharded", "model-00001-of-00002.safetensors", BINARY + [number], TOKENS),
    "index.json": (2, "models/llama-sharded", "model.safetensors.index.json", TEXT, TOKENS),
    "adapter_config.json": (3, "adapters/llama-all-linear", "adapter_config.json", TEXT, TOKENS + ["--adapter", "adapter"]),
    "adapter weights": (2, "adapters/llama-all-linear", "adapter_model.safetensors", BINARY + [number, number],
                        TOKENS + ["--adapter", "adapter"]),
    "gguf": (4, "gguf", "formats.gguf", BINARY, TOKENS),
    "recipe": (4, "tiny-chat", "recipe.toml", [number, number, number, flip, cut, remove], TRAIN),
    "parquet": (4, "parquet", "prompts.parquet", BINARY, TRAIN),
}


def place(name, r, folder, case):
    """Writes the damaged input of a case into `folder`; returns the damage."""
    _, fixture, damaged, ways, _ = case
    base = FIXTURES / fixture
    way = r.choice(ways)
    if name == "gguf":
        (folder / "model").write_bytes(way(r, (base / damaged).read_bytes()))
        return way.__name__
    if name in ("recipe", "parquet"):
        shutil.copytree(FIXTURES / "tiny-chat", folder / "model")
        rows = '{"prompt": "Why is it blue?", "completion": "Because."}\n' * 4
        (folder / "rows.jsonl").write_text(rows)
        text = RECIPE.replace('"rows"', '"rows.parquet"' if name == "parquet" else '"rows.jsonl"').encode()
        (folder / "recipe.toml").write_bytes(way(r, text) if name == "recipe" else text)
        if name == "parquet":
            source = r.choice(sorted(base.glob("*.parquet")))
            (folder / "rows.parquet").write_bytes(way(r, source.read_bytes()))
        return way.__name__
    if "adapter" in name:
        shutil.copytree(FIXTURES / "models" / "llama-gqa-tied", folder / "model")
    target = folder / ("adapter" if "adapter" in name else "model")
    shutil.copytree(base, target)
    (target / damaged).write_bytes(way(r, (base / damaged).read_bytes()))
    return way.__name__


def run(args, number):
    """One damaged file: its case, the damage, and what became of it."""
    r = random.Random(args.seed * 1_000_003 + number)
    name = r.choices(list(CASES), [case[0] for case in CASES.values()])[0]
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        damage = place(name, r, folder, CASES[name])
        programs = {"ARLE": args.arle, "TRAIN": args.train}
        command = [programs.get(word, word) for word in CASES[name][4]]
        err = open(folder / "stderr", "w+b")
        environment = {**os.environ, "RAYON_NUM_THREADS": "2"}
        child = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=err, env=environment)
        killer = threading.Timer(SECONDS, child.kill)
        killer.start()
        _, status, usage = os.wait4(child.pid, 0)
        hung = not killer.is_alive()
        killer.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0)
        said = err.read(100_000).decode(errors="replace")
        verdict = judge(child.returncode, hung, usage.ru_maxrss * 1024, said)
        if args.keep and verdict not in ("right", "refused"):
            shutil.copytree(folder, pathlib.Path(args.keep) / f"{number}-{verdict}", dirs_exist_ok=True)
    return number, name, damage, verdict, said[-300:]


def judge(code, hung, resident, said):
    if hung:
        return "hang"
    if "panicked at" in said or code == 101:
        return "panic"
    if code < 0:
        return "signal"
    if resident > BYTES:
        return "memory"
    if code == 0:
        return "right"
    return "refused" if "error: " in said else "without words"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arle", required=True, type=os.path.abspath)
    parser.add_argument("--train", required=True, type=os.path.abspath)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep")
    args = parser.parse_args()
    counts, faults = collections.Counter(), []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, name, damage, verdict, said in pool.map(lambda n: run(args, n), range(args.files)):
            counts[name, verdict] += 1
            if verdict not in ("right", "refused"):
                faults.append((number, name, damage, verdict, said))
                print(f"{number} {name} {damage}: {verdict}: {said}", flush=True)
    verdicts = sorted({verdict for _, verdict in counts})
    print("damaged file".ljust(24), *(verdict.rjust(9) for verdict in verdicts))
    for name in CASES:
        print(name.ljust(24), *(str(counts[name, verdict]).rjust(9) for verdict in verdicts))
    print(f"{args.files} files, {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
