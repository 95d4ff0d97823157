"""Post-training quantization by other tools, beside this project's, on one model, one set of calibration tiles and one set of test tiles.

  quantization.py FLOAT.onnx --calibrate TRAIN.npy --tiles T.npy --labels L.npy --split S.npy [--also NAME=E.npy ...]

FLOAT.onnx is what `trainer export --onnx` writes: the sensor's values in, the embedding out. Every tool gets the same calibration tiles and
its defaults for convolutional networks (per-channel weights where it offers them). TRAIN.npy and T.npy are [tiles, bands, height, width].
Printed, one line a tool: mean, 1st percentile and least cosine to the float model (onnxruntime, f32) on the test rows (split 2), the share of
the 10 nearest test rows that stay, and the accuracy on the test rows of a 20-NN and of a logistic regression (C 1, standardised) trained on
the embeddings of split 0. --also adds embeddings of all rows of T.npy, from `quantize embed`.

Needs numpy, onnx, onnxruntime, openvino, nncf, scikit-learn. A tool that fails is listed with the first line of its error.
"""
import argparse
import os
import tempfile

import numpy as np
import onnxruntime
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize

NEIGHBOURS = 10
VOTES = 20


def onnx_embed(path, tiles):
    """Embeddings [tiles, dimension] by onnxruntime, tile by tile."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: tile[None]})[0] for tile in tiles])


def openvino_embed(model, tiles):
    import openvino

    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([compiled(tile[None])[0].copy() for tile in tiles])


def prepared(path, folder):
    """The model with shapes inferred and batch normalizations folded, as onnxruntime asks before it quantizes."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    out = os.path.join(folder, "prepared.onnx")
    quant_pre_process(path, out, skip_symbolic_shape=True)
    return out


def static(path, calibration, folder, method):
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            name = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0].name
            self.tiles = iter({name: tile[None]} for tile in calibration)

        def get_next(self):
            return next(self.tiles, None)

    out = os.path.join(folder, "static.onnx")
    quantize_static(prepared(path, folder), out, Reader(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8, per_channel=True, calibrate_method=getattr(CalibrationMethod, method))
    return out


def dynamic(path, folder):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out = os.path.join(folder, "dynamic.onnx")
    quantize_dynamic(prepared(path, folder), out, per_channel=True, weight_type=QuantType.QInt8)
    return out


def nncf_model(path, calibration, **options):
    import nncf
    import openvino

    model = openvino.Core().read_model(path)
    dataset = nncf.Dataset([tile[None] for tile in calibration])
    return nncf.quantize(model, dataset, subset_size=len(calibration), **options)


def nearest(e):
    """The nearest rows of each, itself left out."""
    similar = normalize(e.astype(np.float64))
    similar = similar @ similar.T
    np.fill_diagonal(similar, -np.inf)
    return np.argsort(-similar, axis=1)[:, :NEIGHBOURS]


def line(found, exact, labels, split):
    train, test = split == 0, split == 2
    a, b = found[test].astype(np.float64), exact[test].astype(np.float64)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    overlap = np.mean([len(set(p) & set(q)) / NEIGHBOURS for p, q in zip(nearest(a), nearest(b))])
    neighbours = KNeighborsClassifier(VOTES, metric="cosine").fit(found[train], labels[train]).score(found[test], labels[test])
    scale = StandardScaler().fit(found[train])
    fit = LogisticRegression(C=1.0, max_iter=5000).fit(scale.transform(found[train]), labels[train])
    logistic = fit.score(scale.transform(found[test]), labels[test])
    return (f"{cosine.mean():.6f} | {np.percentile(cosine, 1):.6f} | {cosine.min():.6f} | {overlap:.4f} | {100 * neighbours:.2f} | "
            f"{100 * logistic:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    for name in ("calibrate", "tiles", "labels", "split"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--also", action="append", default=[], metavar="NAME=E.npy")
    arguments = parser.parse_args()
    calibration, tiles = (np.load(path).astype(np.float32) for path in (arguments.calibrate, arguments.tiles))
    labels, split = np.load(arguments.labels), np.load(arguments.split)
    exact = onnx_embed(arguments.model, tiles)
    print("| tool | cosine, mean | 1 % | least | overlap at 10 | 20-NN % | logistic % |\n| --- | --- | --- | --- | --- | --- | --- |")

    def show(name, embed):
        try:
            print(f"| {name} | {line(embed(), exact, labels, split)} |", flush=True)
        except Exception as error:
            print(f"| {name} | failed: {str(error).splitlines()[0][:100]} |", flush=True)

    show("float", lambda: exact)
    for also in arguments.also:
        name, path = also.split("=", 1)
        show(name, lambda: np.load(path))
    model = arguments.model
    with tempfile.TemporaryDirectory() as folder:
        for method in ("MinMax", "Percentile"):
            show(f"onnxruntime static, {method}", lambda: onnx_embed(static(model, calibration, folder, method), tiles))
        show("onnxruntime dynamic", lambda: onnx_embed(dynamic(model, folder), tiles))
    show("nncf on openvino", lambda: openvino_embed(nncf_model(model, calibration), tiles))
    import nncf

    # Asymmetric activations, as nncf advises for networks with GELU, and its slower, more exact bias correction.
    mixed = dict(preset=nncf.QuantizationPreset.MIXED, fast_bias_correction=False)
    show("nncf, mixed preset, bias correction", lambda: openvino_embed(nncf_model(model, calibration, **mixed), tiles))


if __name__ == "__main__":
    main()
