"""Makes a few small photographs and what timm sees in them: python3 labels.py MODEL.safetensors SCIKIT_IMAGE_DATA

The photographs are scikit-image's chelsea and coffee (CC0) and NASA's rocket and astronaut (public domain)."""

import json
import sys

import safetensors.torch
import timm
import torch
from PIL import Image

model, folder = sys.argv[1:]
reference = timm.create_model("efficientnet_lite0", pretrained=False).eval()
reference.load_state_dict(safetensors.torch.load_file(model), strict=False)
transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=reference), is_training=False)
seen = {}
for name in ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png"):
    photograph = Image.open(f"{folder}/{name}").convert("RGB")
    photograph.thumbnail((330, 330), Image.LANCZOS)
    small = name.split(".")[0] + ".jpg"
    photograph.save(small, quality=88, subsampling=0)
    with torch.inference_mode():
        probabilities = reference(transform(Image.open(small).convert("RGB"))[None])[0].softmax(0)
    top = probabilities.topk(5)
    seen[small] = [[int(index), round(float(value), 6)] for value, index in zip(top.values, top.indices)]
with open("labels.json", "w") as file:
    json.dump(seen, file, indent=1)
