"""The encoders as ONNX graphs, from the model files that the fleet itself computes from: no framework is needed.

The graphs have the operators that onnxruntime fuses and blocks best (LayerNormalization, Gelu, Conv with the norms folded in)."""

import json

import numpy as np
import onnx
import safetensors
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """Nodes and constants of a graph, named as they come."""

    def __init__(self, path):
        with safetensors.safe_open(path, "np") as file:
            self.metadata = file.metadata()
            self.tensors = {name: file.get_tensor(name).astype("f4") for name in file.keys()}
        self.nodes, self.constants = [], []

    def constant(self, numbers):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(numbers), name))
        return name

    def node(self, kind, *inputs, **attributes):
        inputs = [entry if isinstance(entry, str) else self.constant(entry) for entry in inputs]
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def save(self, path, inputs, outputs):
        """`inputs` and `outputs`: name, type, shape."""
        values = [[helper.make_tensor_value_info(*value) for value in side] for side in (inputs, outputs)]
        graph = helper.make_graph(self.nodes, "encoder", *values, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def bert(path, out):
    """Ids and mask (b, s) to directions (b, width)."""
    g = Graph(path)
    config = json.loads(g.metadata["config"])
    width, heads, epsilon = config["hidden_size"], config["num_attention_heads"], config["layer_norm_eps"]

    def affine(x, name):
        return g.node("Add", g.node("MatMul", x, g.tensors[name + ".weight"].T.copy()), g.tensors[name + ".bias"])

    def norm(x, name):
        return g.node("LayerNormalization", x, g.tensors[name + ".weight"], g.tensors[name + ".bias"], axis=-1, epsilon=epsilon)

    def split(x, turned):
        apart = g.node("Reshape", x, np.array([0, 0, heads, width // heads]))
        return g.node("Transpose", apart, perm=turned)

    length = g.node("Slice", g.node("Shape", "ids"), np.array([1]), np.array([2]))
    positions = g.tensors["embeddings.position_embeddings.weight"] + g.tensors["embeddings.token_type_embeddings.weight"][0]
    places = g.node("Slice", positions, np.array([0]), length, np.array([0]))
    x = norm(g.node("Add", g.node("Gather", g.tensors["embeddings.word_embeddings.weight"], "ids"), places), "embeddings.LayerNorm")
    seen = g.node("Cast", "mask", to=TensorProto.FLOAT)
    hidden = g.node("Mul", g.node("Sub", np.float32(1), seen), np.float32(-1e9))
    hidden = g.node("Unsqueeze", hidden, np.array([1, 2]))
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}."
        query, key, value = (affine(x, f"{name}attention.self.{part}") for part in ("query", "key", "value"))
        scores = g.node("MatMul", split(query, [0, 2, 1, 3]), split(key, [0, 2, 3, 1]))
        scores = g.node("Add", g.node("Mul", scores, np.float32((width // heads) ** -0.5)), hidden)
        taken = g.node("MatMul", g.node("Softmax", scores, axis=-1), split(value, [0, 2, 1, 3]))
        taken = g.node("Reshape", g.node("Transpose", taken, perm=[0, 2, 1, 3]), np.array([0, 0, width]))
        x = norm(g.node("Add", affine(taken, name + "attention.output.dense"), x), name + "attention.output.LayerNorm")
        inner = g.node("Gelu", affine(x, name + "intermediate.dense"))
        x = norm(g.node("Add", affine(inner, name + "output.dense"), x), name + "output.LayerNorm")
    weights = g.node("Unsqueeze", seen, np.array([2]))
    total = g.node("ReduceSum", g.node("Mul", x, weights), np.array([1]), keepdims=0)
    mean = g.node("Div", total, g.node("ReduceSum", weights, np.array([1]), keepdims=0))
    g.nodes.append(helper.make_node("LpNormalization", [mean], ["out"], axis=1, p=2))
    inputs = [(name, TensorProto.INT64, ["b", "s"]) for name in ("ids", "mask")]
    g.save(out, inputs, [("out", TensorProto.FLOAT, ["b", width])])


LITE0 = [(1, 3, 1, 1), (2, 3, 2, 6), (2, 5, 2, 6), (3, 3, 2, 6), (3, 5, 1, 6), (4, 5, 2, 6), (1, 3, 1, 6)]


def efficientnet(path, out):
    """Pictures (b, 3, side, side) to probabilities."""
    g = Graph(path)
    config = json.loads(g.metadata["config"])

    def conv(x, name, norm, stride=1, clipped=True):
        kernel = g.tensors[name + ".weight"]
        scale, shift, mean, variance = (g.tensors[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var"))
        scale = scale / np.sqrt(variance + config.get("epsilon", 1e-5))
        groups = kernel.shape[0] if kernel.shape[1] == 1 and kernel.shape[2] > 1 else 1
        pad = kernel.shape[2] // 2
        x = g.node("Conv", x, kernel * scale[:, None, None, None], shift - mean * scale, group=groups,
                   kernel_shape=list(kernel.shape[2:]), pads=[pad] * 4, strides=[stride] * 2)  # fmt: skip
        return g.node("Clip", x, np.float32(0), np.float32(6)) if clipped else x

    x = conv("x", "conv_stem", "bn1", 2)
    for stage, (repeats, _, first, expansion) in enumerate(LITE0):
        for repeat in range(repeats):
            name, before, stride = f"blocks.{stage}.{repeat}.", x, first if repeat == 0 else 1
            if expansion > 1:
                x = conv(conv(x, name + "conv_pw", name + "bn1"), name + "conv_dw", name + "bn2", stride)
                x = conv(x, name + "conv_pwl", name + "bn3", clipped=False)
            else:
                x = conv(conv(x, name + "conv_dw", name + "bn1", stride), name + "conv_pw", name + "bn2", clipped=False)
            x = g.node("Add", x, before) if repeat else x
    x = g.node("Flatten", g.node("GlobalAveragePool", conv(x, "conv_head", "bn2")))
    x = g.node("Gemm", x, g.tensors["classifier.weight"], g.tensors["classifier.bias"], transB=1)
    g.nodes.append(helper.make_node("Softmax", [x], ["out"], axis=1))
    g.save(out, [("x", TensorProto.FLOAT, ["b", 3, "h", "w"])], [("out", TensorProto.FLOAT, ["b", 1000])])
