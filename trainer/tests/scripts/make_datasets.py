"""Writes small folders in the published layouts of GEO-Bench 1.0 and EuroSAT, and what they hold, to ../downstream
(needs numpy, h5py, pillow and tifffile).

GEO-Bench's real files were not at hand: the layout is that of the code which writes them (ServiceNow/geo-bench, dataset.py and
task.py): one HDF5 file a sample, a dataset a band, an attribute `pickle` with the text of a pickled dictionary. The classes
below stand in for GEO-Bench's, so that the pickles hold objects of the same names.

    python make_datasets.py
"""

import datetime
import json
import pathlib
import pickle
import shutil
import sys
import types

import h5py
import numpy as np
import tifffile
from PIL import Image

OUT = pathlib.Path(__file__).resolve().parent.parent / "downstream"
SIDE = 16
rng = np.random.default_rng(5)
expected = {}


def module(name, *classes):
    m = types.ModuleType(name)
    for cls in classes:
        made = type(cls, (), {"__init__": lambda self, **state: self.__dict__.update(state)})
        made.__module__ = name
        setattr(m, cls, made)
    sys.modules[name] = m
    return m


module("geobench")
dataset = module("geobench.dataset", "Sentinel2", "Sentinel1", "SegmentationClasses")
label = module("geobench.label", "Classification", "MultiLabelClassification")
task = module("geobench.task", "TaskSpecifications")

S2 = ["01 - Coastal aerosol", "02 - Blue", "03 - Green", "04 - Red", "05 - Vegetation Red Edge",
      "06 - Vegetation Red Edge", "07 - Vegetation Red Edge", "08 - NIR", "08A - Vegetation Red Edge",
      "09 - Water vapour", "10 - SWIR - Cirrus", "11 - SWIR", "12 - SWIR"]  # fmt: skip


def geobench(name, bands, labels, label_type, dtype, date=None, top=3000):
    folder = OUT / "geobench" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    samples = [f"id_{i:04d}" for i in range(len(labels))]
    cut = len(samples) // 3
    parts = {"train": samples[: cut], "valid": samples[cut : 2 * cut], "test": samples[2 * cut :]}
    (folder / "default_partition.json").write_text(json.dumps(parts, indent=2))
    parts["train"] = parts["train"][:1]
    (folder / "0.01x_train_partition.json").write_text(json.dumps(parts, indent=2))
    specs = task.TaskSpecifications(dataset_name=name, patch_size=(SIDE, SIDE), label_type=label_type, bands_info=[])
    (folder / "task_specs.pkl").write_bytes(pickle.dumps(specs, protocol=4))
    held = []
    for sample, value in zip(samples, labels):
        about, order = {}, []
        with h5py.File(folder / f"{sample}.hdf5", "w") as file:
            arrays = {b: (rng.random((SIDE, SIDE)) * top).astype(dtype) for b in bands}
            sums = [float(a.astype(np.float64).sum()) for a in arrays.values()]
            if isinstance(value, np.ndarray) and value.ndim == 2:
                arrays["label"] = value
            else:
                about["label"] = value
            for band, array in arrays.items():
                descriptor = band if band == "label" or date is None else f"{band}_{date:%Y-%m-%d}"
                file.create_dataset(name=descriptor, data=array)
                info = (dataset.Sentinel2 if band != "label" else dataset.SegmentationClasses)(name=band)
                about[descriptor] = {"date": date, "band_info": info, "transform": None, "spatial_resolution": 10.0}
                order.append(descriptor)
            about["bands_order"] = order
            file.attrs["pickle"] = str(pickle.dumps(about))
        plain = value.ravel().tolist() if isinstance(value, np.ndarray) else int(value)
        held.append({"sums": sums, "label": plain})
    expected[name] = held


classes = label.Classification(n_classes=2, _class_names=["Forest", "River"])
geobench("m-eurosat", S2, [i % 2 for i in range(6)], classes, np.int16, datetime.date(2018, 1, 1))
geobench("m-brick-kiln", S2, [np.int64(i % 2) for i in range(3)], classes, np.uint16)
geobench("m-so2sat", ["05 - VH.LEE Filtered", S2[1], S2[8]], [np.int64(16), np.int64(3), 0],
         label.Classification(n_classes=17, _class_names=None), np.float32, top=1)  # fmt: skip
several = label.MultiLabelClassification(n_classes=3, class_name=["a", "b", "c"])
geobench("m-bigearthnet", S2[1:4], [np.array([1, 0, 1]), np.array([0, 0, 1]), np.array([1, 1, 0])], several, np.int16)
maps = [rng.integers(0, 3, (SIDE, SIDE)).astype(np.uint8) for _ in range(3)]
kinds = dataset.SegmentationClasses(name="label", n_classes=3, _class_names=["no", "poor", "rich"])
geobench("m-cashew-plant", S2[1:4], maps, kinds, np.int16, datetime.date(2019, 11, 5))

for kind in ["rgb", "ms"]:
    shutil.rmtree(OUT / "eurosat" / kind, ignore_errors=True)
y, x = np.mgrid[0:SIDE, 0:SIDE]
held = {"rgb": [], "ms": []}
for at, (name, i) in enumerate([("Forest", 1), ("Forest", 2), ("River", 1), ("River", 2)]):
    for kind in ["rgb", "ms"]:
        (OUT / "eurosat" / kind / name).mkdir(parents=True, exist_ok=True)
    image = np.stack([60 + 8 * x + at, 100 + 5 * y, 30 + 3 * x + 2 * y + 10 * at], -1).astype(np.uint8)
    path = OUT / "eurosat" / "rgb" / name / f"{name}_{i}.jpg"
    Image.fromarray(image).save(path, quality=95, subsampling=at % 2 * 2)
    held["rgb"].append(np.asarray(Image.open(path)).transpose(2, 0, 1).ravel().tolist())
    bands = (np.arange(13)[:, None, None] * 500 + 10 * x + y + at).astype(np.uint16)
    path = OUT / "eurosat" / "ms" / name / f"{name}_{i}.tif"
    planar = at % 2 == 1
    tifffile.imwrite(path, bands if planar else bands.transpose(1, 2, 0), photometric="minisblack",
                     planarconfig="separate" if planar else "contig",
                     metadata=None)  # fmt: skip
    held["ms"].append(int(bands[12, 3, 4]))
expected["eurosat"] = held
(OUT / "datasets.json").write_text(json.dumps(expected))
