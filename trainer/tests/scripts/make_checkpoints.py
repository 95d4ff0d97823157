"""Checkpoints with the structure of MMEarth's, random weights, and what PyTorch computes with them.

  make_checkpoints.py fixtures FOLDER     small ones, for `cargo test` (trainer/tests/checkpoints)
  make_checkpoints.py full TRAINER        the ten released configurations at full size through the binary TRAINER

Needs torch, numpy and safetensors, `fixtures` also timm; `full` also runs onnxruntime. Keys, shapes and the pickle are those that MMEarth's code
would write with torch.save (sparse encoder of MinkowskiEngine). The encoder here works on these tensors as they are: a
sparse convolution is a sum over kernel offsets, offset n of a k x k kernel being row n % k, column n // k. Nothing is
reshaped to dense kernels, so the importer's reordering is tested and not repeated. All in float64.

The small encoder with ImageNet's patchify stem is timm's own ConvNeXt, and so is what it computes; that the names in the file of
Meta's are Meta's, timm's reader of such files confirms.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

ATTO = dict(dims=[40, 80, 160, 320], depths=[2, 2, 6, 2])
TINY = dict(dims=[96, 192, 384, 768], depths=[3, 3, 9, 3])
SMALL = dict(dims=[4, 8, 8, 16], depths=[1, 1, 2, 1])
PIXEL = dict(sentinel2=12, sentinel1=8, aster=2, dynamic_world=9, canopy_height_eth=2, esa_worldcover=11)
IMAGE = dict(era5=12, lat=2, lon=2, biome=14, eco_region=846, month=2)
CLASSES = ["dynamic_world", "biome", "eco_region", "esa_worldcover"]
ORDER = ["sentinel2", "sentinel1", "aster", "era5", "dynamic_world", "canopy_height_eth", "lat", "lon", "biome", "eco_region", "month",
         "esa_worldcover"]
RELEASED = [
    ("pt-all_mod_atto_1M_64_uncertainty_56-8", ATTO, 8, 12, ORDER),
    ("pt-all_mod_atto_1M_64_unweighted_56-8", ATTO, 8, 12, ORDER),
    ("pt-all_mod_atto_1M_128_uncertainty_112-16", ATTO, 16, 12, ORDER),
    ("pt-all_mod_tiny_1M_64_uncertainty_56-8", TINY, 8, 12, ORDER),
    ("pt-all_mod_atto_100k_128_uncertainty_112-16", ATTO, 16, 12, ORDER),
    ("pt-img_mod_atto_1M_64_uncertainty_56-8", ATTO, 8, 12, list(IMAGE)),
    ("pt-pix_mod_atto_1M_64_uncertainty_56-8", ATTO, 8, 12, list(PIXEL)),
    ("pt-S2_atto_1M_64_uncertainty_56-8", ATTO, 8, 12, ["sentinel2"]),
    ("pt-rgb_atto_1M_64_uncertainty_56-8", ATTO, 8, 3, ["sentinel2"]),
    ("pt-rgb_atto_1M_128_uncertainty_112-16", ATTO, 16, 3, ["sentinel2"]),
]


def state_dict(size, patch, bands, outputs, uncertainty, decoder, seed):
    """The `model` entry: an OrderedDict in which all modalities' decoder tensors are one."""
    rng = torch.Generator().manual_seed(seed)
    out, k, (d, depths) = collections.OrderedDict(), patch // 8, (size["dims"], size["depths"])

    def put(name, *shape, fan=0, centre=0.0):
        out[name] = centre + torch.randn(shape, generator=rng) * ((fan**-0.5) if fan else 0.3)

    def norm(name, n):
        put(f"{name}.weight", n, centre=1.0)
        put(f"{name}.bias", n)

    put("mask_token", 1, decoder, 1, 1)
    if uncertainty:
        put("loss_fn.log_vars", len(outputs))
    for i in range(3):
        norm(f"encoder.downsample_layers.{i}.0.ln", d[i])
        put(f"encoder.downsample_layers.{i}.1.kernel", 4, d[i], d[i + 1], fan=4 * d[i])
        put(f"encoder.downsample_layers.{i}.1.bias", 1, d[i + 1])
    put("encoder.initial_conv.0.kernel", 9, bands, d[0], fan=9 * bands)
    put("encoder.initial_conv.0.bias", 1, d[0])
    norm("encoder.initial_conv.1.ln", d[0])
    put("encoder.stem.0.kernel", k * k, d[0], fan=k * k)
    put("encoder.stem.0.bias", 1, d[0])
    norm("encoder.stem.1.ln", d[0])
    for s in range(4):
        for b in range(depths[s]):
            name = f"encoder.stages.{s}.{b}"
            put(f"{name}.dwconv.kernel", 49, d[s], fan=49)
            put(f"{name}.dwconv.bias", 1, d[s])
            norm(f"{name}.norm.ln", d[s])
            put(f"{name}.pwconv1.linear.weight", 4 * d[s], d[s], fan=d[s])
            put(f"{name}.pwconv1.linear.bias", 4 * d[s])
            put(f"{name}.pwconv2.linear.weight", d[s], 4 * d[s], fan=4 * d[s])
            put(f"{name}.pwconv2.linear.bias", d[s])
            put(f"{name}.grn.gamma", 1, 4 * d[s])
            put(f"{name}.grn.beta", 1, 4 * d[s])
    put("proj.weight", decoder, d[3], 1, 1, fan=d[3])
    put("proj.bias", decoder)
    first = f"decoder_dict.{outputs[0]}.0"
    put(f"{first}.dwconv.weight", decoder, 1, 7, 7, fan=49)
    put(f"{first}.dwconv.bias", decoder)
    norm(f"{first}.norm", decoder)
    put(f"{first}.pwconv1.weight", 4 * decoder, decoder, fan=decoder)
    put(f"{first}.pwconv1.bias", 4 * decoder)
    put(f"{first}.grn.gamma", 1, 1, 1, 4 * decoder)
    put(f"{first}.grn.beta", 1, 1, 1, 4 * decoder)
    put(f"{first}.pwconv2.weight", decoder, 4 * decoder, fan=4 * decoder)
    put(f"{first}.pwconv2.bias", decoder)
    for other in outputs[1:]:
        for name in [n for n in out if n.startswith(f"{first}.")]:
            out[name.replace(first, f"decoder_dict.{other}.0")] = out[name]
    for name in outputs:
        n = IMAGE.get(name) or patch * patch * (bands if name == "sentinel2" else PIXEL[name])
        put(f"pred_dict.{name}.weight", n, decoder, *([] if name in IMAGE else [1, 1]), fan=decoder)
        put(f"pred_dict.{name}.bias", n)
    if any(name in IMAGE for name in outputs):
        norm("layer_norm_tmp", decoder)
    out._metadata = collections.OrderedDict([("", dict(version=1)), ("encoder", dict(version=1))])
    return out


def save(path, model):
    """As MMEarth's training saves: beside the model an optimiser, a scaler and the arguments with paths in them."""
    some = [torch.nn.Parameter(t.clone()) for t in list(model.values())[:3]]
    optimiser = torch.optim.AdamW(some, lr=2.4e-3, betas=(0.9, 0.95))
    sum((p**2).sum() for p in some).backward()
    optimiser.step()
    args = argparse.Namespace(
        batch_size=256, blr=1.5e-4, epochs=200, norm_pix_loss=True, device="cuda", distributed=False, start_epoch=0,
        output_dir=pathlib.PosixPath("results/pt"), data_dir=pathlib.PosixPath("data"), loss_aggr="uncertainty", resume=None,
        inp_modalities={"sentinel2": ["B1", "B2"]}, big=2**70, ratio=0.6,
    )
    scaler = dict(scale=65536.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000, _growth_tracker=11)
    torch.save(dict(model=model, optimizer=optimiser.state_dict(), epoch=199, scaler=scaler, args=args), path)


def convolution(x, kernel, bias, stride, pad):
    """[batch, height, width, in] by a sum over the offsets of [k*k, in, out] or, depthwise, [k*k, channels]."""
    k = round(len(kernel) ** 0.5)
    x = F.pad(x, (0, 0, pad, pad, pad, pad))
    out = (x.shape[1] - k) // stride + 1
    total = 0
    for offset in range(k * k):
        row, column = offset % k, offset // k
        part = x[:, row : row + stride * (out - 1) + 1 : stride, column : column + stride * (out - 1) + 1 : stride]
        total = total + (part @ kernel[offset] if kernel.dim() == 3 else part * kernel[offset])
    return total + bias.reshape(-1)


def norm(x, p, name):
    return F.layer_norm(x, (x.shape[-1],), p[f"{name}.weight"], p[f"{name}.bias"], 1e-6)


def response(x, gamma, beta, eps):
    g = (x**2).sum((1, 2), keepdim=True).sqrt()
    return gamma.reshape(-1) * (x * (g / (g.mean(-1, keepdim=True) + eps))) + beta.reshape(-1) + x


def encode(x, p, depths, patch, padding, eps, visible=None):
    """The last map [batch, g, g, d] of normalised tiles [batch, bands, height, width]; `visible` [batch, side, side] is 1 where a
    patch is seen."""

    def hide(t, cells):
        return t if visible is None else t * visible.repeat_interleave(cells, 1).repeat_interleave(cells, 2)[..., None]

    k, same = patch // 8, padding == "same"
    x = hide(x.permute(0, 2, 3, 1), patch)
    x = convolution(x, p["encoder.initial_conv.0.kernel"], p["encoder.initial_conv.0.bias"], 1, int(same))
    x = hide(F.gelu(norm(x, p, "encoder.initial_conv.1.ln")), patch)
    x = convolution(x, p["encoder.stem.0.kernel"], p["encoder.stem.0.bias"], k, 0 if same else k // 2)
    x = hide(norm(x, p, "encoder.stem.1.ln"), 8)
    for s, depth in enumerate(depths):
        cells = 8 >> s
        if s:
            name = f"encoder.downsample_layers.{s - 1}"
            x = hide(norm(x, p, f"{name}.0.ln"), 2 * cells)
            x = hide(convolution(x, p[f"{name}.1.kernel"], p[f"{name}.1.bias"], 2, 0), cells)
        for b in range(depth):
            name = f"encoder.stages.{s}.{b}"
            y = hide(convolution(x, p[f"{name}.dwconv.kernel"], p[f"{name}.dwconv.bias"], 1, 3), cells)
            y = norm(y, p, f"{name}.norm.ln")
            y = F.gelu(F.linear(y, p[f"{name}.pwconv1.linear.weight"], p[f"{name}.pwconv1.linear.bias"]))
            y = response(hide(y, cells), p[f"{name}.grn.gamma"], p[f"{name}.grn.beta"], eps)
            x = hide(x + F.linear(y, p[f"{name}.pwconv2.linear.weight"], p[f"{name}.pwconv2.linear.bias"]), cells)
    return x


def embed(x, p, depths, patch, padding, eps):
    """Mean over positions and a LayerNorm without weights, which the checkpoints do not have."""
    y = encode(x, p, depths, patch, padding, eps).mean((1, 2))
    return F.layer_norm(y, (y.shape[-1],), eps=1e-6)


def series(n, shape):
    """Numbers from -1 to 1 that Rust can make too."""
    i = np.arange(n, n + np.prod(shape), dtype=np.int64)
    return torch.tensor((i * 7919 % 2003) / 1001.0 - 1.0).reshape(shape)


def losses(p, depths, patch, x, visible, outputs, channels):
    """MP-MAE's losses in the order of the outputs. Targets are `series` from task number x 1000 on; classes are their ranks."""
    z = encode(x, p, depths, patch, "same", 1e-6, visible)
    z = F.linear(z, p["proj.weight"][:, :, 0, 0], p["proj.bias"])
    hidden = 1 - visible[..., None]
    z = z * (1 - hidden) + p["mask_token"].reshape(-1) * hidden
    # Each modality through its own entry: that they are one is for the importer to find.
    values, batch, side = [], len(x), x.shape[-1]
    hidden = hidden.reshape(-1) == 1
    for at, name in enumerate(outputs):
        d = f"decoder_dict.{name}.0"
        y = F.conv2d(z.permute(0, 3, 1, 2), p[f"{d}.dwconv.weight"], p[f"{d}.dwconv.bias"], padding=3, groups=z.shape[-1])
        y = norm(y.permute(0, 2, 3, 1), p, f"{d}.norm")
        y = F.gelu(F.linear(y, p[f"{d}.pwconv1.weight"], p[f"{d}.pwconv1.bias"]))
        y = response(y, p[f"{d}.grn.gamma"], p[f"{d}.grn.beta"], 1e-4)
        y = z + F.linear(y, p[f"{d}.pwconv2.weight"], p[f"{d}.pwconv2.bias"])
        w, b = p[f"pred_dict.{name}.weight"].flatten(1), p[f"pred_dict.{name}.bias"]
        if name in IMAGE:
            y = F.linear(norm(y, p, "layer_norm_tmp").mean((1, 2)), w, b)
            if name in CLASSES:
                target = ((series(at * 1000, (batch,)) + 1) * 0.499999 * IMAGE[name]).long()
                values.append(F.cross_entropy(y, target))
            else:
                values.append(F.mse_loss(y, series(at * 1000, y.shape)))
            continue
        n, cells = channels.get(name, PIXEL[name]), side // patch
        y = F.linear(y, w, b).reshape(-1, patch, patch, n)[hidden]
        shape = (batch, side, side) if name in CLASSES else (batch, n, side, side)
        target = series(at * 1000, shape)
        if name in CLASSES:
            target = ((target + 1) * 0.499999 * n).long()
            target = target.reshape(batch, cells, patch, cells, patch).permute(0, 1, 3, 2, 4).reshape(-1, patch * patch)[hidden]
            values.append(F.cross_entropy(y.reshape(-1, n), target.reshape(-1)))
            continue
        target = target.reshape(batch, n, cells, patch, cells, patch).permute(0, 2, 4, 3, 5, 1).reshape(-1, patch * patch * n)[hidden]
        if name == "sentinel2":
            target = (target - target.mean(1, keepdim=True)) / (target.var(1, keepdim=True) + 1e-6).sqrt()
        values.append(((y.reshape(len(target), -1) - target) ** 2).mean(1).mean())
    s = p.get("loss_fn.log_vars")
    total = sum(values) if s is None else sum(torch.exp(-s) * torch.stack(values) + s)
    return torch.stack([*values, total])


def dense(model):
    """The encoder under the names of Meta's dense model."""
    out = {}
    for name, tensor in model.items():
        if not name.startswith("encoder."):
            continue
        name = name.removeprefix("encoder.").replace(".ln.", ".").replace(".linear.", ".")
        if name.endswith(".kernel"):
            name, k = name.replace("kernel", "weight"), round(len(tensor) ** 0.5)
            split = tensor.reshape(k, k, *tensor.shape[1:])
            tensor = split.permute(3, 2, 1, 0) if tensor.dim() == 3 else split.permute(2, 1, 0)[:, None]
        elif ".grn." in name:
            tensor = tensor[None, None]
        elif tensor.dim() == 2 and name.endswith(".bias"):
            tensor = tensor[0]
        # Not contiguous on purpose: a permuted tensor is saved with its strides.
        out[name] = tensor
    return out


def timm_names(tensors):
    out = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[0] == "downsample_layers":
            name = f"stages.{int(parts[1]) + 1}.downsample.{'.'.join(parts[2:])}"
        elif parts[0] == "stages":
            inner = ".".join(parts[3:])
            for a, b in [("dwconv", "conv_dw"), ("pwconv1", "mlp.fc1"), ("pwconv2", "mlp.fc2"), ("grn.gamma", "mlp.grn.weight"),
                         ("grn.beta", "mlp.grn.bias")]:
                inner = inner.replace(a, b)
            name = f"stages.{parts[1]}.blocks.{parts[2]}.{inner}"
        elif parts[0] == "norm":
            name = f"head.{name}"
        out[name] = tensor.flatten() if ".grn." in name else tensor
    return out


def doubles(model):
    return {name: tensor.detach().double() for name, tensor in model.items()}


def meta_names(tensors):
    """timm's tensors as Meta's ConvNeXt V2 holds them."""
    out = {}
    for name, tensor in tensors.items():
        for a, b in [("stem.", "downsample_layers.0."), (".blocks.", "."), ("conv_dw", "dwconv"), ("mlp.fc", "pwconv"),
                     ("mlp.grn.weight", "grn.gamma"), ("mlp.grn.bias", "grn.beta"), ("head.norm.", "norm."), ("head.fc.", "head.")]:
            name = name.replace(a, b)
        parts = name.split(".")
        if "downsample" in parts:
            name = f"downsample_layers.{parts[1]}.{'.'.join(parts[3:])}"
        if "pwconv" in name:
            tensor = tensor.flatten(1) if name.endswith("weight") else tensor
        out[name] = tensor.reshape(1, 1, 1, -1) if ".grn." in name else tensor
    return out


def patchify(folder):
    """Files with a patchify stem under timm's and Meta's names, and the embedding of two tiles of 64 pixels."""
    import timm.models.convnext as convnext

    model = convnext.ConvNeXt(num_classes=5, use_grn=True, ls_init_value=None, conv_mlp=True, **SMALL).eval()
    rng = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():
        scale = p[0].numel() ** -0.5 if p.dim() == 4 else 0.3
        p.data = torch.randn(p.shape, generator=rng) * scale + float(name.endswith("weight") and p.dim() == 1 and "grn" not in name)
    timm_tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file({k: np.ascontiguousarray(v.numpy()) for k, v in timm_tensors.items()}, folder / "patchify-timm.safetensors")
    meta_tensors = meta_names(timm_tensors)
    again = convnext.checkpoint_filter_fn({"model": meta_tensors}, model)
    assert again.keys() == timm_tensors.keys() and all(torch.equal(again[k].flatten(), v.flatten()) for k, v in timm_tensors.items())
    torch.save({"model": meta_tensors}, folder / "patchify-meta.pth")
    with torch.no_grad():
        model = model.double()
        y = model.forward_head(model.forward_features(series(17, (2, 3, 64, 64))), pre_logits=True)
    return y.numpy().astype(np.float32)


def fixtures(folder):
    folder.mkdir(parents=True, exist_ok=True)
    out = {"patchify": patchify(folder)}
    cases = [("all-p8", 8, 12, ORDER, True, 24), ("rgb-p16", 16, 3, ["sentinel2"], False, 48)]
    for seed, (name, patch, bands, outputs, uncertainty, side) in enumerate(cases):
        model = state_dict(SMALL, patch, bands, outputs, uncertainty, 8, seed)
        save(folder / f"{name}.pth", model)
        p, x = doubles(model), series(17, (2, bands, side, side))
        for padding, eps in [("same", 1e-6), ("none", 1e-4)]:
            out[f"{name}.{padding}"] = embed(x, p, SMALL["depths"], patch, padding, eps).numpy().astype(np.float32)
        visible = torch.zeros(2, 9, dtype=torch.float64)
        visible[0, [0, 4, 7]], visible[1, [2, 3, 8]] = 1, 1
        values = losses(p, SMALL["depths"], patch, x, visible.reshape(2, 3, 3), outputs, {"sentinel2": bands})
        out[f"{name}.losses"] = values.numpy().astype(np.float32)
        if name == "rgb-p16":
            plain = dense(model)
            plain["norm.weight"], plain["norm.bias"] = torch.full((16,), 2.0), torch.full((16,), 0.5)
            torch.save({"model": plain | {"head.weight": torch.zeros(5, 16), "head.bias": torch.zeros(5)}}, folder / "meta.pth")
            timm = timm_names(plain) | {"head.fc.weight": torch.zeros(5, 16), "head.fc.bias": torch.zeros(5)}
            save_file({k: np.ascontiguousarray(v.numpy()) for k, v in timm.items()}, folder / "timm.safetensors")
    save_file(out, folder / "expected.safetensors")


def full(trainer):
    """Imports, embeds and exports each released configuration, and compares with PyTorch and ONNX Runtime."""
    import onnxruntime

    def run(*arguments):
        done = subprocess.run([trainer, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, arguments))}\n{done.stderr}")
        return done.stdout

    def relative(a, b):
        return max(np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1))

    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, float64 reference, 4 tiles each\n")
    print("| configuration | encoder tensors, parameters | whole model | same | none | ONNX Runtime to PyTorch | ONNX Runtime to trainer | tract to trainer |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for seed, (name, size, patch, bands, outputs) in enumerate(RELEASED):
        with tempfile.TemporaryDirectory() as desk:
            desk = pathlib.Path(desk)
            model = state_dict(size, patch, bands, outputs, "unweighted" not in name, 512, 100 + seed)
            save(desk / "checkpoint-199.pth", model)
            p, side, cells = doubles(model), 7 * patch, []
            rng = np.random.default_rng(seed)
            for padding, eps in [("same", 1e-6), ("none", 1e-4)]:
                level = ["l2a", "l1c"][seed % 2]
                said = run("import", "--checkpoint", desk / "checkpoint-199.pth", "--out", desk / "e.safetensors", "--level", level,
                           "--stem-padding", padding, *(["--whole", desk / "w.safetensors"] if padding == "same" else []))
                with open(desk / "e.safetensors", "rb") as file:
                    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
                cards = json.loads(header["__metadata__"]["nadir"])["bands"]
                mean, std = (np.array([c[key] for c in cards], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
                tiles = np.clip(mean + std * rng.standard_normal((4, bands, side, side)), 1, 65535).astype(np.uint16)
                np.save(desk / "tiles.npy", tiles)
                run("embed", "--model", desk / "e.safetensors", "--tiles", desk / "tiles.npy", "--out", desk / "y.npy")
                ours = np.load(desk / "y.npy").astype(np.float64)
                x = torch.tensor((tiles.astype(np.float64) - mean) / std)
                theirs = embed(x, p, size["depths"], patch, padding, eps).numpy()
                cells.append(f"{relative(ours, theirs):.1e}")
                if padding == "same":
                    counts = said.splitlines()[0].split("; ")[1].split(", no ")[0]
                    whole = said.splitlines()[1].split(" parameters")[0].removeprefix("whole model: ")
                    unique = sum(t.numel() for t in {t.data_ptr(): t for t in model.values()}.values())
                    written = load_file(desk / "w.safetensors")
                    fresh = 0 if "layer_norm_tmp.weight" in model else 1024
                    fresh += 0 if "loss_fn.log_vars" in model else len(outputs)
                    assert sum(t.size for t in written.values()) == unique + fresh, "the whole model has another size"
            said = run("export", "--model", desk / "e.safetensors", "--onnx", desk / "e.onnx")
            session = onnxruntime.InferenceSession(str(desk / "e.onnx"))
            y = session.run(None, {"tiles": tiles.astype(np.float32)})[0].astype(np.float64)
            tract = said.split("at most ")[1].split(" ")[0]
            cells += [f"{relative(y, theirs):.1e}", f"{relative(y, ours):.1e}", tract]
        print(f"| {name} | {counts} | {whole} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("fixtures", "full"):
        sys.exit(__doc__)
    fixtures(pathlib.Path(sys.argv[2])) if sys.argv[1] == "fixtures" else full(sys.argv[2])
