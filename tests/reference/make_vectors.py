"""Writes the vectors against which the trainer and the runtime are tested.

An implementation of the encoder and of MP-MAE in PyTorch that shares nothing with the Rust code: dense maps
[batch, channels, height, width], hidden positions multiplied by 0, everything in float64. Results are stored as float32.

    python make_vectors.py [FOLDER]      (torch, numpy and safetensors; a few seconds)
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

torch.set_default_dtype(torch.float64)
LN_EPS = 1e-6


def norm2d(x, p, name):
    """LayerNorm over the channels of [batch, channels, height, width]."""
    w, b = p[f"{name}.weight"], p[f"{name}.bias"]
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), w, b, LN_EPS).permute(0, 3, 1, 2)


def block(x, p, name, grn_eps, mask=None, over=(1, 2)):
    """One ConvNeXt V2 block; `mask` is 1 at the visible positions, [batch, 1, height, width].

    GRN's norms are taken over the axes `over` of [batch, height, width, channels]: of each sample, or of the batch too."""
    hide = (lambda t: t) if mask is None else (lambda t: t * mask)
    y = F.conv2d(hide(x), p[f"{name}.dwconv.weight"], p[f"{name}.dwconv.bias"], padding=3, groups=x.shape[1])
    y = norm2d(hide(y), p, f"{name}.norm").permute(0, 2, 3, 1)
    y = F.gelu(F.linear(y, p[f"{name}.pwconv1.weight"], p[f"{name}.pwconv1.bias"]))
    if mask is not None:
        y = y * mask.permute(0, 2, 3, 1)
    g = torch.linalg.vector_norm(y, dim=over, keepdim=True)
    n = g / (g.mean(dim=-1, keepdim=True) + grn_eps)
    y = p[f"{name}.grn.gamma"] * (y * n) + p[f"{name}.grn.beta"] + y
    y = F.linear(y, p[f"{name}.pwconv2.weight"], p[f"{name}.pwconv2.bias"])
    return hide(x + y.permute(0, 3, 1, 2))


def encode(x, p, arch, patch_mask=None, over=(1, 2)):
    """The last stage's map; `patch_mask` is 1 for visible patches, [batch, side, side]."""
    k = arch["patch_size"] // 8
    same = arch["stem_padding"] == "same"

    def at(cells):
        return patch_mask[:, None].repeat_interleave(cells, 2).repeat_interleave(cells, 3)

    def hide(t, cells):
        return t if patch_mask is None else t * at(cells)

    x = hide(x, arch["patch_size"])
    x = F.conv2d(x, p["initial_conv.0.weight"], p["initial_conv.0.bias"], padding=1 if same else 0)
    x = hide(F.gelu(norm2d(x, p, "initial_conv.1")), arch["patch_size"])
    pad = 0 if same else k // 2
    x = F.conv2d(x, p["stem.0.weight"], p["stem.0.bias"], stride=k, padding=pad, groups=x.shape[1])
    x = hide(norm2d(x, p, "stem.1"), 8)
    for stage, depth in enumerate(arch["depths"]):
        cells = 8 >> stage
        if stage:
            name = f"downsample_layers.{stage - 1}"
            x = hide(norm2d(x, p, f"{name}.0"), 2 * cells)
            x = hide(F.conv2d(x, p[f"{name}.1.weight"], p[f"{name}.1.bias"], stride=2), cells)
        for b in range(depth):
            mask = None if patch_mask is None else at(cells)
            x = block(x, p, f"stages.{stage}.{b}", arch["grn_eps"], mask, over)
    return x


def embed(x, p, arch):
    d = arch["dims"][3]
    return F.layer_norm(encode(x, p, arch).mean((2, 3)), (d,), p["norm.weight"], p["norm.bias"], LN_EPS)


def encoder_shapes(arch, bands):
    d, k, shapes = arch["dims"], arch["patch_size"] // 8, {}

    def pair(name, *weight):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    pair("initial_conv.0", d[0], bands, 3, 3)
    pair("initial_conv.1", d[0])
    pair("stem.0", d[0], 1, k, k)
    pair("stem.1", d[0])
    for s in range(4):
        if s:
            pair(f"downsample_layers.{s - 1}.0", d[s - 1])
            pair(f"downsample_layers.{s - 1}.1", d[s], d[s - 1], 2, 2)
        for b in range(arch["depths"][s]):
            shapes |= block_shapes(f"stages.{s}.{b}", d[s])
    pair("norm", d[3])
    return shapes


def block_shapes(name, d):
    shapes = {}
    for part, weight in [("dwconv", (d, 1, 7, 7)), ("norm", (d,)), ("pwconv1", (4 * d, d)), ("pwconv2", (d, 4 * d))]:
        shapes[f"{name}.{part}.weight"], shapes[f"{name}.{part}.bias"] = weight, weight[:1]
    for part in ["gamma", "beta"]:
        shapes[f"{name}.grn.{part}"] = (1, 1, 1, 4 * d)
    return shapes


def random_weights(shapes, rng):
    """Every tensor different from its usual start, and large enough that nothing drowns in rounding."""
    weights = {}
    for name, shape in sorted(shapes.items()):
        z = rng.standard_normal(shape)
        if name.endswith(".weight") and len(shape) == 1:
            z = 1 + 0.3 * z
        elif name.endswith(".weight"):
            z = z / np.sqrt(np.prod(shape[1:]))
        else:
            z = 0.3 * z
        weights[name] = z.astype(np.float32)
    return weights


def tensors(weights, grad=False):
    return {k: torch.tensor(v.astype(np.float64), requires_grad=grad) for k, v in weights.items()}


def encoder_vectors(folder):
    base = dict(dims=[8, 16, 24, 32], depths=[1, 1, 2, 1], grn_eps=1e-6, ln_eps=LN_EPS)
    cases = {
        "p8_same": dict(tile_size=24, patch_size=8, stem_padding="same"),
        "p8_none": dict(tile_size=24, patch_size=8, stem_padding="none"),
        "p16_same": dict(tile_size=32, patch_size=16, stem_padding="same"),
        "p16_none": dict(tile_size=48, patch_size=16, stem_padding="none"),
        "p32_none": dict(tile_size=64, patch_size=32, stem_padding="none", grn_eps=1e-4),
    }
    rng = np.random.default_rng(1)
    bands, out, shared = 5, {}, None
    for name, case in cases.items():
        case |= {k: v for k, v in base.items() if k not in case}
        shapes = encoder_shapes(case, bands)
        fresh = random_weights(shapes, rng)
        shared = shared or fresh
        stem = fresh["stem.0.weight"]
        weights = shared | {"stem.0.weight": stem}
        x = rng.standard_normal((2 if case["tile_size"] < 40 else 1, bands, case["tile_size"], case["tile_size"]))
        x = x.astype(np.float32)
        y = embed(torch.tensor(x.astype(np.float64)), tensors(weights), case)
        out |= {f"{name}.x": x, f"{name}.y": y.numpy().astype(np.float32), f"{name}.stem.0.weight": stem}
    out |= {f"weights.{k}": v for k, v in shared.items() if k != "stem.0.weight"}
    save_file(out, folder / "encoder.safetensors", metadata={"cases": json.dumps(cases)})


TASKS = [
    dict(name="bands", kind="pixel_regression", n=3, normalise=True),
    dict(name="height", kind="pixel_regression", n=1, normalise=False),
    dict(name="cover", kind="pixel_classification", n=4),
    dict(name="climate", kind="image_regression", n=5),
    dict(name="biome", kind="image_classification", n=6),
    dict(name="unknown", kind="image_classification", n=3),
]


def mpmae_losses(p, arch, x, patch_mask, targets, grn_eps, tasks=None, over=(1, 2)):
    tasks = tasks or TASKS
    encoder = {k.removeprefix("encoder."): v for k, v in p.items() if k.startswith("encoder.")}
    z = encode(x, encoder, arch, patch_mask, over)
    z = F.conv2d(z, p["proj.weight"][:, :, None, None], p["proj.bias"])
    hidden = 1 - patch_mask[:, None]
    z = z * (1 - hidden) + p["mask_token"] * hidden
    z = block(z, p, "decoder.0", grn_eps)
    pooled = norm2d(z, p, "layer_norm_tmp").mean((2, 3))
    side, patch, losses = patch_mask.shape[1], arch["patch_size"], []
    hidden = hidden.reshape(-1) == 1
    for task, target in zip(tasks, targets):
        w, b, n = p[f"pred.{task['name']}.weight"], p[f"pred.{task['name']}.bias"], task["n"]
        if task["kind"].startswith("image"):
            y = F.linear(pooled, w, b)
            if task["kind"] == "image_regression":
                known = ~torch.isnan(target)
                losses.append(F.mse_loss(y[known], target[known]))
            else:
                known = target >= 0
                losses.append(F.cross_entropy(y, target, ignore_index=-1) if known.any() else torch.zeros(()))
            continue
        y = F.conv2d(z, w[:, :, None, None], b).permute(0, 2, 3, 1).reshape(-1, patch, patch, n)[hidden]
        if task["kind"] == "pixel_classification":
            t = target.reshape(-1, side, patch, side, patch).permute(0, 1, 3, 2, 4).reshape(-1, patch * patch)[hidden]
            losses.append(F.cross_entropy(y.reshape(-1, n), t.reshape(-1), ignore_index=-1))
            continue
        t = target.reshape(-1, n, side, patch, side, patch).permute(0, 2, 4, 3, 5, 1)
        t = t.reshape(-1, patch * patch * n)[hidden]
        per_patch = []
        for truth, guess in zip(t, y.reshape(len(t), -1)):
            known = ~torch.isnan(truth)
            if not known.any():
                continue
            truth, guess = truth[known], guess[known]
            if task["normalise"]:
                truth = (truth - truth.mean()) / (truth.var() + 1e-6).sqrt()
            per_patch.append(((guess - truth) ** 2).mean())
        losses.append(torch.stack(per_patch).mean())
    total = sum(torch.exp(-s) * l + s for s, l in zip(p["log_vars"], losses) if l.item() != 0)
    return losses, total


def mpmae_vectors(folder):
    arch = dict(tile_size=48, patch_size=16, stem_padding="same", dims=[4, 8, 12, 16], depths=[1, 1, 2, 1])
    arch |= dict(grn_eps=1e-6, ln_eps=LN_EPS)
    rng = np.random.default_rng(2)
    bands, batch, side, d, grn_eps = 3, 3, 3, 12, 1e-4
    shapes = {f"encoder.{k}": v for k, v in encoder_shapes(arch, bands).items() if not k.startswith("norm.")}
    shapes |= block_shapes("decoder.0", d)
    shapes |= {"proj.weight": (d, 16), "proj.bias": (d,), "mask_token": (1, d, 1, 1), "log_vars": (len(TASKS),)}
    shapes |= {"layer_norm_tmp.weight": (d,), "layer_norm_tmp.bias": (d,)}
    for task in TASKS:
        width = task["n"] * (arch["patch_size"] ** 2 if task["kind"].startswith("pixel") else 1)
        shapes |= {f"pred.{task['name']}.weight": (width, d), f"pred.{task['name']}.bias": (width,)}
    weights = random_weights(shapes, rng)
    x = rng.standard_normal((batch, bands, 48, 48)).astype(np.float32)
    visible = np.stack([np.sort(rng.permutation(side * side)[:3]) for _ in range(batch)])
    mask = np.zeros((batch, side * side))
    np.put_along_axis(mask, visible, 1, 1)
    pixels, height = (rng.standard_normal((batch, c, 48, 48)).astype(np.float32) for c in (3, 1))
    pixels[rng.random(pixels.shape) < 0.02] = np.nan
    height[rng.random(height.shape) < 0.1] = np.nan
    first_hidden = int(np.flatnonzero(mask[1] == 0)[0])
    top, left = first_hidden // side * 16, first_hidden % side * 16
    height[1, :, top : top + 16, left : left + 16] = np.nan
    cover = rng.integers(-1, 4, (batch, 48, 48))
    climate = rng.standard_normal((batch, 5)).astype(np.float32)
    climate[0, 2] = climate[2, 4] = np.nan
    targets = [pixels, height, cover, climate, np.array([2, -1, 5]), np.array([-1, -1, -1])]
    as_torch = [torch.tensor(t.astype(np.float64) if t.dtype == np.float32 else t) for t in targets]
    patch_mask = torch.tensor(mask).reshape(batch, side, side)
    p = tensors(weights, grad=True)
    x64 = torch.tensor(x.astype(np.float64))
    losses, total = mpmae_losses(p, arch, x64, patch_mask, as_torch, grn_eps)
    total.backward()
    grads = {k: np.zeros(v.shape) if v.grad is None else v.grad.numpy().copy() for k, v in p.items()}
    decay = [v for k, v in p.items() if v.dim() > 1 and not k.endswith(".bias")]
    plain = [v for k, v in p.items() if not (v.dim() > 1 and not k.endswith(".bias"))]
    groups = [dict(params=decay, weight_decay=0.05), dict(params=plain, weight_decay=0.0)]
    optimiser, run = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95)), [total.item()]
    for _ in range(3):
        optimiser.step()
        optimiser.zero_grad()
        _, total = mpmae_losses(p, arch, x64, patch_mask, as_torch, grn_eps)
        total.backward()
        run.append(total.item())
    out = {"x": x, "visible": visible.astype(np.int64), "losses": np.array([l.item() for l in losses], np.float32)}
    out |= {"run": np.array(run, np.float32)}
    out |= {f"target.{t['name']}": v if v.dtype == np.float32 else v.astype(np.int64) for t, v in zip(TASKS, targets)}
    out |= {f"weights.{k}": v for k, v in weights.items()}
    out |= {f"grads.{k}": v.astype(np.float32) for k, v in grads.items()}
    out = {k: v.astype(np.int8) if v.dtype == np.int64 else v for k, v in out.items()}
    about = dict(arch=arch, bands=bands, decoder_dim=d, decoder_grn_eps=grn_eps, tasks=TASKS)
    save_file(out, folder / "mpmae.safetensors", metadata={"about": json.dumps(about)})


def adamw_vectors(folder):
    """Three steps on given gradients; the parameter `idle` has none in the second."""
    rng = np.random.default_rng(3)
    shapes = {"a.weight": (3, 5), "a.bias": (3,), "grn.gamma": (1, 1, 1, 8), "mask_token": (1, 4, 1, 1)}
    shapes |= {"log_vars": (4,), "idle.weight": (2, 3), "square.bias": (2, 2)}
    weights = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    p = tensors(weights, grad=True)
    decays = ["a.weight", "grn.gamma", "mask_token", "idle.weight"]
    groups = [
        dict(params=[p[k] for k in decays], weight_decay=0.05),
        dict(params=[v for k, v in p.items() if k not in decays], weight_decay=0.0),
    ]
    optimiser, out = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95)), {f"0.{k}": v for k, v in weights.items()}
    for step in range(1, 4):
        for group, lr in zip(optimiser.param_groups, [0.01 * step] * 2):
            group["lr"] = lr
        for k, v in p.items():
            g = (10.0 ** (2 - step) * rng.standard_normal(v.shape)).astype(np.float32)
            v.grad = None if k == "idle.weight" and step == 2 else torch.tensor(g.astype(np.float64))
            if v.grad is not None:
                out[f"{step}.grad.{k}"] = g
        optimiser.step()
        out |= {f"{step}.{k}": v.detach().numpy().astype(np.float32) for k, v in p.items()}
    save_file(out, folder / "adamw.safetensors")


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    encoder_vectors(folder)
    mpmae_vectors(folder)
    adamw_vectors(folder)
