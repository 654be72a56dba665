"""Photographs through our binary and through timm: python3 photographs.py MODEL.safetensors CLASSIFY PHOTO...

CLASSIFY is target/release/examples/classify. Prints a line for each photograph and the largest differences of probabilities, given
the same preprocessed tensor and from file to answer. Ends with 1 when a bar is missed: top-1 equal everywhere, 1e-3, 0.02."""

import json
import os
import subprocess
import sys
import tempfile

import safetensors.torch
import timm
import torch
from PIL import Image
from safetensors import safe_open

model, classify, *photographs = sys.argv[1:]
metadata = safe_open(model, "pt").metadata()
labels = json.loads(metadata["labels"])
reference = timm.create_model("efficientnet_lite0", pretrained=False).eval()
lacking = reference.load_state_dict(safetensors.torch.load_file(model), strict=False)
assert not lacking.unexpected_keys and all(key.endswith("num_batches_tracked") for key in lacking.missing_keys), lacking
transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=reference), is_training=False)


def ours(files):
    lines = subprocess.run([classify, model, *files], check=True, capture_output=True, text=True).stdout.splitlines()
    return torch.tensor([json.loads(line) for line in lines])


with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
    tensors = [transform(Image.open(photograph).convert("RGB")) for photograph in photographs]
    theirs = torch.stack([reference(tensor[None])[0].softmax(0) for tensor in tensors])
    files = [os.path.join(folder, f"{at}.f32") for at in range(len(tensors))]
    for file, tensor in zip(files, tensors):
        tensor.permute(1, 2, 0).contiguous().numpy().tofile(file)
    same, whole = ours(files), ours(photographs)
missed = 0
for at, photograph in enumerate(photographs):
    tops = [int(probabilities[at].argmax()) for probabilities in (theirs, same, whole)]
    apart = [float((probabilities[at] - theirs[at]).abs().max()) for probabilities in (same, whole)]
    missed += len(set(tops)) > 1 or apart[0] >= 1e-3 or apart[1] >= 0.02
    print(f"{os.path.basename(photograph):24} {labels[tops[0]][:28]:28} {theirs[at].max():.4f}  {tops}  {apart[0]:.1e} {apart[1]:.1e}")
print(f"{len(photographs)} photographs, {missed} missed; largest differences "
      f"{float((same - theirs).abs().max()):.1e} and {float((whole - theirs).abs().max()):.1e}")
sys.exit(missed > 0)
