"""Makes products.npz: products of random embeddings, fitted and encoded by numpy as docs/integer-arithmetic.md (section 10) and
docs/products.md say, with scikit-learn's principal components and average precision beside them. Needs numpy and scikit-learn."""

from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score

TILES, FITTED, D, N, BITS = 300, 200, 21, 8, 10

rng = np.random.default_rng(7)
mixed = rng.normal(size=(TILES, D)) @ rng.normal(size=(D, D)) * 0.4 + rng.normal(size=D)
embeddings = (np.clip(np.rint(mixed * 2**BITS), -32768, 32767) / 2**BITS).astype(np.float32)

# The fit, on the first rows.
x = np.rint(embeddings.astype(np.float64) * 2**BITS).astype(np.int64)
mean = x[:FITTED].mean(axis=0)
centre = (np.sign(mean) * np.floor(np.abs(mean) + 0.5)).astype(np.int64)
y = x - centre
multipliers = np.rint(127 * 2.0**28 / np.abs(y[:FITTED]).max(axis=0)).astype(np.int64)
_, _, directions = np.linalg.svd(y[:FITTED].astype(np.float64), full_matrices=False)
largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
matrix = np.rint(127 * directions / largest).astype(np.int64)[:N]
components = y @ matrix.T
pca_multipliers = np.rint(127 * 2.0**36 / np.abs(components[:FITTED]).max(axis=0)).astype(np.int64)
section = b"".join(
    [
        np.uint32(BITS).tobytes(),
        multipliers.astype("<u4").tobytes(),
        pca_multipliers.astype("<u4").tobytes(),
        centre.astype("<i2").tobytes(),
        matrix.astype("i1").tobytes(),
    ]
)


def narrow(values, by, shift):
    return np.clip((values * by + (1 << (shift - 1))) >> shift, -127, 127)


# Scores with many ties.
changed = rng.integers(0, 2, 500)
scores = np.rint((rng.normal(size=500) + changed) * 3).astype(np.float32)

np.savez_compressed(
    Path(__file__).parent / "products.npz",
    embeddings=embeddings,
    section=np.frombuffer(section, np.uint8),
    int8=narrow(y, multipliers, 28).astype(np.int8).reshape(-1),
    pca=narrow(components, pca_multipliers, 36).astype(np.int8).reshape(-1),
    binary=np.packbits(y > 0, axis=1, bitorder="little").reshape(-1),
    explained=np.cumsum(PCA(N).fit(x[:FITTED].astype(np.float64)).explained_variance_ratio_)[None].astype(np.float32),
    scores=scores[None],
    changed=changed.astype(np.uint8),
    average_precision=np.array([[average_precision_score(changed, scores)]]),
)
