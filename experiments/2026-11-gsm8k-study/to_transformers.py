"""A GGUF file as two folders that transformers and arle read in bf16: the teacher, and with --layers the student, FOLDER-student.

With --influence it prints instead how much each layer changes what passes through it on gsm8k's training questions (block
influence: 1 - cosine of its input and output, https://arxiv.org/abs/2403.03853), and the layers that stay when so many go.

usage: to_transformers.py MODEL.gguf FOLDER [--layers 0,1,...] [--influence DATA --drop 7]
needs: torch, transformers, gguf
"""
import argparse
import concurrent.futures
import functools
import json
import pathlib

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("gguf", type=pathlib.Path)
    p.add_argument("folder", type=pathlib.Path)
    p.add_argument("--layers", default="")
    p.add_argument("--influence", type=pathlib.Path)
    p.add_argument("--drop", type=int, default=7)
    return p.parse_args()


def influence(model, tokenizer, data, drop):
    rows = [json.loads(line) for line in (data / "gsm8k" / "train.jsonl").read_text().splitlines()[:8]]
    sums = torch.zeros(model.config.num_hidden_layers)
    for row in rows:
        messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"].to(model.device)
        seen = []
        hooks = [layer.register_forward_hook(lambda _, x, y: seen.append((x[0], y[0] if isinstance(y, tuple) else y))) for layer in model.model.layers]
        with torch.no_grad():
            model(ids)
        for hook in hooks:
            hook.remove()
        sums += torch.tensor([1 - torch.cosine_similarity(x.float(), y.float(), dim=-1).mean().item() for x, y in seen])
    scores = (sums / len(rows)).tolist()
    gone = set(sorted(range(len(scores)), key=scores.__getitem__)[:drop])
    print(" ".join(f"{i}:{score:.3f}" for i, score in enumerate(scores)))
    print(",".join(str(i) for i in range(len(scores)) if i not in gone))


def main():
    a = parse()
    # transformers reads the whole file for each of configuration, tokenizer and weights.
    gguf.GGUFReader = functools.cache(gguf.GGUFReader)
    load = {"gguf_file": a.gguf.name, "dtype": torch.bfloat16}
    tokenizer = AutoTokenizer.from_pretrained(a.gguf.parent, gguf_file=a.gguf.name)
    tensors = gguf.GGUFReader(str(a.gguf)).tensors
    with concurrent.futures.ThreadPoolExecutor() as pool:
        # transformers decodes one tensor after another, in this order.
        plain = pool.map(gguf.dequantize, *zip(*((tensor.data, tensor.tensor_type) for tensor in tensors)))
        gguf.dequantize = lambda *_: next(plain)
        model = AutoModelForCausalLM.from_pretrained(a.gguf.parent, **load)
    if a.influence:
        influence(model.cuda() if torch.cuda.is_available() else model, tokenizer, a.influence, a.drop)
        return
    # The weights are plain by now, but transformers remembers where they came from and would not save them.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(a.folder)
    tokenizer.save_pretrained(a.folder)
    if a.layers:
        kept = [int(i) for i in a.layers.split(",")]
        model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in kept)
        model.config.num_hidden_layers = len(kept)
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = [model.config.layer_types[i] for i in kept]
        for index, layer in enumerate(model.model.layers):
            layer.self_attn.layer_idx = index
        model.save_pretrained(f"{a.folder}-student")
        tokenizer.save_pretrained(f"{a.folder}-student")


main()
