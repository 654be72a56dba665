"""The peers of encoders: onnxruntime and OpenVINO, over graphs made of the fleet's own model files. As a program, one measurement.

usage: encoders.py onnxruntime|openvino|openvino-split embed|embed-int8|pictures GRAPH THREADS BATCH [LENGTH]"""

import math
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

    def __init__(self, kind, batch, length=0):
        self.kind, self.batch, self.length = kind, batch, length
        openvino = ("openvino", "openvino-split") if batch > 1 else ("openvino",)
        # The graph with weights of a byte is one that onnxruntime made for itself.
        self.variants = ("onnxruntime", *(openvino if kind != "embed-int8" else ()))

    def run(self, runtime):
        command = [sys.executable, __file__, runtime, self.kind, GRAPHS[self.kind], str(threads), str(self.batch)]
        command += [str(self.length)] if self.length else []
        return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def by_onnxruntime(graph, count):
    """What computes the outputs of a graph from its inputs by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)[0]


def by_openvino(graph, count):
    """The same, all threads together at one batch."""
    return fixed(graph, count, 1)


def by_openvino_split(graph, count):
    """The same, in parts at once: as many as divide both batch and threads."""
    return fixed(graph, count, count)


def fixed(graph, count, streams):
    """By OpenVINO, for inputs that all have the shapes of the first, in at most so many parts."""
    import numpy as np

    requests = []

    def infer(feed):
        parts = math.gcd(len(next(iter(feed.values()))), streams)
        pieces = [dict(zip(feed, piece)) for piece in zip(*(np.split(rows, parts) for rows in feed.values()))]
        if not requests:
            requests.extend(compiled(graph, count, pieces))
        for request, piece in zip(requests, pieces):
            request.start_async(piece, share_inputs=True)
        for request in requests:
            request.wait()
        return np.concatenate([request.get_output_tensor().data for request in requests])

    return infer


def compiled(graph, count, pieces):
    """A request of OpenVINO for each piece; it would compute in bf16 where the processor can, were f32 not asked for."""
    import openvino

    core = openvino.Core()
    model = core.read_model(graph)
    model.reshape({name: rows.shape for name, rows in pieces[0].items()})
    hint = "LATENCY" if len(pieces) == 1 else "THROUGHPUT"
    settings = {"PERFORMANCE_HINT": hint, "NUM_STREAMS": len(pieces), "INFERENCE_NUM_THREADS": count}
    network = core.compile_model(model, "CPU", {**settings, "INFERENCE_PRECISION_HINT": "f32"})
    return [network.create_infer_request() for _ in pieces]


# Which of OpenVINO's two is the faster one depends on batch and machine.
RUNTIMES = {"onnxruntime": by_onnxruntime, "openvino": by_openvino, "openvino-split": by_openvino_split}


def embedder(infer):
    """Makes directions of texts, tokenizing included."""
    import numpy as np

    tokenizer = tokens()
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)

    def embed(texts):
        encoded = tokenizer.encode_batch(texts)
        feed = {"ids": [one.ids for one in encoded], "mask": [one.attention_mask for one in encoded]}
        return infer({name: np.array(rows, dtype=np.int64) for name, rows in feed.items()})

    return embed


def tokens():
    import onnx_models
    from tokenizers import Tokenizer

    return Tokenizer.from_str(onnx_models.Graph(MINILM).metadata["tokenizer"])


def fitting(length, text):
    """The most words with which a text has at most so many tokens."""
    tokenizer = tokens()
    tokenizer.no_truncation()
    return next(words for words in range(length, 0, -1) if sum(tokenizer.encode(text(words)).attention_mask) <= length)


def text(words, n):
    return " ".join([str(n % 10)] + [WORDS[(n + word) % len(WORDS)] for word in range(words)])


def batches(infer, length, batch):
    """Embeds the next batch of texts of at most so many tokens."""
    embed, words = embedder(infer), fitting(length, lambda words: text(words, 0))
    texts = [text(words, n) for n in range(128)]
    return lambda done: embed([texts[(done + n) % 128] for n in range(batch)])


def classifier(infer, batch):
    """Classifies a batch of pictures that are decoded already."""
    import numpy as np

    pixels = np.random.default_rng(1).random((batch, 3, 224, 224), dtype=np.float32)
    return lambda _: infer({"x": pixels})


def main():
    runtime, kind, graph, count, batch, *rest = sys.argv[1:]
    os.environ.update(OMP_NUM_THREADS=count, TOKENIZERS_PARALLELISM="false")
    infer, batch = RUNTIMES[runtime](graph, int(count)), int(batch)
    run = classifier(infer, batch) if kind == "pictures" else batches(infer, int(rest[0]), batch)
    run(0)
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        run(done)
        done += batch
    print(done / (time.perf_counter() - begun))


if __name__ == "__main__":
    main()
