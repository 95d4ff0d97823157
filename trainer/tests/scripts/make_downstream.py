"""Writes ../downstream/vectors.safetensors: the UNet, stochastic depth, losses and metrics as PyTorch and scikit-learn
compute them (needs torch, numpy, scikit-learn and safetensors). The network is written here from its description, in
float64, and rounded to f32 at the end.

    python make_downstream.py
"""

import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, r2_score
from sklearn.neighbors import KNeighborsClassifier

torch.set_default_dtype(torch.float64)
torch.manual_seed(11)
OUT = pathlib.Path(__file__).resolve().parent.parent / "downstream"

BANDS, SIDE, PATCH, CLASSES, BATCH = 3, 32, 16, 4, 2
# Of LayerNorm over two channels almost no gradient is left: the last step has six.
DIMS, DEPTHS = [12, 16, 24, 32], [1, 1, 2, 1]
K = PATCH // 8
EPS = 1e-6
vectors, about = {}, {}


def weight(*shape, scale=0.3):
    return (torch.randn(*shape) * scale).requires_grad_()


def norm(d):
    return (1 + 0.2 * torch.randn(d)).requires_grad_(), weight(d)


encoder = {"initial_conv.0.weight": weight(DIMS[0], BANDS, 3, 3), "initial_conv.0.bias": weight(DIMS[0])}
encoder["initial_conv.1.weight"], encoder["initial_conv.1.bias"] = norm(DIMS[0])
encoder["stem.0.weight"], encoder["stem.0.bias"] = weight(DIMS[0], 1, K, K), weight(DIMS[0])
encoder["stem.1.weight"], encoder["stem.1.bias"] = norm(DIMS[0])
for s, (d, depth) in enumerate(zip(DIMS, DEPTHS)):
    if s > 0:
        c = DIMS[s - 1]
        encoder[f"downsample_layers.{s-1}.0.weight"], encoder[f"downsample_layers.{s-1}.0.bias"] = norm(c)
        encoder[f"downsample_layers.{s-1}.1.weight"] = weight(d, c, 2, 2)
        encoder[f"downsample_layers.{s-1}.1.bias"] = weight(d)
    for b in range(depth):
        p = f"stages.{s}.{b}."
        encoder[p + "dwconv.weight"], encoder[p + "dwconv.bias"] = weight(d, 1, 7, 7, scale=0.1), weight(d)
        encoder[p + "norm.weight"], encoder[p + "norm.bias"] = norm(d)
        encoder[p + "pwconv1.weight"], encoder[p + "pwconv1.bias"] = weight(4 * d, d), weight(4 * d)
        encoder[p + "grn.gamma"], encoder[p + "grn.beta"] = weight(1, 1, 1, 4 * d), weight(1, 1, 1, 4 * d)
        encoder[p + "pwconv2.weight"], encoder[p + "pwconv2.bias"] = weight(d, 4 * d, scale=0.1), weight(d)
encoder["norm.weight"], encoder["norm.bias"] = norm(DIMS[3])

outs = [DIMS[3] // 2, DIMS[2] // 2, DIMS[1] // 2, DIMS[0], DIMS[0] // 2]
joined = [0, DIMS[2], DIMS[1], DIMS[0], DIMS[0]]
decoder, before = {}, DIMS[3]
for i in range(5):
    decoder[f"decoder.{i}.conv.weight"] = weight(outs[i], before + joined[i], 3, 3)
    decoder[f"decoder.{i}.conv.bias"] = weight(outs[i])
    decoder[f"decoder.{i}.norm.weight"], decoder[f"decoder.{i}.norm.bias"] = norm(outs[i])
    before = outs[i]
decoder["head.weight"], decoder["head.bias"] = weight(CLASSES, before), weight(CLASSES)


def channel_norm(x, w, b):
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), w, b, EPS).permute(0, 3, 1, 2)


def block(x, p, factor):
    d = x.shape[1]
    y = F.conv2d(x, encoder[p + "dwconv.weight"], encoder[p + "dwconv.bias"], padding=3, groups=d)
    y = F.layer_norm(y.permute(0, 2, 3, 1), (d,), encoder[p + "norm.weight"], encoder[p + "norm.bias"], EPS)
    y = F.gelu(F.linear(y, encoder[p + "pwconv1.weight"], encoder[p + "pwconv1.bias"]))
    g = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
    n = g / (g.mean(dim=-1, keepdim=True) + EPS)
    y = encoder[p + "grn.gamma"] * (y * n) + encoder[p + "grn.beta"] + y
    y = F.linear(y, encoder[p + "pwconv2.weight"], encoder[p + "pwconv2.bias"]).permute(0, 3, 1, 2)
    return x + y * factor.view(-1, 1, 1, 1)


def maps(x, factors):
    initial = F.conv2d(x, encoder["initial_conv.0.weight"], encoder["initial_conv.0.bias"], padding=1)
    initial = F.gelu(channel_norm(initial, encoder["initial_conv.1.weight"], encoder["initial_conv.1.bias"]))
    y = F.conv2d(initial, encoder["stem.0.weight"], encoder["stem.0.bias"], stride=K, groups=DIMS[0])
    stem = y = channel_norm(y, encoder["stem.1.weight"], encoder["stem.1.bias"])
    out, n = [], 0
    for s in range(4):
        if s > 0:
            q = f"downsample_layers.{s-1}."
            y = channel_norm(y, encoder[q + "0.weight"], encoder[q + "0.bias"])
            y = F.conv2d(y, encoder[q + "1.weight"], encoder[q + "1.bias"], stride=2)
        for b in range(DEPTHS[s]):
            y = block(y, f"stages.{s}.{b}.", factors[n])
            n += 1
        out.append(y)
    return initial, stem, out


def unet(x, factors):
    initial, stem, stages = maps(x, factors)
    y = stages[3]
    for i, (join, factor) in enumerate(zip([stages[2], stages[1], stem, initial, None], [2, 2, 2, K, 1])):
        y = F.interpolate(y, scale_factor=factor, mode="nearest")
        y = F.conv2d(y, decoder[f"decoder.{i}.conv.weight"], decoder[f"decoder.{i}.conv.bias"], padding=1)
        y = F.gelu(channel_norm(y, decoder[f"decoder.{i}.norm.weight"], decoder[f"decoder.{i}.norm.bias"]))
        y = y if join is None else torch.cat([y, join], 1)
    return F.linear(y.permute(0, 2, 3, 1), decoder["head.weight"], decoder["head.bias"])


def gradients(prefix, loss, tensors):
    names = list(tensors)
    grads = torch.autograd.grad(loss, [tensors[n] for n in names], allow_unused=True, retain_graph=True)
    for name, grad in zip(names, grads):
        if grad is not None:
            vectors[prefix + name] = grad


x = torch.randn(BATCH, BANDS, SIDE, SIDE)
factors = torch.tensor([[1.0, 1.0], [1.25, 0.0], [1.0, 1.25], [0.0, 1.6], [1.6, 1.6]])
labels = torch.randint(0, CLASSES, (BATCH, SIDE, SIDE))
labels[0, 3:9] = 255
vectors["x"], vectors["factors"], vectors["map.labels"] = x, factors, labels.double()
out = unet(x, factors)
loss = F.cross_entropy(out.reshape(-1, CLASSES), labels.reshape(-1), ignore_index=255)
vectors["map.output"], about["map.loss"] = out.reshape(-1, CLASSES), loss.item()
gradients("map.gradient.encoder.", loss, encoder)
gradients("map.gradient.", loss, decoder)

head = {"head.weight": weight(CLASSES, DIMS[3]), "head.bias": weight(CLASSES)}
pooled = maps(x, factors)[2][3].mean((2, 3))
out = F.linear(F.layer_norm(pooled, (DIMS[3],), encoder["norm.weight"], encoder["norm.bias"], EPS), *head.values())
vectors["tile.output"] = out
loss = F.cross_entropy(out, torch.tensor([2, 0]), label_smoothing=0.2)
about["tile.loss"] = loss.item()
gradients("tile.gradient.encoder.", loss, encoder)
gradients("tile.gradient.", loss, head)
soft = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]]) * 0.6 + 0.2
about["multi.loss"] = F.binary_cross_entropy_with_logits(out, soft).item()

for part, tensors in {"encoder.": encoder, "decoder.": decoder, "tilehead.": head}.items():
    vectors.update({part + name: t for name, t in tensors.items()})

# Metrics and probes, on numbers of which some are equal.
rng = np.random.default_rng(3)
truth = rng.random((40, 5)) < 0.3
scores = np.round(rng.random((40, 5)) * 0.7 + 0.3 * truth, 1)
about["micro_f1"] = f1_score(truth, scores >= 0.5, average="micro")
about["micro_average_precision"] = average_precision_score(truth, scores, average="micro")
true_class, said = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
about["mean_iou"] = jaccard_score(true_class, said, average="macro")
numbers, guesses = rng.normal(size=30), rng.normal(size=30)
numbers, guesses = np.float32(numbers), np.float32(numbers + 0.5 * guesses)
about["rmse"], about["r2"] = float(np.sqrt(np.mean((np.float64(numbers) - guesses) ** 2))), r2_score(np.float64(numbers), np.float64(guesses))

features = np.float32(rng.normal(size=(90, 6)) + 0.8 * np.repeat(np.eye(6)[:3], 30, 0))
classes = np.repeat(np.arange(3), 30)
train = np.arange(90) % 3 != 0
knn = KNeighborsClassifier(7, metric="cosine").fit(features[train], classes[train])
vectors["knn.predicted"] = torch.tensor(knn.predict(features[~train]))
vectors["knn.shares"] = torch.tensor(knn.predict_proba(features[~train]))
several = np.stack([features[:, 0] + features[:, 1] > 0.4, features[:, 2] > 0.9], 1)
fits = [
    LogisticRegression(C=0.5, tol=1e-10, max_iter=10000).fit(np.float64(features[train]), several[train, c])
    for c in range(2)
]
vectors["each.scores"] = torch.tensor(
    np.stack([f.decision_function(np.float64(features[~train])) for f in fits], 1)
)
for name, array in {
    "metric.truth": truth,
    "metric.scores": scores,
    "metric.classes": true_class,
    "metric.said": said,
    "metric.numbers": numbers,
    "metric.guesses": guesses,
    "probe.features": features,
    "probe.classes": classes,
    "probe.several": several,
}.items():
    vectors[name] = torch.tensor(np.float64(array))

about["architecture"] = {
    "tile_size": SIDE, "patch_size": PATCH, "stem_padding": "same", "depths": DEPTHS, "dims": DIMS,
    "grn_eps": EPS, "ln_eps": EPS,
}  # fmt: skip
OUT.mkdir(exist_ok=True)
rounded = {name: t.detach().float().contiguous() for name, t in vectors.items()}
save_file(rounded, OUT / "vectors.safetensors", {"about": json.dumps(about)})
