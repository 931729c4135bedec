"""Data sets as the hub keeps them in Parquet, a few rows each, and what lm-evaluation-harness asks of them: tests/fixtures/hub/.

Rows are made up, in the columns of the data sets that its tasks name; what differs between them and the tasks' files is in them
(brackets and titles of hellaswag, letters and digits as labels, spaces around keys, a gap in the middle). asked.json holds, by task
and row, the requests that the library builds, [[prompt, continuation or null], ...], and the right one of several choices.

usage: make_hub_fixtures.py        needs: lm_eval[math]==0.4.13, pyarrow
"""
import json
import pathlib
import shutil

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "hub"
LETTERS = {"text": ["lava", "ice", "two words"], "label": ["A", "B", "C"]}
DIGITS = {"text": ["a", "b", "c", "d"], "label": ["1", "2", "3", "4"]}
EXAM = {"question": " Which is even? ", "subject": "astronomy", "choices": ["1", "2", "3", "5"], "answer": 1}
SETS = {
    "openai/gsm8k/main/test": [{"question": "How many?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}],
    "openai/gsm8k/main/train": [{"question": f"How many {n}s?", "answer": f"#### {n}"} for n in range(6)],
    "HuggingFaceH4/MATH-500/default/test": [{
        "problem": "What is $1+1$?", "solution": "It is $\\boxed{2}$.", "answer": "2", "subject": "Algebra", "level": 1, "unique_id": "a"}],
    "openai/openai_humaneval/openai_humaneval/test": [{
        "task_id": "a", "prompt": "def one():\n", "canonical_solution": "    return 1\n", "test": "def check(f):\n    assert f() == 1\n",
        "entry_point": "one"}],
    "Maxwell-Jia/AIME_2024/default/train": [{"ID": "2024-I-1", "Problem": "Find $x$.", "Solution": "It is 25.", "Answer": 25}],
    "allenai/ai2_arc/ARC-Easy/test": [
        {"id": "a", "question": "What is hot?", "choices": LETTERS, "answerKey": "A"},
        {"id": "b", "question": "Which one?", "choices": DIGITS, "answerKey": "3"}],
    "allenai/ai2_arc/ARC-Challenge/test": [{"id": "c", "question": "What is cold?", "choices": LETTERS, "answerKey": "B"}],
    "allenai/openbookqa/main/test": [{"id": "d", "question_stem": "Heat comes from", "choices": LETTERS, "answerKey": " A"}],
    "Rowan/hellaswag/default/validation": [
        {"ind": 1, "activity_label": "Baking", "ctx_a": "A man [substeps] bakes.  He", "ctx_b": "the Oven [title] is HOT",
         "ctx": "unused", "endings": ["burns. [title] Out [step] now.", " waits", "[header] ends  here", "sings"], "label": "2"},
        {"ind": 2, "activity_label": "Élan", "ctx_a": "She runs.", "ctx_b": "", "ctx": "unused", "endings": ["a", "b", "c", "d"], "label": "0"}],
    "baber/piqa/default/validation": [{"goal": "Open a jar", "sol1": "twist it", "sol2": "eat it", "label": 0}],
    "allenai/winogrande/winogrande_xl/validation": [
        {"sentence": "Ann beat Eve since _ was  faster. ", "option1": "Ann", "option2": "Eve", "answer": "1"}],
    "aps/super_glue/boolq/validation": [{"question": "is it hot", "passage": "Lava is hot.", "idx": 0, "label": 1}],
    "EleutherAI/lambada_openai/default/test": [{"text": "She saw the  old dog"}],
    "EleutherAI/wikitext_document_level/wikitext-2-raw-v1/test": [{"page": " = Dog = \n \n The dog 's 1 @,@ 000 bones , all . \n"}],
    "cais/mmlu/astronomy/test": [EXAM],
    "cais/mmlu/astronomy/dev": [EXAM] * 5,
}
TASKS = {
    "gsm8k": "gsm8k", "minerva_math500": "minerva_math500", "aime24": "aime24", "arc_easy": "arc_easy", "arc_challenge": "arc_challenge",
    "openbookqa": "openbookqa", "hellaswag": "hellaswag", "piqa": "piqa", "winogrande": "winogrande", "boolq": "boolq",
    "lambada": "lambada_openai", "wikitext": "wikitext", "mmlu_astronomy": "mmlu_astronomy",
}


def load(path, name=None, **_):
    """Stands for `datasets.load_dataset`: the files written here; splits that the library opens and does not ask are like the others."""
    folder = OUT / path / (name or "default")
    files = {split.name: str(split / "0000.parquet") for split in folder.iterdir()}
    files = {split: next(iter(files.values())) for split in ("train", "validation", "test")} | files
    return DOWNLOADED("parquet", data_files=files)


DOWNLOADED = datasets.load_dataset


def asked(task):
    def row(doc):
        context = task.fewshot_context(doc, 0)
        made = task.construct_requests(doc, context, metadata=(task.config.task, 0, 1))
        made = made if isinstance(made, list) else [made]
        requests = [[*map(str, r.arguments[:2])] if r.request_type == "loglikelihood" else [r.arguments[0], None] for r in made]
        if task.OUTPUT_TYPE != "multiple_choice":
            return {"requests": requests, "gold": None}
        # Where contexts are chosen from, the library has the index in place of the text.
        index = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        return {"requests": requests, "gold": task.doc_to_choice(doc)[int(index)]}
    return [row(doc) for doc in task.eval_docs]


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    for place, rows in SETS.items():
        folder = OUT / place
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "0000.parquet", compression="snappy")
    datasets.load_dataset = load
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    told = {}
    for name, theirs in TASKS.items():
        loaded = manager.load_task_or_group([theirs])
        while isinstance(loaded, dict):
            loaded = next(iter(loaded.values()))
        told[name] = asked(loaded)
    (OUT / "asked.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


main()
