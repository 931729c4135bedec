"""llama.cpp as the peer of checks and benchmarks, through llama-cpp-python's low-level interface.

needs: llama-cpp-python (builds from source with pip; version 0.3.36 is what the figures were made with), numpy
"""
import ctypes
import pathlib
import tempfile

import llama_cpp as lib
import numpy as np

VERSION = lib.__version__
FILE_TYPES = {"f32": 0, "f16": 1}  # llama_ftype
F32 = 0  # ggml_type
CHUNK = 512  # tokens of one llama_decode call


@lib.llama_log_callback
def _silent(_level, _text, _data):
    pass


lib.llama_log_set(_silent, ctypes.c_void_p(0))
lib.llama_backend_init()


def convert(gguf, kind, folder=None):
    """The same model with all weights as f32 or f16, beside other temporary files; made once for each source file."""
    gguf = pathlib.Path(gguf)
    folder = pathlib.Path(folder or tempfile.gettempdir()) / "llamacpp-converted"
    folder.mkdir(exist_ok=True)
    out = folder / f"{gguf.stem}.{gguf.stat().st_size}.{kind}.gguf"
    if not out.exists():
        params = lib.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = FILE_TYPES[kind], True
        part = out.with_suffix(".part")
        if lib.llama_model_quantize(str(gguf).encode(), str(part).encode(), ctypes.byref(params)) != 0:
            raise RuntimeError(f"llama.cpp cannot convert {gguf} to {kind}")
        part.rename(out)
    return out


class Model:
    """A model and one context. `exact` computes in f32 throughout: no f16 cache, no flash attention."""

    def __init__(self, gguf, threads, sequences=1, context=2048, exact=False):
        self.model = lib.llama_model_load_from_file(str(gguf).encode(), lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {gguf}")
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.vocab_size = lib.llama_vocab_n_tokens(self.vocab)
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = context * sequences, sequences
        params.n_batch, params.n_ubatch = max(CHUNK, 2048), CHUNK
        params.n_threads = params.n_threads_batch = threads
        if exact:
            params.type_k = params.type_v = F32
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context for {gguf}")
        self.batch = lib.llama_batch_init(params.n_batch, 0, sequences)

    def close(self):
        lib.llama_batch_free(self.batch)
        lib.llama_free(self.context)
        lib.llama_model_free(self.model)

    def tokenize(self, text, special=False):
        """Ids of a text; `special` makes tokens of control words such as <|im_start|>. Nothing is put before it."""
        raw = text.encode()
        buffer = (lib.llama_token * (len(raw) + 8))()
        n = lib.llama_tokenize(self.vocab, raw, len(raw), buffer, len(buffer), False, special)
        if n < 0:
            raise RuntimeError(f"llama.cpp wants {-n} tokens for {len(raw)} bytes")
        return list(buffer[:n])

    def clear(self):
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)

    def decode(self, items):
        """One forward pass over (id, position, sequence, want logits) items."""
        batch = self.batch
        batch.n_tokens = len(items)
        for i, (token, position, sequence, wanted) in enumerate(items):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        status = lib.llama_decode(self.context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode gave {status} for {len(items)} tokens")

    def logits(self, row):
        """Logits of the `row`-th item of the last decode, in f64."""
        pointer = lib.llama_get_logits_ith(self.context, row)
        return np.ctypeslib.as_array(pointer, (self.vocab_size,)).astype(np.float64)

    def logprobs(self, ids):
        """Natural log of each id given those before it; None for the first."""
        self.clear()
        out = [None]
        for start in range(0, len(ids), CHUNK):
            part = ids[start:start + CHUNK]
            self.decode([(t, start + i, 0, 1) for i, t in enumerate(part)])
            for i in range(min(len(part), len(ids) - start - 1)):
                row = self.logits(i)
                top = row.max()
                out.append(float(row[ids[start + i + 1]] - top - np.log(np.exp(row - top).sum())))
        return out

    def greedy(self, ids, count):
        """`count` greedy ids after a prompt, and for each how far it was ahead of the second best logit."""
        self.clear()
        self.decode([(t, i, 0, i == len(ids) - 1) for i, t in enumerate(ids)])
        row, new, ahead = self.logits(len(ids) - 1), [], []
        while True:
            second, best = np.partition(row, -2)[-2:]
            new.append(int(row.argmax()))
            ahead.append(float(best - second))
            if len(new) == count:
                return new, ahead
            self.decode([(new[-1], len(ids) + len(new) - 1, 0, 1)])
            row = self.logits(0)
