"""The float encoder as ONNX, for other engines: numpy and onnx only.

  export_onnx.py MODEL.safetensors OUT.onnx [conv|matmul]

Input `x` [1, bands, height, width] f32, the sensor's values; output `embedding` [1, dimension]. Two spellings of the same function: with
`conv` the pointwise layers are 1x1 convolutions in [channels, height, width] (onnxruntime's fastest), with `matmul` they are matrix products in
[height, width, channels] (what tract is fastest with, and what onnxruntime quantizes dynamically). docs/architecture.md says what is computed.
"""
import json
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from weights import read

OPSET = 20  # The first with Gelu.


class Graph:
    """Nodes and constants, each value with a new name."""

    def __init__(self, tensors, card):
        self.tensors, self.card = tensors, card
        self.nodes, self.constants = [], []

    def add(self, op, *inputs, **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(self, value):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, name, shape=None):
        tensor = self.tensors[name]
        return self.constant(tensor if shape is None else tensor.reshape(shape))

    def conv(self, x, name, stride=1, pad=0, group=1):
        tensor = self.tensors[f"{name}.weight"]
        return self.add("Conv", x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), kernel_shape=list(tensor.shape[2:]),
                        strides=[stride] * 2, pads=[pad] * 4, group=group)

    def to_last(self, x):
        return self.add("Transpose", x, perm=[0, 2, 3, 1])

    def to_first(self, x):
        return self.add("Transpose", x, perm=[0, 3, 1, 2])

    def norm_last(self, x, name):
        """LayerNorm over the last axis."""
        return self.add("LayerNormalization", x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), axis=-1,
                        epsilon=self.card["architecture"]["ln_eps"])

    def norm_channels(self, x, name):
        """LayerNorm over the channels of [1, channels, height, width]."""
        return self.to_first(self.norm_last(self.to_last(x), name))

    def response_norm(self, x, name, space, channels, shape):
        """Global Response Normalization; `space` and `channels` are the axes, `shape` that of the weights."""
        energy = self.add("ReduceSum", self.add("Mul", x, x), self.constant(np.array(space, np.int64)), keepdims=1)
        norm = self.add("Sqrt", energy)
        mean = self.add("ReduceMean", norm, self.constant(np.array([channels], np.int64)), keepdims=1)
        mean = self.add("Add", mean, self.constant(np.float32(self.card["architecture"]["grn_eps"])))
        factor = self.add("Mul", self.weight(f"{name}.grn.gamma", shape), self.add("Div", norm, mean))
        factor = self.add("Add", factor, self.constant(np.float32(1)))
        return self.add("Add", self.add("Mul", x, factor), self.weight(f"{name}.grn.beta", shape))

    def pointwise(self, x, name, spelling):
        weight, bias = self.tensors[f"{name}.weight"], f"{name}.bias"
        if spelling == "conv":
            return self.add("Conv", x, self.constant(weight[:, :, None, None]), self.weight(bias), kernel_shape=[1, 1])
        return self.add("Add", self.add("MatMul", x, self.constant(weight.T)), self.weight(bias))

    def block(self, x, name, spelling):
        channels = self.tensors[f"{name}.norm.weight"].shape[0]
        y = self.conv(x, f"{name}.dwconv", pad=3, group=channels)
        y = self.norm_last(self.to_last(y), f"{name}.norm")
        if spelling == "conv":
            y = self.to_first(y)
        y = self.add("Gelu", self.pointwise(y, f"{name}.pwconv1", spelling))
        space, axis, shape = ([2, 3], 1, (1, -1, 1, 1)) if spelling == "conv" else ([1, 2], 3, (1, 1, 1, -1))
        y = self.pointwise(self.response_norm(y, name, space, axis, shape), f"{name}.pwconv2", spelling)
        return self.add("Add", x, y if spelling == "conv" else self.to_first(y))

    def normalise(self, x):
        """Sensor values to what the encoder takes; a band's no-data value becomes its mean."""
        bands = self.card["bands"]
        column = lambda key: np.array([band[key] for band in bands], np.float32).reshape(1, -1, 1, 1)
        mean = self.constant(column("mean"))
        if any(band.get("no_data") is not None for band in bands):
            # A band without one gets a NaN, which equals nothing.
            missing = [np.nan if band.get("no_data") is None else band["no_data"] for band in bands]
            missing = self.constant(np.array(missing, np.float32).reshape(1, -1, 1, 1))
            x = self.add("Where", self.add("Equal", x, missing), mean, x)
        return self.add("Div", self.add("Sub", x, mean), self.constant(column("std")))

    def encoder(self, x, spelling):
        a = self.card["architecture"]
        same = a["stem_padding"] == "same"
        stride = a["patch_size"] // 8
        x = self.conv(self.normalise(x), "initial_conv.0", pad=int(same))
        x = self.add("Gelu", self.norm_channels(x, "initial_conv.1"))
        x = self.conv(x, "stem.0", stride=stride, pad=0 if same else stride // 2, group=a["dims"][0])
        x = self.norm_channels(x, "stem.1")
        for stage, depth in enumerate(a["depths"]):
            if stage:
                x = self.conv(self.norm_channels(x, f"downsample_layers.{stage - 1}.0"), f"downsample_layers.{stage - 1}.1", stride=2)
            for block in range(depth):
                x = self.block(x, f"stages.{stage}.{block}", spelling)
        x = self.add("ReduceMean", x, self.constant(np.array([2, 3], np.int64)), keepdims=0)
        return self.norm_last(x, "norm")


def export(path, out, spelling):
    tensors, metadata = read(path)
    card = json.loads(metadata["nadir"])
    a = card["architecture"]
    graph = Graph(tensors, card)
    result = graph.encoder("x", spelling)
    graph.nodes[-1].output[0] = "embedding"
    assert result == f"v{len(graph.nodes) - 1}"
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            card["name"],
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, len(card["bands"]), a["tile_size"], a["tile_size"]])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, a["dims"][3]])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    onnx.save(onnx.shape_inference.infer_shapes(model), out)


if __name__ == "__main__":
    export(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "conv")
