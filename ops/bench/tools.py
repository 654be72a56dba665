"""What the comparison itself needs from PyPI, in an environment of its own: a NATS client, the peers, what builds others."""

import os
import subprocess
import sys

HOME = os.path.abspath(".flotilla/peers/tools")
BUILDERS = ["cmake==3.31.6", "ninja==1.11.1.4"]
RUNTIMES = ["onnxruntime==1.32.0", "openvino==2026.4.1"]
ENCODERS = [*RUNTIMES, "onnx==1.23.2", "numpy==2.4.6", "safetensors==0.8.0", "tokenizers==0.23.3"]
SPEECH = ["faster-whisper==1.2.1", "ctranslate2==4.8.5"]
CLIENTS = "tests/clients/requirements.txt"


def enter(script):
    """Goes on in that environment, made first where it is not there."""
    if sys.prefix == HOME:
        return
    python = f"{HOME}/bin/python"
    if not is_complete(python):
        print("fetching what the comparison needs", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", CLIENTS, *BUILDERS, *ENCODERS, *SPEECH], check=True)
    os.execv(python, [python, script, *sys.argv[1:]])


def is_complete(python):
    if not os.path.exists(python):
        return False
    modules = "nats, cmake, ninja, onnxruntime, openvino, onnx, safetensors, tokenizers, faster_whisper"
    return subprocess.run([python, "-c", f"import {modules}"], stderr=subprocess.DEVNULL).returncode == 0
