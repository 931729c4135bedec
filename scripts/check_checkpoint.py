"""Reads a model folder and a checkpoint that ARLE wrote of it in transformers, and compares everything but the weights.

usage: check_checkpoint.py DIR_SOURCE DIR_CHECKPOINT

AutoTokenizer (its backend, special tokens, added tokens, chat templates, ids of some texts), GenerationConfig and AutoConfig
have to be equal; of the configuration the type of the weights may differ. The checkpoint has to load as a model whose weights
have the type that its configuration says.
Exit code 0: equal. 1: different, with what differs.        needs: torch, transformers
"""
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

TEXTS = ["Hello world", " it's 12345\n\n", "naïve façade — 日本語 😀", "<|im_start|>user\nhi<|im_end|>", "<s>a</s>"]
# What may differ: where it was read from, and the type of the weights.
OTHERS = {"_name_or_path", "name_or_path", "dtype", "torch_dtype", "transformers_version"}


def tokenizer(path):
    t = AutoTokenizer.from_pretrained(path)
    return {
        "class": type(t).__name__,
        "backend": t.backend_tokenizer.to_str(),
        "special tokens": t.special_tokens_map,
        "extra special tokens": t.extra_special_tokens,
        "added tokens": {i: repr(token) for i, token in t.added_tokens_decoder.items()},
        "chat template": t.chat_template,
        "model_max_length": t.model_max_length,
        "sides": (t.padding_side, t.truncation_side),
        "settings": {k: repr(v) for k, v in t.init_kwargs.items() if k not in OTHERS and not k.endswith("_file")},
        "ids": [t(text).input_ids for text in TEXTS],
        "texts": [t.decode(t(text).input_ids, skip_special_tokens=True) for text in TEXTS],
    }


def generation(path):
    return {k: v for k, v in GenerationConfig.from_pretrained(path).to_dict().items() if k not in OTHERS}


def config(path):
    return {k: v for k, v in AutoConfig.from_pretrained(path).to_dict().items() if k not in OTHERS}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    source, checkpoint = sys.argv[1:]
    different = []
    for name, read in [("tokenizer", tokenizer), ("generation", generation), ("config", config)]:
        try:
            want = read(source)
        except OSError:
            print(f"{name}: the source has none")
            continue
        got = read(checkpoint)
        different += [f"{name}: {k}: {want.get(k)!r:.300} became {got.get(k)!r:.300}"
                      for k in want.keys() | got.keys() if want.get(k) != got.get(k)]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    said = AutoConfig.from_pretrained(checkpoint).dtype
    if said is not None and {p.dtype for p in model.parameters()} != {said}:
        different.append(f"weights: {({p.dtype for p in model.parameters()})}, the configuration says {said}")
    print("\n".join(different) or f"equal; weights {next(model.parameters()).dtype}".replace("torch.", ""))
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
