"""Writes mel.json: faster-whisper's features of the sound that `src/mel.rs` makes in its tests.

usage: mel.py    (faster-whisper 1.2.1)"""
import json
import os

import numpy as np
from faster_whisper.feature_extractor import FeatureExtractor

SAMPLES, STEP = 40_123, 7
noise, out = 1, []
f = np.float32
for i in range(SAMPLES):
    noise = (noise * 1664525 + 1013904223) % 2**32
    sweep = f(i * i // 64 % 2048) / f(1024) - f(1)
    hum = f(i % 133) / f(66.5) - f(1)
    hiss = f(noise >> 16) / f(32768) - f(1)
    out.append(f(0) if 16000 <= i < 20000 else f(0.25) * sweep + f(0.125) * hum + f(0.01) * hiss)
features = FeatureExtractor()(np.array(out, np.float32)).T
rows = [[round(float(v), 6) for v in row] for row in features[::STEP]]
path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "mel.json")
json.dump({"samples": SAMPLES, "frames": len(features), "step": STEP, "rows": rows}, open(path, "w"), separators=(",", ":"))
