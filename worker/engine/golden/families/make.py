#!/usr/bin/env python3
"""Writes NAME.bin here: logits (40, 96) in F32 by transformers 5.23, of small networks with the weights that
`src/fixture/families.rs` computes, for tokens (37 i + 11) mod 96. Needs `pip install torch transformers`."""

import pathlib

import numpy as np
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

WIDTH, INNER, HEADS, KV_HEADS, VOCABULARY = 64, 96, 4, 2, 96
COMMON = dict(
    vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS, max_position_embeddings=128, rms_norm_eps=1e-6, attn_implementation="eager",
)
ROPE = {"rope_type": "default", "rope_theta": 1e6}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
}
GEMMA = {"ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
         "post_ffw_norm": "post_feedforward_layernorm"}


def noise(tensor, count):
    x = (np.uint64(tensor << 32) + np.arange(count, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = (x ^ (x >> np.uint64(31))) >> np.uint64(40)
    return x.astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)


def state(family, layers, head, apart):
    tensors, count = {}, 0

    def add(name, shape, scale, offset=0.0):
        nonlocal count
        count += 1
        numbers = np.float32(offset) + np.float32(scale) * noise(count, int(np.prod(shape)))
        if offset and family == "gemma3":
            numbers = numbers - np.float32(1)  # it stores what is added to one
        tensors[name] = torch.from_numpy(numbers.reshape(shape))

    add("model.embed_tokens.weight", (VOCABULARY, WIDTH), 2.0)
    queries, keys = HEADS * head, KV_HEADS * head
    names = NAMES | (GEMMA if family == "gemma3" else {})
    for layer in range(layers):
        at = lambda name: f"model.layers.{layer}.{names[name]}"
        for name, columns, rows in [
            ("attn_q", WIDTH, queries), ("attn_k", WIDTH, keys), ("attn_v", WIDTH, keys), ("attn_output", queries, WIDTH),
            ("ffn_gate", WIDTH, INNER), ("ffn_up", WIDTH, INNER), ("ffn_down", INNER, WIDTH),
        ]:
            add(at(name) + ".weight", (rows, columns), 0.5)
        for name in ("attn_norm", "ffn_norm"):
            add(at(name) + ".weight", (WIDTH,), 0.5, 1.0)
        if family == "qwen2":
            for name, size in (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)):
                add(at(name) + ".bias", (size,), 1.0)
        else:
            for name in ("attn_q_norm", "attn_k_norm"):
                add(at(name) + ".weight", (head,), 0.5, 1.0)
        if family == "gemma3":
            for name in ("post_attention_norm", "post_ffw_norm"):
                add(at(name) + ".weight", (WIDTH,), 0.5, 1.0)
    add("model.norm.weight", (WIDTH,), 0.5, 1.0)
    if apart:
        add("lm_head.weight", (VOCABULARY, WIDTH), 1.0)
    return tensors


def write(family, model, layers, head, apart):
    weights = state(family, layers, head, apart)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if not apart else set()), (missing, unexpected)
    model = model.float().eval()
    tokens = torch.tensor([[(37 * i + 11) % VOCABULARY for i in range(40)]])
    with torch.no_grad():
        logits = model(tokens).logits[0]
    (pathlib.Path(__file__).parent / f"{family}.bin").write_bytes(logits.numpy().astype("<f4").tobytes())
    print(family, model.config.layer_types if hasattr(model.config, "layer_types") else "", logits.std().item())


write("qwen2", Qwen2ForCausalLM(Qwen2Config(**COMMON, num_hidden_layers=2, rope_parameters=ROPE, tie_word_embeddings=False)), 2, 16, True)
write("qwen3", Qwen3ForCausalLM(Qwen3Config(**COMMON, num_hidden_layers=2, head_dim=32, rope_parameters=ROPE, tie_word_embeddings=True)), 2, 32, False)
gemma = Gemma3TextConfig(
    **COMMON, num_hidden_layers=7, head_dim=32, query_pre_attn_scalar=32, sliding_window=8, tie_word_embeddings=True,
    hidden_activation="gelu_pytorch_tanh", final_logit_softcapping=None, attn_logit_softcapping=None,
    layer_types=["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
    rope_parameters={"full_attention": ROPE, "sliding_attention": LOCAL},
)
write("gemma3", Gemma3ForCausalLM(gemma), 7, 32, False)
