#!/usr/bin/env python3
"""Makes the files of this folder anew with llama.cpp: make.py MODEL.gguf [WORK]. README.md says what they are.

Needs `pip install cffi numpy gguf llama-cpp-py-sync==0.11548 xllamacpp==2026.10.11549`: the declarations of llama.cpp's C
interface are of the first, its code of the second, one commit apart. The expansion to F32 is that of the package gguf.
"""

import json
import os
import pathlib
import struct
import sys
import tempfile

import gguf
import numpy as np
import xllamacpp
from llama_cpp_py_sync._cffi_bindings import ffi

POSITIONS, LISTED, GREEDY, CHUNK = 1024, 8, 32, 256
HERE = pathlib.Path(__file__).parent
TEXTS = HERE.parent / "smollm2"
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "1, 2, 3, 4, 5,",
    "Die Hauptstadt von Deutschland ist",
    "Water boils at",
    "<h1>Recipes</h1>\n\n<ul>\n  <li>",
    "日本の首都は",
]
TOKENISED = [
    "", " ", "  ", "a", " a", "a ", "Hello, world!", " Hello  world ", "\n", "\n\n\nx\n", "\t\tif x:\n\t\t\treturn 1\n",
    "a" * 50, "x" + " " * 40 + "y", "\n" * 70, "日本語とﾊﾝｶｸ", "😀👩‍👩‍👧‍👦 naïve café", "\u0000\u0001\u007f", "\u2581 a\u2581b",
    "<h1>Title</h1> <b>bold</b></body>", "<start_of_image>[multimodal]", "ﷺ 𝔘𝔫𝔦 𒀀 \U0010fffd", "don't I'LL 12345 3.14159",
    "\u00a0\u3000\u200b", "é e\u0301 가\u1100\u1161", "if(a<b&&c>>d){e=f[g];}//h\r\n", "[toxicity=0] <table><tr><td>",
    "unused <unused 1> un<used", "Ωμέγα привет мир שלום مرحبا नमस्ते สวัสดี",
]

lib = ffi.dlopen(str(next(pathlib.Path(xllamacpp.__path__[0]).glob("xllamacpp*.so"))))


def expand(quantised, exact):
    """Writes the same model with all tensors in F32."""
    reader = gguf.GGUFReader(quantised)
    writer = gguf.GGUFWriter(exact, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(path):
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    assert model != ffi.NULL, path
    return model


def tokenise(model, text, special=False, begin=True):
    data = text.encode()
    ids = ffi.new("llama_token[]", len(data) + 8)
    n = lib.llama_tokenize(lib.llama_model_get_vocab(model), data, len(data), ids, len(ids), begin, special)
    assert n >= 0
    return list(ids[0:n])


def context(model):
    """A cache in F32 and plain attention."""
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 2048, CHUNK, CHUNK
    params.n_threads = params.n_threads_batch = int(os.environ.get("THREADS", "2"))
    params.type_k = params.type_v = lib.GGML_TYPE_F32
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    made = lib.llama_init_from_model(model, params)
    assert made != ffi.NULL
    return made


def feed(ctx, ids, first, every):
    batch = lib.llama_batch_init(len(ids), 0, 1)
    for at, token in enumerate(ids):
        batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0] = token, first + at, 1, 0
        batch.logits[at] = every or at + 1 == len(ids)
    batch.n_tokens = len(ids)
    assert lib.llama_decode(ctx, batch) == 0
    lib.llama_batch_free(batch)


def logits(ctx, at, vocabulary):
    return np.frombuffer(ffi.buffer(lib.llama_get_logits_ith(ctx, at), 4 * vocabulary), dtype=np.float32)


def log_probabilities(row):
    row = row.astype(np.float64)
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def text(model, name, vocabulary):
    ids = tokenise(model, (TEXTS / f"{name}.txt").read_text())
    assert len(ids) > POSITIONS, name
    ids = ids[: POSITIONS + 1]
    ctx = context(model)
    following, listed, listed_ids = [], [], []
    for first in range(0, POSITIONS, CHUNK):
        feed(ctx, ids[first : first + CHUNK], first, True)
        for at in range(CHUNK):
            found = logits(ctx, at, vocabulary)
            order = np.argpartition(-found, LISTED)[:LISTED]
            order = order[np.lexsort((order, -found[order]))]
            likely = log_probabilities(found)
            following.append(likely[ids[first + at + 1]])
            listed.append(likely[order])
            listed_ids.append(order)
    lib.llama_free(ctx)
    head = b"FREG" + struct.pack("<5I", 1, len(ids), POSITIONS, LISTED, vocabulary)
    body = [np.array(following, "<f4"), np.array(listed, "<f4"), np.array(listed_ids, "<u4"), np.array(ids, "<u4")]
    (HERE / f"{name}.bin").write_bytes(head + b"".join(part.tobytes() for part in body))
    print(name, "perplexity", float(np.exp(-np.mean(following))), flush=True)


def greedy(model, prompt, vocabulary):
    vocab = lib.llama_model_get_vocab(model)
    prompt_ids = tokenise(model, prompt)
    ctx, output, margins = context(model), [], []
    feed(ctx, prompt_ids, 0, False)
    while len(output) < GREEDY:
        found = logits(ctx, -1, vocabulary)
        two = np.partition(found, -2)[-2:]
        margins.append(round(float(two[1] - two[0]), 6))
        token = int(np.argmax(found))
        if lib.llama_vocab_is_eog(vocab, token):
            break
        output.append(token)
        feed(ctx, [token], len(prompt_ids) + len(output) - 1, False)
    lib.llama_free(ctx)
    finish = "length" if len(output) == GREEDY else "stop"
    return {"prompt": prompt, "prompt_ids": prompt_ids, "output_ids": output, "finish": finish, "margins": margins}


def main():
    lib.llama_backend_init()
    quantised = pathlib.Path(sys.argv[1])
    work = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
    exact = work / "f32.gguf"
    if not exact.exists():
        expand(quantised, exact)
    model = load(exact)
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    cases = [{"text": t, "plain": tokenise(model, t, begin=False)} for t in TOKENISED]
    cases += [{"text": (TEXTS / f"{n}.txt").read_text(), "plain": tokenise(model, (TEXTS / f"{n}.txt").read_text(), begin=False)}
              for n in ("mixed",)]
    (HERE / "tokens.json").write_text(json.dumps(cases, ensure_ascii=False) + "\n")
    answers = [greedy(model, prompt, vocabulary) for prompt in PROMPTS]
    (HERE / "greedy.json").write_text(json.dumps(answers, ensure_ascii=False, indent=0) + "\n")
    for name in ("prose", "code", "mixed"):
        text(model, name, vocabulary)


main()
