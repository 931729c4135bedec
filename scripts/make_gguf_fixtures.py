"""Makes tests/fixtures/gguf: a model with one tensor of every format, and tokenizers with llama.cpp's ids.

    pip install gguf numpy safetensors tokenizers llama-cpp-python
    python scripts/make_gguf_fixtures.py

Everything is seeded; the expected values come from the `gguf` package (dequantization) and from llama.cpp
(token ids), not from this project.
"""

import json
from pathlib import Path

import gguf
import numpy as np
from llama_cpp import Llama
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from make_gguf_strings import STRINGS

OUT = Path(__file__).parent.parent / "tests" / "fixtures" / "gguf"

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FF, VOCAB = 256, 2, 1, 4, 8, 5
TYPES = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
# Where the half-precision scales lie in a K block.
K_SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}

HF_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}


def random_blocks(rng, kind, rows):
    """Rows of HIDDEN values stored as `kind`: real values where gguf can quantize, random bits elsewhere."""
    qtype = gguf.GGMLQuantizationType[kind]
    if kind not in K_SCALES:
        return gguf.quants.quantize(rng.normal(size=(rows, HIDDEN)).astype(np.float32), qtype)
    block, size = gguf.GGML_QUANT_SIZES[qtype]
    data = rng.integers(0, 256, (rows * HIDDEN // block, size), dtype=np.uint8)
    for at in K_SCALES[kind]:
        scale = rng.uniform(-0.1, 0.1, (len(data), 1)).astype(np.float16)
        data[:, at : at + 2] = scale.view(np.uint8)
    return data.reshape(rows, -1)


def to_hugging_face_order(array, heads):
    """The converter stores [pair][half]; Hugging Face has [half][pair]."""
    return array.reshape(heads, HEAD_DIM // 2, 2, -1).swapaxes(1, 2).reshape(array.shape)


def base_metadata(writer, layers):
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_model():
    rng = np.random.default_rng(7)
    layers = 3
    writer = gguf.GGUFWriter(OUT / "formats.gguf", "llama")
    base_metadata(writer, layers)
    expected = {}

    def add(name, hf_name, data, kind, heads=None):
        qtype = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, data, raw_dtype=qtype)
        values = np.asarray(gguf.quants.dequantize(data, qtype), dtype=np.float32)
        expected[hf_name] = values if heads is None else np.ascontiguousarray(to_hugging_face_order(values, heads))

    def f32(*shape):
        return rng.normal(size=shape).astype(np.float32)

    kinds = iter(TYPES * 2)
    add("token_embd.weight", "model.embed_tokens.weight", random_blocks(rng, "Q8_0", VOCAB), "Q8_0")
    add("output_norm.weight", "model.norm.weight", f32(HIDDEN), "F32")
    for layer in range(layers):
        shapes = {"attn_q": HEADS * HEAD_DIM, "attn_k": KV_HEADS * HEAD_DIM, "attn_v": KV_HEADS * HEAD_DIM, "ffn_gate": FF, "ffn_up": FF}
        for part, rows in shapes.items():
            kind = next(kinds)
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(part)
            hf_name = f"model.layers.{layer}.{HF_NAMES[part]}.weight"
            add(f"blk.{layer}.{part}.weight", hf_name, random_blocks(rng, kind, rows), kind, heads)
        for part, shape in {"attn_output": (HIDDEN, HEADS * HEAD_DIM), "ffn_down": (HIDDEN, FF), "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)}.items():
            add(f"blk.{layer}.{part}.weight", f"model.layers.{layer}.{HF_NAMES[part]}.weight", f32(*shape), "F32")
    finish(writer)
    save_file(expected, OUT / "formats.safetensors")


TEXT = (
    "The quick brown fox jumps over the lazy dog. She said: it's 1234567 o'clock, isn't it? "
    "On-policy distillation lets a student write while its teacher grades every token. "
    "In 2024, 31 people paid $5.99 for 12 cafés; naïve façades cost €100,000. "
    "def f(x):\n    return x + 1\n\nfor i in range(10):\n\tprint(i)\n "
) * 3

PRE = ["gpt-2", "smollm", "qwen2", "llama-bpe", "default"]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<tool>", "</tool>"]


def write_tokenizer(path, model, tokens, types, **keys):
    writer = gguf.GGUFWriter(path, "llama")
    base_metadata(writer, 1)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for key, value in keys.items():
        getattr(writer, f"add_{key}")(value)
    finish(writer)


def llama_cpp_ids(path, add_special):
    model = Llama(str(path), vocab_only=True, verbose=False)
    return [model.tokenize(s.encode(), add_bos=add_special, special=True) for s in STRINGS]


def make_byte_level():
    """One vocabulary under every pre-tokenizer."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    tokens = CONTROL + pieces + USER_DEFINED + ["[PAD0]", "[PAD1]"]
    kind = gguf.TokenType
    types = [kind.CONTROL] * len(CONTROL) + [kind.NORMAL] * len(pieces) + [kind.USER_DEFINED] * len(USER_DEFINED) + [kind.UNUSED] * 2
    merges = [" ".join(m) for m in model["merges"]]
    ids = {}
    for pre in PRE:
        path = OUT / f"bpe-{pre}.gguf"
        write_tokenizer(
            path, "gpt2", tokens, types, tokenizer_pre=pre, token_merges=merges, bos_token_id=1, eos_token_id=2,
            add_bos_token=pre == "llama-bpe", chat_template="{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
        )
        ids[path.name] = llama_cpp_ids(path, True)
    return ids


def make_sentencepiece():
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.decoder = decoders.Metaspace()
    words = TEXT.split(" ")
    trained.train_from_iterator(["▁" + w for w in words], trainers.BpeTrainer(vocab_size=220, show_progress=False))
    vocab = json.loads(trained.to_str())["model"]["vocab"]
    pieces = [p for p in sorted(vocab, key=vocab.get) if p != "<unk>"]
    single = [p for p in pieces if len(p) == 1]
    longer = [p for p in pieces if len(p) > 1]
    kind = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + longer + single
    types = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL] + [kind.BYTE] * 256 + [kind.NORMAL] * (len(longer) + len(single))
    scores = [0.0] * 259 + [float(-i) for i in range(len(longer))] + [-1e4] * len(single)
    path = OUT / "spm.gguf"
    write_tokenizer(
        path, "llama", tokens, types, token_scores=scores, bos_token_id=1, eos_token_id=2, unk_token_id=0, add_bos_token=True,
    )
    return {path.name: llama_cpp_ids(path, True)}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    make_model()
    ids = {**make_byte_level(), **make_sentencepiece()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(rows)}" for name, rows in ids.items())
    strings = json.dumps(STRINGS, ensure_ascii=True, indent=2)
    (OUT / "token_ids.json").write_text(f'{{"strings": {strings},\n"ids": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main()
