"""The model of the whole-program tests: tests/fixtures/tiny-chat/.

A Hugging Face directory with all parts of a real one: a two-layer llama with random weights, a byte-level BPE
tokenizer of 300 tokens trained on the sentences below, a chat template, end-of-sequence ids.

usage: make_program_fixture.py        needs: torch, transformers, tokenizers
"""
import json
import shutil

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fixture_io import FIXTURES, use_one_thread

OUT = FIXTURES / "tiny-chat"
SPECIAL = ["<|end|>", "<|start|>"]
SENTENCES = [
    "Why is the sky blue?", "Because air scatters blue light more than red light.", "What is the capital of Spain?",
    "The capital of Spain is Madrid.", "Answer in one short sentence.", "You are a helpful assistant.",
    "Tell me about the sea and the stars.", "system user assistant", "How do I make tea? Boil water and wait.",
]
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def tokenizer():
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", chat_template=TEMPLATE)


def main():
    use_one_thread()
    shutil.rmtree(OUT, ignore_errors=True)
    words = tokenizer()
    words.save_pretrained(OUT)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=words.eos_token_id, pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "norm" not in name:
                weight.copy_(0.15 * torch.randn(weight.shape, generator=generator))
    model.to(torch.float32).save_pretrained(OUT)
    size = sum(file.stat().st_size for file in OUT.iterdir())
    print(json.dumps({"vocabulary": len(words), "bytes": size, "files": sorted(file.name for file in OUT.iterdir())}))


if __name__ == "__main__":
    main()
