"""Writes mmearth.safetensors: losses and gradients of MP-MAE with MMEarth's twelve tasks, for the trainer's tests.

The model of make_vectors.py in float64, with Global Response Normalization of the encoder over the batch (MMEarth's sparse
semantics) and per sample. Every task misses values somewhere, one modality is missing for a whole tile, the log variances
are not 0.

    python make_mmearth_vectors.py [FOLDER]      (torch, numpy and safetensors; a few seconds)
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from make_vectors import LN_EPS, block_shapes, encoder_shapes, mpmae_losses, random_weights, tensors
from safetensors.numpy import save_file

TASKS = [
    dict(name="sentinel2", kind="pixel_regression", n=12, normalise=True),
    dict(name="sentinel1", kind="pixel_regression", n=8, normalise=False),
    dict(name="aster", kind="pixel_regression", n=2, normalise=False),
    dict(name="era5", kind="image_regression", n=12),
    dict(name="dynamic_world", kind="pixel_classification", n=9),
    dict(name="canopy_height_eth", kind="pixel_regression", n=2, normalise=False),
    dict(name="lat", kind="image_regression", n=2),
    dict(name="lon", kind="image_regression", n=2),
    dict(name="biome", kind="image_classification", n=14),
    dict(name="eco_region", kind="image_classification", n=846),
    dict(name="month", kind="image_regression", n=2),
    dict(name="esa_worldcover", kind="pixel_classification", n=11),
]
BATCH, SIDE, PATCH, KEPT, DECODER = 3, 16, 8, 2, 6


def target(task, rng):
    """The truth of a task with values missing at random; the last tile has nothing of Sentinel-1, biome and latitude."""
    pixels = (SIDE, SIDE) if task["kind"].startswith("pixel") else ()
    if task["kind"].endswith("classification"):
        labels = rng.integers(0, task["n"], (BATCH, *pixels))
        if pixels:
            labels[rng.random(labels.shape) < 0.1] = -1
    else:
        labels = rng.standard_normal((BATCH, task["n"], *pixels)).astype(np.float32)
        labels[rng.random(labels.shape) < 0.1] = np.nan
    if task["name"] in ("sentinel1", "biome", "lat"):
        labels[-1] = -1 if labels.dtype == np.int64 else np.nan
    return labels


def main(folder):
    arch = dict(tile_size=SIDE, patch_size=PATCH, stem_padding="same", dims=[4, 6, 8, 10], depths=[1, 1, 2, 1])
    arch |= dict(grn_eps=1e-6, ln_eps=LN_EPS)
    rng = np.random.default_rng(12)
    shapes = {f"encoder.{k}": v for k, v in encoder_shapes(arch, 12).items() if not k.startswith("norm.")}
    shapes |= block_shapes("decoder.0", DECODER)
    shapes |= {"proj.weight": (DECODER, 10), "proj.bias": (DECODER,), "mask_token": (1, DECODER, 1, 1)}
    shapes |= {"layer_norm_tmp.weight": (DECODER,), "layer_norm_tmp.bias": (DECODER,), "log_vars": (len(TASKS),)}
    for task in TASKS:
        width = task["n"] * (PATCH**2 if task["kind"].startswith("pixel") else 1)
        shapes |= {f"pred.{task['name']}.weight": (width, DECODER), f"pred.{task['name']}.bias": (width,)}
    weights = random_weights(shapes, rng)
    x = rng.standard_normal((BATCH, 12, SIDE, SIDE)).astype(np.float32)
    patches = SIDE // PATCH
    visible = np.stack([np.sort(rng.permutation(patches**2)[:KEPT]) for _ in range(BATCH)])
    mask = np.zeros((BATCH, patches**2))
    np.put_along_axis(mask, visible, 1, 1)
    mask = torch.tensor(mask).reshape(BATCH, patches, patches)
    targets = [target(task, rng) for task in TASKS]
    as_torch = [torch.tensor(t.astype(np.float64) if t.dtype == np.float32 else t) for t in targets]
    out = {"x": x, "visible": visible.astype(np.int16)}
    out |= {f"target.{t['name']}": v if v.dtype == np.float32 else v.astype(np.int16) for t, v in zip(TASKS, targets)}
    out |= {f"weights.{k}": v for k, v in weights.items()}
    for grn, over in [("batch", (0, 1, 2)), ("sample", (1, 2))]:
        p = tensors(weights, grad=True)
        x64 = torch.tensor(x.astype(np.float64))
        losses, total = mpmae_losses(p, arch, x64, mask, as_torch, 1e-4, TASKS, over)
        total.backward()
        out[f"{grn}.losses"] = np.array([l.item() for l in losses], np.float32)
        out[f"{grn}.run"] = np.array([total.item()], np.float32)
        out |= {f"{grn}.grads.{k}": v.grad.numpy().astype(np.float32) for k, v in p.items()}
    about = dict(arch=arch, bands=12, decoder_dim=DECODER, decoder_grn_eps=1e-4, tasks=TASKS)
    save_file(out, folder / "mmearth.safetensors", metadata={"about": json.dumps(about)})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
