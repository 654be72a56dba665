#!/usr/bin/env python3
"""Writes quants.bin: for Q4_K, Q5_K and Q6_K eight blocks of random bytes, and their numbers in F32 by `pip install gguf`."""

import pathlib

import gguf
import numpy as np

random = np.random.default_rng(7)
out = b""
for kind, halves in (("Q4_K", (0, 2)), ("Q5_K", (0, 2)), ("Q6_K", (208,))):
    kind = gguf.GGMLQuantizationType[kind]
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (8, size), dtype=np.uint8)
    for at in halves:
        blocks[:, at : at + 2] = random.uniform(-0.1, 0.1, (8, 1)).astype("<f2").view(np.uint8)
    out += blocks.tobytes() + (gguf.quants.dequantize(blocks, kind).astype("<f4") + np.float32(0)).tobytes()
pathlib.Path(__file__).with_suffix(".bin").write_bytes(out)
