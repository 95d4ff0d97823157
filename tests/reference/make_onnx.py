"""Writes small ONNX encoders as PyTorch exports them, the weights that they hold, and their embeddings by ONNX Runtime.

    python make_onnx.py      (torch, timm, onnx, onnxscript, onnxruntime, numpy and safetensors; a minute)

Three encoders: `timm`, timm's ConvNeXt V2 blocks behind MMEarth's stem, and `mmearth`, written as MMEarth's dense encoder is (from its
formulas). Each in several exports. `patchify` is timm's own model, with one 4x4 convolution for a stem. Tiles are stored as a sensor gives them and
enter normalised by mean 90 and standard deviation 40. `own.onnx` is made by `trainer export --model timm.safetensors --onnx own.onnx`.
"""

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, numpy_helper
from safetensors.numpy import save_file
from timm.layers import LayerNorm2d
from timm.models.convnext import ConvNeXt
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent / "onnx"
DEPTHS, DIMS, SIDE, CLASSES = (1, 1, 2, 1), (4, 6, 8, 12), 32, 5
# Of the tiles of `patchify`: two patches of 32 pixels.
PATCHIFY_SIDE = 64
MEAN, STD = 90.0, 40.0


def timm_encoder(conv_mlp, classes, stem=True):
    model = ConvNeXt(3, classes, depths=DEPTHS, dims=DIMS, use_grn=True, ls_init_value=None, conv_mlp=conv_mlp)
    if stem:
        d = DIMS[0]
        initial, depthwise = nn.Conv2d(3, d, 3, padding=1), nn.Conv2d(d, d, 1, groups=d)
        model.stem = nn.Sequential(initial, LayerNorm2d(d), nn.GELU(), depthwise, LayerNorm2d(d))
    return model.eval()


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of [batch, channels, height, width], written out."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ResponseNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x):
        norm = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        share = norm / (norm.mean(dim=-1, keepdim=True) + 1e-4)
        return self.gamma * (x * share) + self.beta + x


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(d, d, 7, padding=3, groups=d), nn.LayerNorm(d, eps=1e-6)
        self.pwconv1, self.grn, self.pwconv2 = nn.Linear(d, 4 * d), ResponseNorm(4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(self.grn(F.gelu(self.pwconv1(y))))
        return x + y.permute(0, 3, 1, 2)


class MMEarthEncoder(nn.Module):
    """Patches of 16, no padding before the initial convolution."""

    def __init__(self, classes):
        super().__init__()
        d = DIMS[0]
        self.initial_conv = nn.Sequential(nn.Conv2d(3, d, 3), ChannelNorm(d), nn.GELU())
        self.stem = nn.Sequential(nn.Conv2d(d, d, 2, stride=2, padding=1, groups=d), ChannelNorm(d))
        pairs = zip(DIMS, DIMS[1:])
        down = [nn.Sequential(ChannelNorm(a), nn.Conv2d(a, b, 2, stride=2)) for a, b in pairs]
        self.downsample_layers = nn.ModuleList(down)
        self.stages = nn.ModuleList(nn.Sequential(*(Block(d) for _ in range(n))) for n, d in zip(DEPTHS, DIMS))
        self.norm = nn.LayerNorm(DIMS[-1], eps=1e-6)
        self.head = nn.Linear(DIMS[-1], classes) if classes else nn.Identity()

    def forward(self, x):
        x = self.stem(self.initial_conv(x))
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = self.downsample_layers[i - 1](x)
            x = stage(x)
        return self.head(self.norm(x.mean([-2, -1])))


def randomise(model, seed):
    """Weights of the scale of trained ones, none at its start."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, t in model.state_dict().items():
        n = torch.randn(t.shape, generator=generator)
        if name.endswith(("grn.weight", "grn.gamma")):
            n = 0.5 * n
        elif name.endswith(("bias", "beta")):
            n = 0.1 * n
        elif t.dim() > 1:
            n = n / np.sqrt(t[0].numel())
        else:
            n = torch.exp(0.3 * n)
        state[name] = n
    model.load_state_dict(state)
    return model


def our_names(state):
    """timm's names to MMEarth's; the classifier is left out."""
    out = {}
    parts = {"conv_dw": "dwconv", "norm": "norm", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2", "mlp.grn": "grn"}
    whole = {"0": "initial_conv.0", "1": "initial_conv.1", "3": "stem.0", "4": "stem.1"}
    stem = whole if "stem.3.weight" in state else {"0": "stem.0", "1": "stem.1"}
    for name, t in state.items():
        words = name.split(".")
        if words[0] == "stem" and "downsample_layers.0.0.weight" not in state:
            name = f"{stem[words[1]]}.{words[2]}"
        elif words[0] == "stages" and words[2] == "downsample":
            name = f"downsample_layers.{int(words[1]) - 1}.{words[3]}.{words[4]}"
        elif words[0] == "stages" and words[2] == "blocks":
            kind = words[-1]
            part = parts[".".join(words[4:-1])]
            if part == "grn":
                kind, t = {"weight": "gamma", "bias": "beta"}[kind], t.reshape(1, 1, 1, -1)
            name = f"stages.{words[1]}.{words[3]}.{part}.{kind}"
            if part.startswith("pwconv") and kind == "weight":
                t = t.reshape(t.shape[0], t.shape[1])
        elif name.startswith("head.norm."):
            name = f"norm.{words[-1]}"
        elif words[0] == "head":
            continue
        out[name] = t.numpy().copy()
    return out


def card(name, patch, padding, grn_eps, architecture=True):
    side = PATCHIFY_SIDE if padding == "patchify" else SIDE
    band = {"unit": "grey level", "mean": MEAN, "std": STD, "no_data": None, "saturation": 255.0}
    value = {
        "name": name,
        "architecture": {
            "tile_size": side,
            "patch_size": patch,
            "stem_padding": padding,
            "depths": DEPTHS,
            "dims": DIMS,
            "grn_eps": grn_eps,
            "ln_eps": 1e-6,
        },
        "bands": [{"name": b, **band} for b in ("B4", "B3", "B2")],
        "embedding_space": name,
        "provenance": {"made_by": "make_onnx.py", "data": "none", "recipe": "random weights", "licence": "MIT"},
    }
    if not architecture:
        del value["architecture"], value["embedding_space"]
    return json.dumps(value, indent=2) + "\n"


def slim(model):
    """Without what the exporter notes of its sources."""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    del model.graph.metadata_props[:], model.metadata_props[:]
    return model


def script(model, name, opset, batch=None, side=SIDE):
    axes = {} if batch else {"dynamic_axes": {"x": {0: "batch"}}}
    x = torch.zeros(batch or 2, 3, side, side)
    path = HERE / f"{name}.onnx"
    torch.onnx.export(model, (x,), path, opset_version=opset, dynamo=False, input_names=["x"], **axes)
    onnx.save(slim(onnx.load(path)), path)


def dynamo(model, name, opset, external=False):
    path = HERE / f"{name}.onnx"
    x = torch.zeros(2, 3, SIDE, SIDE)
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(model, (x,), path, opset_version=opset, dynamo=True, external_data=external, dynamic_shapes=shapes)
    onnx.save(slim(onnx.load(path, load_external_data=False)), path)


def constants(source, name):
    """The weights as Constant nodes, half of them in f16 behind a Cast."""
    model = onnx.load(HERE / f"{source}.onnx")
    nodes = []
    for i, weight in enumerate(model.graph.initializer):
        array = numpy_helper.to_array(weight)
        half = i % 2 == 0 and array.dtype == np.float32
        stored = numpy_helper.from_array(array.astype(np.float16) if half else array)
        output = f"{weight.name}_f16" if half else weight.name
        nodes.append(onnx.helper.make_node("Constant", [], [output], value=stored))
        if half:
            nodes.append(onnx.helper.make_node("Cast", [output], [weight.name], to=TensorProto.FLOAT))
    del model.graph.initializer[:]
    nodes.extend(copy.deepcopy(list(model.graph.node)))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, HERE / f"{name}.onnx")


def main():
    HERE.mkdir(exist_ok=True)
    timm = randomise(timm_encoder(True, CLASSES), 1)
    state = {name: t.clone() for name, t in timm.state_dict().items()}
    # The same weights in other modules: linear layers in place of 1x1 convolutions, no classifier.
    linear = timm_encoder(False, CLASSES)
    shapes = linear.state_dict()
    linear.load_state_dict({name: t.reshape(shapes[name].shape) for name, t in state.items()})
    bare = timm_encoder(True, 0)
    bare.load_state_dict({name: t for name, t in state.items() if not name.startswith("head.fc")})
    script(bare, "timm-script-11", 11)
    script(linear, "timm-script-17-classifier", 17, batch=2)
    dynamo(timm, "timm-dynamo-20-classifier", 20)
    dynamo(linear, "timm-dynamo-18-external", 18, external=True)
    patchify = randomise(timm_encoder(True, 0, stem=False), 3)
    script(patchify, "patchify", 17, side=PATCHIFY_SIDE)

    mmearth = randomise(MMEarthEncoder(CLASSES), 2)
    script(mmearth, "mmearth-script-13-classifier", 13)
    dynamo(mmearth, "mmearth-dynamo-18-classifier", 18)
    constants("mmearth-script-13-classifier", "mmearth-constants-f16")

    generator = np.random.default_rng(7)
    tiles = generator.integers(0, 256, (3, 3, SIDE, SIDE), dtype=np.uint8)
    large = generator.integers(0, 256, (2, 3, PATCHIFY_SIDE, PATCHIFY_SIDE), dtype=np.uint8)
    np.save(HERE / "tiles.npy", tiles)
    np.save(HERE / "patchify-tiles.npy", large)
    embeddings = {}
    for name, model, patch, padding, eps in [
        ("timm", bare, 8, "same", 1e-6),
        ("mmearth", mmearth, 16, "none", 1e-4),
        ("patchify", patchify, 32, "patchify", 1e-6),
    ]:
        tensors = {k: v for k, v in our_names(model.state_dict()).items() if not k.startswith("head.")}
        metadata = {"nadir": card(name, patch, padding, eps)}
        save_file(tensors, HERE / f"{name}.safetensors", metadata)
        (HERE / f"{name}.card.json").write_text(card(name, patch, padding, eps, architecture=False))
    # ONNX Runtime on graphs that end with the embedding.
    headless = copy.deepcopy(mmearth)
    headless.head = nn.Identity()
    script(headless, "mmearth-script-13", 13)
    for name in ["timm-script-11", "mmearth-script-13", "patchify"]:
        session = onnxruntime.InferenceSession(HERE / f"{name}.onnx", providers=["CPUExecutionProvider"])
        x = large if name == "patchify" else tiles
        x = (x.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
        embeddings[name.split("-")[0]] = session.run(None, {"x": x})[0]
    save_file(embeddings, HERE / "embeddings.safetensors")


if __name__ == "__main__":
    main()
