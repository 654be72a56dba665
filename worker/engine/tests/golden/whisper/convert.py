"""A Whisper model in CTranslate2's layout (model.bin, config.json, tokenizer.json) as our safetensors.

usage: whisper_convert.py FOLDER_OR_MODEL_BIN CONFIG_JSON TOKENIZER_JSON OUT
"""
import json
import struct
import sys

import numpy as np
from safetensors.numpy import save_file

TYPES = [np.float32, np.int8, np.int16, np.int32, np.float16]


def read(path):
    data = open(path, "rb").read()
    at = 0

    def number(kind):
        nonlocal at
        value = struct.unpack_from("<" + kind, data, at)[0]
        at += struct.calcsize(kind)
        return value

    def string():
        nonlocal at
        length = number("H")
        value = data[at : at + length - 1].decode()
        at += length
        return value

    assert number("I") == 6 and string() == "WhisperSpec" and number("I") == 3
    variables = {}
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        kind = TYPES[number("B")]
        size = number("I")
        variables[name] = np.frombuffer(data[at : at + size], kind).reshape(shape)
        at += size
    for _ in range(number("I")):
        string(), string()
    assert at == len(data)
    return variables


def convert(source):
    out = {}

    def copy(ours, theirs, bias="bias", weight="weight"):
        out[f"model.{ours}.weight"] = source[f"{theirs}/{weight}"]
        out[f"model.{ours}.bias"] = source[f"{theirs}/{bias}"]

    def norm(ours, theirs):
        copy(ours, f"{theirs}/layer_norm", "beta", "gamma")

    def split(ours, names, theirs):
        weights = np.split(source[f"{theirs}/weight"], len(names))
        biases = np.split(source[f"{theirs}/bias"], len(names))
        for name, weight, bias in zip(names, weights, biases):
            out[f"model.{ours}.{name}.weight"] = weight
            if name == "k_proj":
                assert not bias.any()
            else:
                out[f"model.{ours}.{name}.bias"] = bias

    for side in "encoder", "decoder":
        out[f"model.{side}.embed_positions.weight"] = source[f"{side}/position_encodings/encodings"]
        norm(f"{side}.layer_norm", side)
        n = 0
        while f"{side}/layer_{n}/ffn/linear_0/weight" in source:
            ours, theirs = f"{side}.layers.{n}", f"{side}/layer_{n}"
            norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention")
            split(f"{ours}.self_attn", ["q_proj", "k_proj", "v_proj"], f"{theirs}/self_attention/linear_0")
            copy(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
            if side == "decoder":
                norm(f"{ours}.encoder_attn_layer_norm", f"{theirs}/attention")
                copy(f"{ours}.encoder_attn.q_proj", f"{theirs}/attention/linear_0")
                split(f"{ours}.encoder_attn", ["k_proj", "v_proj"], f"{theirs}/attention/linear_1")
                copy(f"{ours}.encoder_attn.out_proj", f"{theirs}/attention/linear_2")
            norm(f"{ours}.final_layer_norm", f"{theirs}/ffn")
            copy(f"{ours}.fc1", f"{theirs}/ffn/linear_0")
            copy(f"{ours}.fc2", f"{theirs}/ffn/linear_1")
            n += 1
    copy("encoder.conv1", "encoder/conv1")
    copy("encoder.conv2", "encoder/conv2")
    out["model.decoder.embed_tokens.weight"] = source["decoder/embeddings/weight"]
    return {name: np.ascontiguousarray(tensor) for name, tensor in out.items()}


def config(source, tensors, settings):
    def layers(side):
        return len([n for n in tensors if n.startswith(f"model.{side}.layers.") and n.endswith(".fc1.weight")])

    vocab, width = tensors["model.decoder.embed_tokens.weight"].shape
    return {
        "d_model": width,
        "encoder_layers": layers("encoder"),
        "decoder_layers": layers("decoder"),
        "encoder_attention_heads": int(source["encoder/num_heads"]),
        "decoder_attention_heads": int(source["decoder/num_heads"]),
        "encoder_ffn_dim": tensors["model.encoder.layers.0.fc1.weight"].shape[0],
        "decoder_ffn_dim": tensors["model.decoder.layers.0.fc1.weight"].shape[0],
        "vocab_size": vocab,
        "num_mel_bins": tensors["model.encoder.conv1.weight"].shape[1],
        "max_source_positions": tensors["model.encoder.embed_positions.weight"].shape[0],
        "max_target_positions": tensors["model.decoder.embed_positions.weight"].shape[0],
        "multilingual": vocab >= 51865,
        "alignment_heads": settings["alignment_heads"],
        "suppress_ids": settings["suppress_ids"],
        "suppress_ids_begin": settings["suppress_ids_begin"],
        "lang_ids": settings["lang_ids"] if vocab >= 51865 else [],
    }


def main(model, settings, tokenizer, out):
    source = read(model)
    tensors = convert(source)
    described = config(source, tensors, json.load(open(settings)))
    metadata = {
        "family": "whisper",
        "config": json.dumps(described, separators=(",", ":")),
        "tokenizer": open(tokenizer, encoding="utf-8").read(),
    }
    save_file(tensors, out, metadata)
    print(out, len(tensors), {k: v for k, v in described.items() if not isinstance(v, list)})


main(*sys.argv[1:])
