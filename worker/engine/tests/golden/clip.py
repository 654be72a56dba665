"""Makes clip.safetensors and clip.json: a small CLIP of random weights, and what transformers computes with it."""

import json
import pathlib

import safetensors.torch
import torch
from transformers import CLIPConfig, CLIPModel

HERE = pathlib.Path(__file__).parent
TOWER = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = TOWER | {"vocab_size": 50, "max_position_embeddings": 20, "eos_token_id": 49, "bos_token_id": 48,
                "pad_token_id": 0}
VISION = TOWER | {"num_attention_heads": 4, "image_size": 13, "patch_size": 4, "hidden_act": "gelu"}

torch.manual_seed(5)
model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.dim() > 1 and "embedding" not in name:
            parameter.copy_(noise * 1.5 / parameter[0].numel() ** 0.5)
        elif "norm" in name and name.endswith("weight"):
            parameter.copy_(1 + 0.2 * noise)
        elif name != "logit_scale":
            parameter.copy_(0.4 * noise)

texts = [[48, 3, 49], [48, 49], [48, *range(1, 19), 49], [48, 7, 7, 30, 12, 5, 49]]
side = VISION["image_size"]
numbers = torch.tensor([(i * 37 % 101) / 50 - 1 for i in range(2 * side * side * 3)])
pictures = numbers.reshape(2, side, side, 3).permute(0, 3, 1, 2).contiguous()
with torch.no_grad():
    unit = lambda x: torch.nn.functional.normalize(x, dim=-1).tolist()
    project_text = lambda ids: model.text_projection(model.text_model(input_ids=torch.tensor([ids])).pooler_output)
    seen = model.visual_projection(model.vision_model(pixel_values=pictures).pooler_output)
    golden = {"texts": texts, "text_vectors": [unit(project_text(ids))[0] for ids in texts],
              "image_vectors": unit(seen), "contrast": model.logit_scale.exp().item()}

config = {"projection_dim": 24, "text_config": model.config.text_config.to_dict(),
          "vision_config": model.config.vision_config.to_dict()}
tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
safetensors.torch.save_file(tensors, HERE / "clip.safetensors", {"family": "clip", "config": json.dumps(config)})
(HERE / "clip.json").write_text(json.dumps(golden) + "\n")
