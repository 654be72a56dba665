"""The peer of encoders: onnxruntime, over graphs made of the fleet's own model files. As a program, one measurement.

usage: encoders.py embed|embed-int8|pictures GRAPH THREADS BATCH [LENGTH TOKENIZER]"""

import os
import subprocess
import sys
import time

PEERS = os.path.abspath(".flotilla/peers")
MODELS = os.path.abspath(".flotilla/models")
MINILM = f"{MODELS}/all-minilm-l6-v2/all-minilm-l6-v2.f32.safetensors"
LITE0 = f"{MODELS}/efficientnet-lite0/efficientnet-lite0.f32.safetensors"
GRAPHS = {"embed": f"{PEERS}/minilm.onnx", "embed-int8": f"{PEERS}/minilm-int8.onnx", "pictures": f"{PEERS}/lite0.onnx"}
SECONDS = 3.0
# The same sentences as the bench `embed` has.
WORDS = "The committee met on Tuesday to review the plan for repairing the old stone bridge over the river before winter".split()

threads = 2


def prepare(count):
    """Makes the graphs, once."""
    global threads
    threads = count
    import onnx_models
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if not os.path.exists(GRAPHS["embed"]):
        onnx_models.bert(MINILM, GRAPHS["embed"])
    if not os.path.exists(GRAPHS["embed-int8"]):
        quantize_dynamic(GRAPHS["embed"], GRAPHS["embed-int8"], per_channel=True, weight_type=QuantType.QInt8)
    if not os.path.exists(GRAPHS["pictures"]):
        onnx_models.efficientnet(LITE0, GRAPHS["pictures"])


class Onnx:
    """One row: inputs a second, in batches of so many."""

    variants = ("onnxruntime",)

    def __init__(self, kind, batch, length=0):
        self.kind, self.batch, self.length = kind, batch, length

    def run(self, _):
        command = [sys.executable, __file__, self.kind, GRAPHS[self.kind], str(threads), str(self.batch)]
        command += [str(self.length)] if self.length else []
        return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def session(graph, count):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def embedder(peer):
    """Makes directions of texts, tokenizing included."""
    import numpy as np

    tokenizer = tokens()
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)

    def embed(texts):
        encoded = tokenizer.encode_batch(texts)
        feed = {"ids": [one.ids for one in encoded], "mask": [one.attention_mask for one in encoded]}
        return peer.run(None, {name: np.array(rows, dtype=np.int64) for name, rows in feed.items()})[0]

    return embed


def tokens():
    import onnx_models
    from tokenizers import Tokenizer

    return Tokenizer.from_str(onnx_models.Graph(MINILM).metadata["tokenizer"])


def fitting(length, text):
    """The most words with which a text has at most so many tokens."""
    tokenizer = tokens()
    return next(words for words in range(length, 0, -1) if sum(tokenizer.encode(text(words)).attention_mask) <= length)


def text(words, n):
    return " ".join([str(n % 10)] + [WORDS[(n + word) % len(WORDS)] for word in range(words)])


def batches(peer, length, batch):
    """Embeds the next batch of texts of at most so many tokens."""
    embed, words = embedder(peer), fitting(length, lambda words: text(words, 0))
    texts = [text(words, n) for n in range(128)]
    return lambda done: embed([texts[(done + n) % 128] for n in range(batch)])


def classifier(peer, batch):
    """Classifies a batch of pictures that are decoded already."""
    import numpy as np

    pixels = np.random.default_rng(1).random((batch, 3, 224, 224), dtype=np.float32)
    return lambda _: peer.run(None, {"x": pixels})[0]


def main():
    kind, graph, count, batch, *rest = sys.argv[1:]
    os.environ.update(OMP_NUM_THREADS=count, TOKENIZERS_PARALLELISM="false")
    peer, batch = session(graph, int(count)), int(batch)
    run = classifier(peer, batch) if kind == "pictures" else batches(peer, int(rest[0]), batch)
    run(0)
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        run(done)
        done += batch
    print(done / (time.perf_counter() - begun))


if __name__ == "__main__":
    main()
