#!/usr/bin/env python3
"""Fixtures of the mathematics graders, made with lm-eval 0.4.13, sympy 1.14.0, antlr4-python3-runtime 4.11.0 and
math-verify 0.9.0.

    pip install lm-eval==0.4.13 sympy==1.14.0 antlr4-python3-runtime==4.11 math-verify==0.9.0
    scripts/make_grade_fixtures.py --data DATA [--all ALL.jsonl]

Every gold answer of math500 meets right and wrong variants of itself and answers of its neighbours. For each pair the
program writes what minerva_math's, hendrycks_math's and math_verify's code says. A row is the list gold, answer, right
(1, 0, or null where the variant may be either), minerva's normal forms of both, then the three verdicts. A sample of the
rows is committed as tests/fixtures/grade.json; --all writes every row, one a line, for the ignored test.
"""

import argparse
import importlib.util
import json
import logging
import random
import re
from pathlib import Path

logging.disable(logging.CRITICAL)
ROOT = Path(__file__).resolve().parent.parent
COMMITTED = 700


def task_module(name):
    """A task's utils.py, without lm-eval's own imports."""
    base = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0]) / "tasks" / name / "utils.py"
    source = base.read_text().replace("import datasets", "datasets = None").replace(": datasets.Dataset", "")
    source = source.replace("-> datasets.Dataset", "")
    module = type(json)(name)
    exec(compile(source, str(base), "exec"), module.__dict__)
    return module


def variants(gold, rng):
    """(answer, right) pairs; right is None where it depends on the reader."""
    out = [(gold, 1), (f" {gold} ", 1), (gold.replace(" ", ""), 1), (gold.replace("frac", "dfrac"), 1), (f"${gold}$", 1)]
    out += [(gold.replace("\\left", "").replace("\\right", ""), 1), (gold + ".", None), (f"x = {gold}", None)]
    out += [(re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"(\1/\2)", gold), 1), (gold + "\\%", None), (gold + "\\text{ units}", None)]
    out += [(f"\\text{{{gold}}}", None), (gold + " cm", None), (f"\\$ {gold}", None), (f"({gold})", None), (f"{gold},0", None)]
    number = re.fullmatch(r"-?\d+", gold)
    if number:
        n = int(gold)
        out += [(f"{n}.0", 1), (f"\\frac{{{2 * n}}}{{2}}", 1), (f"{n:,}", 1), (f"{n + 1}-1", 1), (f"\\sqrt{{{n * n}}}", int(n >= 0))]
        out += [(str(n + 1), 0), (str(-n), int(n == 0)), (f"{n}0", int(n == 0)), (f"{n}.5", 0), (f"{n}x", int(n == 0))]
        out += [(f"{n}\\pi", int(n == 0)), (f"{n}^\\circ", None), (f"{n}!", None), (f"\\frac{{{n}}}{{3}}", int(n == 0))]
    fraction = re.fullmatch(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}", gold)
    if fraction:
        sign, top, bottom = fraction.groups()
        out += [(f"{sign}\\frac{{{3 * int(top)}}}{{{3 * int(bottom)}}}", 1), (f"{sign}\\frac{{{bottom}}}{{{top}}}", 0)]
        out += [(repr(int(sign + top) / int(bottom)), None), (f"{sign}{int(top) / int(bottom):.2f}", None)]
    if "\\sqrt" in gold:
        out += [(gold.replace("\\sqrt", ""), 0), (re.sub(r"\\sqrt\{(\d+)\}", r"{\1}^{1/2}", gold), 1)]
    if re.search(r"[a-z]", gold.replace("\\", "")) and "+" in gold:
        parts = gold.split("+")
        out += [("+".join(reversed(parts)), None), (gold.replace("+", "-", 1), None), (f"2({gold})/2", None)]
    if "," in gold and gold[0] in "([\\":
        out += [(gold.replace("(", "[", 1), None), (gold.replace(",", ", "), None)]
    digits = [m.start() for m in re.finditer(r"\d", gold)]
    if digits:
        at = rng.choice(digits)
        out.append((gold[:at] + str((int(gold[at]) + rng.randint(1, 8)) % 10) + gold[at + 1 :], None))
    out.append((gold[1:] if gold.startswith("-") else "-" + gold, None))
    return out


def verdicts(gold, answer, minerva, hendrycks, verify, parse):
    left, right = minerva.normalize_final_answer(gold), minerva.normalize_final_answer(answer)
    return [left, right, int(minerva.is_equiv(right, left)), int(hendrycks.is_equiv(answer, gold)),
            int(verify(gold=parse(f"${gold}$"), target=parse(f"\\boxed{{{answer}}}")))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with math500/test.jsonl")
    parser.add_argument("--all", type=Path, help="also write every row here")
    args = parser.parse_args()
    from math_verify import parse, verify
    minerva, hendrycks = task_module("minerva_math"), task_module("hendrycks_math")
    rng = random.Random(1234)
    docs = [json.loads(line) for line in (args.data / "math500" / "test.jsonl").open()]
    golds = [minerva.remove_boxed(minerva.last_boxed_only_string(doc["solution"])) for doc in docs]
    rows, seen = [], set()
    for at, gold in enumerate(golds):
        for answer, right in variants(gold, rng) + [(golds[(at + step) % len(golds)], None) for step in (1, 7)]:
            if (gold, answer) in seen:
                continue
            seen.add((gold, answer))
            rows.append([gold, answer, right, *verdicts(gold, answer, minerva, hendrycks, verify, parse)])
    if args.all:
        args.all.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Every shape of answer is kept at least once: plain numbers, of which there are most, less often.
    rng.shuffle(rows)
    plain = [row for row in rows if re.fullmatch(r"-?\d+", row[0])]
    other = [row for row in rows if not re.fullmatch(r"-?\d+", row[0])]
    chosen = sorted(plain[: COMMITTED // 4] + other[: COMMITTED - COMMITTED // 4], key=str)
    text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in chosen)
    (ROOT / "tests" / "fixtures" / "grade.json").write_text(f"[\n{text}\n]\n")
    print(f"{len(rows)} pairs, {len(chosen)} committed")


if __name__ == "__main__":
    main()
