"""all-MiniLM-L6-v2 in f32: our engine beside onnxruntime, from text to direction, A B A B in one run.

usage: embed.py MODEL_FOLDER BENCH [--threads 2] [--pairs 5] [--seconds 2] [--onnx FILE]
MODEL_FOLDER has the published config.json, model.safetensors and tokenizer.json; BENCH is the built bench `embed`
(target/release/deps/embed-*). Needs onnxruntime, tokenizers and numpy; torch and transformers too where FILE is absent."""

import argparse
import os
import statistics
import subprocess
import time

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("bench")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--pairs", type=int, default=5)
parser.add_argument("--seconds", type=float, default=2.0)
parser.add_argument("--onnx", default="minilm.onnx")
args = parser.parse_args()
os.environ.update(OMP_NUM_THREADS=str(args.threads), TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

WORDS = "The committee met on Tuesday to review the plan for repairing the old stone bridge over the river before winter".split()
ROWS = [(tokens, batch) for tokens in (20, 128) for batch in (1, 8, 32, 128)]


def export(path):
    import torch
    from transformers import AutoModel

    class Sentence(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = AutoModel.from_pretrained(args.model, attn_implementation="eager").eval()

        def forward(self, ids, mask, types):
            hidden = self.network(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)

    ids = torch.ones(2, 16, dtype=torch.long)
    axes = {"ids": {0: "b", 1: "s"}, "mask": {0: "b", 1: "s"}, "types": {0: "b", 1: "s"}, "out": {0: "b"}}
    torch.onnx.export(Sentence(), (ids, ids, ids * 0), path, input_names=["ids", "mask", "types"], output_names=["out"],
                      dynamic_axes=axes, opset_version=17, dynamo=False)


def text(words, n):
    return " ".join([str(n % 10)] + [WORDS[(n + word) % len(WORDS)] for word in range(words)])


if not os.path.exists(args.onnx):
    export(args.onnx)
tokenizer = Tokenizer.from_file(args.model + "/tokenizer.json")
tokenizer.enable_padding()
tokenizer.enable_truncation(256)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = args.threads
session = onnxruntime.InferenceSession(args.onnx, options, providers=["CPUExecutionProvider"])


def peer(texts):
    encoded = tokenizer.encode_batch(texts)
    columns = {"ids": "ids", "mask": "attention_mask", "types": "type_ids"}
    feed = {name: np.array([getattr(one, column) for one in encoded], dtype=np.int64) for name, column in columns.items()}
    return session.run(None, feed)[0]


def theirs(length, batch):
    words = next(words for words in range(length, 0, -1) if sum(tokenizer.encode(text(words, 0)).attention_mask) <= length)
    texts = [text(words, n) for n in range(128)]
    peer(texts[:batch])
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < args.seconds:
        peer([texts[(done + n) % 128] for n in range(batch)])
        done += batch
    return done / (time.perf_counter() - start)


def ours(length, batch):
    environment = dict(os.environ, FLOTILLA_BENCH_THREADS=str(args.threads))
    command = [args.bench, str(length), str(batch), str(args.seconds)]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


print(f"onnxruntime {onnxruntime.__version__}, {args.threads} threads, medians of {args.pairs} pairs, sentences/s")
print("tokens  batch     ours   theirs  ratio")
for length, batch in ROWS:
    pairs = [(ours(length, batch), theirs(length, batch)) for _ in range(args.pairs)]
    ratio = statistics.median(a / b for a, b in pairs)
    a, b = (statistics.median(column) for column in zip(*pairs))
    print(f"{length:6} {batch:6} {a:8.1f} {b:8.1f} {ratio:6.2f}", flush=True)
