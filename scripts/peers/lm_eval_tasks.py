"""lm-evaluation-harness' tasks on the data that `arle eval` reads: YAML files beside the converted data.

Prompts, filters and metrics are the library's own; what differs is the data set's place and its fields' names. Functions
that the library's tasks call are copied out of it.
"""
import csv
import json
import re
import shutil
from pathlib import Path

SUBJECTS = ["abstract_algebra", "anatomy"]
CHOICE = "output_type: multiple_choice\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n"
LETTERS = 'doc_to_choice: ["A", "B", "C", "D"]\ndoc_to_target: answer\n'
# New tokens of an answer; the library's own numbers are 256, and 32768 for AIME.
NEW = 96
NUMBER = r"""
output_type: generate_until
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: false,
     regexes_to_ignore: [",", "\\$", "(?s).*#### ", "\\.$"]}
filter_list:
  - name: strict-match
    filter: [{function: regex, regex_pattern: "STRICT"}, {function: take_first}]
  - name: flexible-extract
    filter: [{function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)"}, {function: take_first}]
"""
GSM8K = NUMBER.replace("STRICT", r"#### (\\-?[0-9\\.\\,]+)") + r"""
training_split: train
fewshot_split: train
doc_to_text: "Question: {{question}}\nAnswer:"
doc_to_target: "{{answer}}"
"""
COT = NUMBER.replace("STRICT", r"The answer is (\\-?[0-9\\.\\,]+).") + r"""
doc_to_text: "Q: {{question}}\nA:"
doc_to_target: "{{answer.split('####')[-1].strip() if answer is defined else target}}"
"""
EXACT = "output_type: generate_until\nmetric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: true}\n"
STOP = '["Question:", "</s>", "<|im_end|>", "<|eot_id|>"]'


def generation(until, new):
    return f"generation_kwargs: {{until: {until}, do_sample: false, temperature: 0.0, max_gen_toks: {new}}}\n"


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_lines(path):
    return [json.loads(line) for line in open(path)]


def mmlu(data, folder, subject, split):
    with open(data / f"mmlu/{split}/{subject}_{split}.csv", newline="") as file:
        rows = [
            {"question": r["question"], "choices": [r[f"choice{i}"] for i in range(4)], "answer": int(r["answer"])}
            for r in csv.DictReader(file)
        ]
    return write_lines(folder / f"mmlu_{subject}_{split}.jsonl", rows)


def articles(data, folder):
    lines = (data / "wikitext2/test.txt").read_text().split("\n")
    blank = lambda i: i < 0 or i >= len(lines) or not lines[i].strip()
    starts = [i for i, l in enumerate(lines) if re.match(r"^ = (?!=).* = $", l) and blank(i - 1) and blank(i + 1)]
    pages = ["\n".join(lines[a:b]) for a, b in zip(starts, starts[1:] + [len(lines)])]
    return write_lines(folder / "wikitext.jsonl", [{"page": page} for page in pages])


def whole_answers(data, folder, name):
    """Answers as whole numbers, as the library's data set of AIME 2024 has them: `025` and `25.0` are 25."""
    rows = read_lines(data / f"{name}/test.jsonl")
    rows = [{"problem": row["problem"], "answer": str(int(float(row["answer"])))} for row in rows]
    return write_lines(folder / f"{name}.jsonl", rows)


class Writer:
    def __init__(self, data, folder, library, new):
        self.data, self.folder, self.library, self.new = data, folder, Path(library), new
        folder.mkdir(parents=True, exist_ok=True)

    def task(self, name, files, body):
        files = ", ".join(f'{split}: "{path}"' for split, path in files.items())
        text = f"task: local_{name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{{files}}}}}\ntest_split: test\n"
        (self.folder / f"{name}.yaml").write_text(text + body)

    def functions(self, path, name):
        """Copies a file of functions out of the library."""
        shutil.copy(self.library / "tasks" / path, self.folder / f"{name}.py")

    def choices(self):
        rows = lambda name: {"test": self.data / name}
        query = 'doc_to_text: "{{query}}\\nAnswer:"\ndoc_to_choice: choices\ndoc_to_target: gold\nfewshot_split: test\n'
        for name in ("arc_easy", "arc_challenge"):
            self.task(name, rows(f"{name}/{name}.jsonl"), CHOICE + query)
        # Its rows end with a line end.
        self.task("piqa", rows("piqa/piqa.jsonl"), CHOICE + query.replace("}}\\n", "}}"))
        stem = query.replace('"{{query}}\\nAnswer:"', "query")
        self.task("openbookqa", rows("openbookqa/openbook_qa.jsonl"), CHOICE + stem)
        # Its rows begin with `Passage: `, which the library does not ask. It reports acc only.
        passage = query.replace("{{query}}", "{{query[9:]}}").replace("choices", '["no", "yes"]')
        self.task("boolq", rows("boolq/boolq.jsonl"), CHOICE.replace(", {metric: acc_norm}", "") + passage)
        contexts = "doc_to_text: gold\ndoc_to_choice: context_options\ndoc_to_target: continuation\n"
        contexts += "fewshot_split: test\n"
        acc = "output_type: multiple_choice\nmetric_list: [{metric: acc}]\n"
        self.task("winogrande", rows("winogrande/winogrande.jsonl"), acc + contexts)
        ctx = 'doc_to_text: "{{ctx}}"\ndoc_to_choice: endings\ndoc_to_target: label\n'
        self.task("hellaswag", rows("hellaswag/val.jsonl"), CHOICE + ctx)

    def subjects(self):
        for subject in SUBJECTS:
            about = f'"The following are multiple choice questions (with answers) about {subject.replace("_", " ")}.\\n\\n"'
            lettered = "".join(f"{letter}. {{{{choices[{i}]}}}}\\n" for i, letter in enumerate("ABCD"))
            body = f"output_type: multiple_choice\nmetric_list: [{{metric: acc}}]\ndescription: {about}\n{LETTERS}"
            body += f'doc_to_text: "{{{{question.strip()}}}}\\n{lettered}Answer:"\n'
            body += "fewshot_split: dev\nfewshot_config: {sampler: first_n}\n"
            files = {split: mmlu(self.data, self.folder, subject, split) for split in ("dev", "test")}
            self.task(f"mmlu_{subject}", files, body)

    def texts(self):
        lambada = 'doc_to_text: "{{context}}"\ndoc_to_target: "{{\' \'+continuation}}"\noutput_type: loglikelihood\n'
        metrics = "metric_list: [{metric: perplexity, aggregation: perplexity}, {metric: acc, aggregation: mean}]\n"
        self.task("lambada", {"test": self.data / "lambada/lambada_openai.jsonl"}, lambada + metrics)
        self.functions("wikitext/preprocess_wikitext.py", "preprocess_wikitext")
        rolling = "output_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        rolling += "doc_to_target: !function preprocess_wikitext.wikitext_detokenizer\n"
        rolling += "process_results: !function preprocess_wikitext.process_results\n"
        rolling += "metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]\n"
        self.task("wikitext", {"test": articles(self.data, self.folder)}, rolling)

    def gsm8k(self):
        gsm8k = {split: self.data / f"gsm8k/{split}.jsonl" for split in ("train", "test")}
        self.task("gsm8k", gsm8k, GSM8K + generation('["Question:", "</s>", "<|im_end|>"]', self.new))

    def gsm8k_cot(self):
        # The eight examples are the library's, read out of its own file.
        own = (self.library / "tasks/gsm8k/gsm8k-cot.yaml").read_text()
        examples = own[own.index("fewshot_config:") : own.index("filter_list:")]
        cot = COT + examples + generation('["Q:", "</s>", "<|im_end|>"]', self.new)
        self.task("gsm8k_cot", {"test": self.data / "gsm8k/test.jsonl"}, cot)

    def mathematics(self):
        self.functions("aime/utils.py", "aime_utils")
        asked = 'doc_to_text: "Question: {{problem}}\\nAnswer:"\ndoc_to_target: answer\n'
        asked += "process_results: !function aime_utils.process_results\n"
        for name in ("aime24", "amc23"):
            rows = {"test": whole_answers(self.data, self.folder, name)}
            self.task(name, rows, EXACT + asked + generation(STOP, self.new))
        self.functions("minerva_math/utils.py", "minerva_utils")
        body = EXACT + "  - {metric: math_verify, aggregation: mean, higher_is_better: true}\n"
        for field in ("process_docs", "doc_to_text", "process_results"):
            body += f"{field}: !function minerva_utils.{field}\n"
        body += 'doc_to_target: "{{answer if few_shot is undefined else solution}}"\n'
        body += "fewshot_config: {sampler: first_n, samples: !function minerva_utils.list_fewshot_samples}\n"
        rows = [{key: row[key] for key in ("problem", "solution")} for row in read_lines(self.data / "math500/test.jsonl")]
        rows = write_lines(self.folder / "math500.jsonl", rows)
        self.task("minerva_math500", {"test": rows}, body + generation('["Problem:"]', self.new))


def write(data, folder, library, new=NEW):
    """Writes all tasks into `folder`, each as `local_NAME`; `library` is the installed package's folder."""
    writer = Writer(data, folder, library, new)
    writer.choices()
    writer.subjects()
    writer.texts()
    writer.gsm8k()
    writer.gsm8k_cot()
    writer.mathematics()
