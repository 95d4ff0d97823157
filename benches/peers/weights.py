"""Safetensors files: reading, and giving the peers' weights the names and the model card that `quantize` expects.

  weights.py PEERS.safetensors p8_56 OUT.safetensors

The peers' weights (shared/peers) are those of MMEarth's 12-band atto encoder: stem without padding, GRN epsilon 1e-4, input already
normalised. Some of their files bear MMEarth's names already, others those of shared/peers/model.py.
"""
import json
import re
import struct
import sys

import numpy as np


def read(path):
    """Tensors by name, f32, and the metadata."""
    data = open(path, "rb").read()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    body = memoryview(data)[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] != "F32":
            raise SystemExit(f"{path}: tensor {name} has type {entry['dtype']}, expected F32")
        start, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(body[start:end], "<f4").reshape(entry["shape"])
    return tensors, metadata


def write(path, tensors, metadata):
    """One file, the tensors in the order of their names."""
    header, start = {"__metadata__": metadata}, 0
    for name in sorted(tensors):
        size = tensors[name].size * 4
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            out.write(np.ascontiguousarray(tensors[name], "<f4").tobytes())


NAMES = [
    (r"conv0\.", "initial_conv.0."),
    (r"ln0\.", "initial_conv.1."),
    (r"stem\.(?=weight|bias)", "stem.0."),
    (r"ln1\.", "stem.1."),
    (r"down_ln\.(\d)\.", r"downsample_layers.\1.0."),
    (r"down\.(\d)\.", r"downsample_layers.\1.1."),
    (r"(stages\.\d+\.\d+)\.dw\.", r"\1.dwconv."),
    (r"(stages\.\d+\.\d+)\.ln_w$", r"\1.norm.weight"),
    (r"(stages\.\d+\.\d+)\.ln_b$", r"\1.norm.bias"),
    (r"(stages\.\d+\.\d+)\.pw(\d)\.", r"\1.pwconv\2."),
    (r"(stages\.\d+\.\d+)\.(gamma|beta)$", r"\1.grn.\2"),
    (r"norm_w$", "norm.weight"),
    (r"norm_b$", "norm.bias"),
]


def mmearth_name(name):
    """The name that MMEarth's dense encoder gives a tensor of shared/peers/model.py; its own names stay."""
    for pattern, to in NAMES:
        found = re.match(pattern, name)
        if found:
            return found.expand(to) + name[found.end() :]
    return name


def card(patch, size):
    """The model card: see formats/src/card.rs."""
    band = dict(unit="normalised", mean=0.0, std=1.0)
    return {
        "name": f"peers-atto-p{patch}-{size}",
        "architecture": {
            "tile_size": size, "patch_size": patch, "stem_padding": "none",
            "depths": [2, 2, 6, 2], "dims": [40, 80, 160, 320], "grn_eps": 1e-4, "ln_eps": 1e-6,
        },
        "bands": [dict(name=f"band{i}", **band) for i in range(12)],
        "embedding_space": "peers",
        "provenance": {"made_by": "benches/peers/weights.py", "data": "random weights", "recipe": "shared/peers/model.py", "licence": ""},
    }


if __name__ == "__main__":
    source, key, out = sys.argv[1:4]
    patch, size = (int(part) for part in key[1:].split("_"))
    named = {}
    for name, tensor in read(source)[0].items():
        name = mmearth_name(name)
        named[name] = tensor.reshape(1, 1, 1, -1) if ".grn." in name else tensor
    write(out, named, {"nadir": json.dumps(card(patch, size))})
