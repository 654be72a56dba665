"""EfficientNet-Lite0 in f32: our engine beside onnxruntime, from pixels to probabilities, A B A B in one run.

usage: images.py MODEL.safetensors CLASSIFY [--threads 2] [--pairs 5] [--seconds 2]
MODEL is what `flotilla models pull` makes; CLASSIFY is target/release/examples/classify. Needs onnxruntime, onnx, timm, torch."""

import argparse
import statistics
import subprocess
import tempfile
import time

import numpy as np
import onnxruntime
import safetensors.torch
import timm
import torch

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("classify")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--pairs", type=int, default=5)
parser.add_argument("--seconds", type=int, default=2)
args = parser.parse_args()


def session():
    network = timm.create_model("efficientnet_lite0", pretrained=False).eval()
    network.load_state_dict(safetensors.torch.load_file(args.model), strict=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        shape = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
        torch.onnx.export(network, torch.zeros(1, 3, 224, 224), file.name, dynamo=False, opset_version=17, **shape)
        return onnxruntime.InferenceSession(file.name, options, providers=["CPUExecutionProvider"])


def ours(batch):
    command = [args.classify, args.model, "--bench", str(batch), str(args.seconds), str(args.threads)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(told.split("once: ")[1].split()[0])


def theirs(peer, batch):
    pixels = {"x": np.random.rand(batch, 3, 224, 224).astype("f4")}
    peer.run(None, pixels)
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < args.seconds:
        peer.run(None, pixels)
        done += batch
    return done / (time.perf_counter() - begun)


peer = session()
print(f"onnxruntime {onnxruntime.__version__}, {args.threads} threads, medians of {args.pairs} pairs, pictures/s")
print(" batch     ours   theirs  ratio")
for batch in (1, 8, 32):
    pairs = [(ours(batch), theirs(peer, batch)) for _ in range(args.pairs)]
    a, b = (statistics.median(column) for column in zip(*pairs))
    print(f"{batch:6} {a:8.1f} {b:8.1f} {a / b:6.2f}", flush=True)
