#!/usr/bin/env python3
"""Fixtures of the mathematics graders, made with lm-eval 0.4.13, sympy 1.14.0, antlr4-python3-runtime 4.11.0 and
math-verify 0.9.0.

    pip install lm-eval==0.4.13 sympy==1.14.0 antlr4-python3-runtime==4.11 math-verify==0.9.0
    scripts/make_grade_fixtures.py --data DATA [--all ALL.jsonl]

Every gold answer of math500 meets right and wrong variants of itself and answers of its neighbours. For each pair the
program writes what minerva_math's, hendrycks_math's and math_verify's code says. A row is the list gold, answer, right
(1, 0, or null where the variant may be either), minerva's normal forms of both, then the three verdicts. A sample of the
rows is committed as tests/fixtures/grade.json; --all writes every row, one a line, for the ignored test.

tests/fixtures/responses.json has whole responses to gsm8k, gsm8k_cot, aime24 and minerva_math500: units, commas, signs, LaTeX,
trailing text, several boxes. A row is the list task, gold, response, then what the library reads by each of the task's
filters and whether that is right.
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


# What an answer may look like; GOLD stands for the right one.
SHAPES = [
    "GOLD", "GOLD.", " GOLD \n", "$GOLD", "GOLD dollars", "GOLD%", "-GOLD", "+GOLD", "GOLD.0", "GOLD.00", "0GOLD", "GOLD,000",
    "\u2212GOLD", "GOLD km/h", "GOLD and 7", "7 and GOLD", "GOLD = 7", "7 = GOLD", "**GOLD**", "(GOLD)", "\"GOLD\"", "GOLD\n\n7 more",
    "GOLD...", "...", ",", "$", "$$", "GOLD, 7", "GOLD,7", "GOLD-7", "7-GOLD", "1e3", "GOLD 000", "G O L D", "\uff11\uff12", "-", "-$GOLD",
    "$-GOLD", "$GOLD$", "$$GOLD$$", "\\$GOLD", "\\$GOLD\\$", "\\(GOLD\\)", "\\text{GOLD}", "GOLD\\%", "GOLD\\text{ cm}", "GOLD^\\circ",
    "\\frac{GOLD}{1}", "x = GOLD", "x=GOLD", "xyz = GOLD", "\\boxed{GOLD}", "\\boxed{GOLD}.", "\\boxed{7} \\boxed{GOLD}", "\\boxed{GOLD} or 7",
    "\\boxed{GOLD} \\boxed{7}", "\\boxed GOLD", "\\boxed GOLD$ or", "\\boxed{{GOLD}}", "\\boxed{\\text{GOLD}}", "\\boxed{GOLD", "\\boxed{}",
    "\\fbox{GOLD}", "\\fbox{7} \\boxed{GOLD}", "\\boxed{7} \\fbox{GOLD}", "$\\boxed{GOLD}$ and $7$", "$7$ \\boxed{GOLD}", "\\boxed{GOLD \\text{ cm}}",
    "\\boxed{x = GOLD}", "\\boxed}{GOLD}", "$GOLD$ or $7$", "$GOLD", "a $7$ b $GOLD$", "\\textbf{GOLD}", "GOLD\\,", "\\;GOLD", "\\left(GOLD\\right)", "",
]
# How a response may end in an answer; each task's own way is among them.
FRAMES = [
    "#### ANSWER", "So it is 5.\n#### ANSWER\n", "####ANSWER", "#### 7\n#### ANSWER", "#### ANSWER\n#### 7", "The answer is ANSWER.", "The answer is ANSWER",
    "The answer is 7. The answer is ANSWER.", "the answer is ANSWER.", "The answer is\nANSWER.", "ANSWER", "It is ANSWER, I think",
    "Final Answer: The final answer is ANSWER. I hope it is correct.", "Final Answer: The final answer is $ANSWER$. I hope it is correct.",
    "Final Answer: The final answer is ANSWER. ", "Final Answer: The final answer is ANSWER.",
    "Final Answer: The final answer is ANSWER. I hope it is correct.\nFinal Answer: The final answer is 7. I hope it is correct.",
]
SHOWN = 900


def number_filters(strict):
    """gsm8k's filters, as its YAML configures them."""
    from lm_eval.filters.extraction import RegexFilter
    return [("strict-match", RegexFilter(strict)), ("flexible-extract", RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1))]


def graded(task, gold, response, minerva, aime):
    """What the library reads, and whether it is right: a pair for each filter."""
    if task == "aime24":
        answer = aime.process_results({"answer": gold}, [response])["exact_match"]
        return [["none", None, answer]]
    if task == "minerva_math500":
        read = minerva.normalize_final_answer(minerva.get_unnormalized_answer(response))
        return [["none", read, int(minerva.is_equiv(read, minerva.normalize_final_answer(gold)))]]
    from lm_eval.api.metrics import exact_match_hf_evaluate
    out = []
    strict = r"#### (\-?[0-9\.\,]+)" if task == "gsm8k" else r"The answer is (\-?[0-9\.\,]+)."
    for name, reader in number_filters(strict):
        read = list(reader.apply([[response]], [{}]))[0][0]
        ignored = [",", "\\$", "(?s).*#### ", "\\.$"]
        right = exact_match_hf_evaluate([read], [gold], regexes_to_ignore=ignored, ignore_case=True)["exact_match"]
        out.append([name, read, int(right)])
    return out


def responses(rng, minerva):
    """Whole responses beside what the library makes of them."""
    aime = task_module("aime")
    golds = {"gsm8k": ["So 12.\n#### 12", "#### 1,013", "#### -3"], "gsm8k_cot": ["12", "1,013", "-3"], "aime24": ["12", "204"],
             "minerva_math500": ["12", "1013", "\\frac{1}{2}", "x^2+1", "(2,5]"]}
    rows, one_of_each = [], []
    for task, answers in golds.items():
        for gold in answers:
            bare = gold.split("#### ")[-1]
            for shape in SHAPES:
                for frame in FRAMES:
                    response = frame.replace("ANSWER", shape.replace("GOLD", bare))
                    row = [task, gold, response, *graded(task, gold, response, minerva, aime)]
                    (one_of_each if (shape == "GOLD" or frame == "ANSWER") and gold == answers[0] else rows).append(row)
    chosen = sorted(one_of_each + rng.sample(rows, SHOWN - len(one_of_each)), key=str)
    text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in chosen)
    (ROOT / "tests" / "fixtures" / "responses.json").write_text(f"[\n{text}\n]\n")
    print(f"{len(rows) + len(one_of_each)} responses, {len(chosen)} committed")


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
    responses(random.Random(1234), minerva)


if __name__ == "__main__":
    main()
