#!/usr/bin/env python3
"""Writes the tiny release folders that the trainer's tests read, and what h5py and numpy find in them.

    python make_fixture.py EUROSAT_MS13.h5 BAND_STATS.json OUT     (needs numpy and h5py)
    python make_fixture.py --expect RELEASE EXPECTED.json          what they find in any release, for the test that is ignored

OUT/data_100k_v001, OUT/data_100k_v000   four tiles of 16 x 16 pixels in MMEarth's layout: datasets with chunks of one row, gzip;
                                         `metadata` with tile_id and S2_type (v001) or tile_id alone (v000)
OUT/data_layouts                         the same tiles laid out otherwise: contiguous, three rows a chunk, shuffle and checksum
OUT/broken/*.h5                          two tiles of 2 x 2: aster of another type, era5 of another shape, half of aster never written
OUT/expected.json                        SHA-256 of each dataset's bytes a row and of its normalised values, by h5py and numpy

Sentinel-2, latitude and longitude are real (EuroSAT); the rest is made up. Every kind of missing value occurs: a strip of 0 in
Sentinel-2, B10 in L2A, polarisations and a whole pass of Sentinel-1, canopy 127, Dynamic World and WorldCover 0, an unknown WorldCover
code, ERA5 NaN and infinity, a latitude of -inf, a biome of 255, an ecoregion of zeros.
"""

import hashlib
import json
import pathlib
import shutil
import struct
import sys

import h5py
import numpy as np

SIDE = 16
N = 4
SOURCE = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "B10", "B11", "B12", "B8A"]
BANDS = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B8", "B9", "B10", "B11", "B12"]
ESA = [10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]
LAYOUT = [
    ("sentinel2", np.uint16, 13),
    ("sentinel1", np.float32, 8),
    ("aster", np.int16, 2),
    ("era5", np.float32, 12),
    ("dynamic_world", np.uint8, 1),
    ("canopy_height_eth", np.int8, 2),
    ("lat", np.float32, 2),
    ("lon", np.float32, 2),
    ("biome", np.uint8, 14),
    ("eco_region", np.uint16, 846),
    ("month", np.float32, 2),
    ("esa_worldcover", np.uint8, 1),
]
# The value that means "no data"; None: whatever is not finite.
NUMBERS = {
    "sentinel2": 0,
    "sentinel1": None,
    "aster": "never",
    "era5": None,
    "canopy_height_eth": 127,
    "lat": None,
    "lon": None,
    "month": None,
    "sentinel2_cloudmask": 65535,
    "sentinel2_cloudprod": 65535,
}


def make(source):
    """All datasets as arrays, and each tile's level."""
    rng = np.random.default_rng(7)
    with h5py.File(source) as f:
        pick = [3, 60, 120, 200]
        s2 = f["sentinel2_l1c"][:][pick][:, [SOURCE.index(b) for b in BANDS], 20 : 20 + SIDE, 8 : 8 + SIDE]
        lat, lon = np.deg2rad(f["lat"][:][pick]), np.deg2rad(f["lon"][:][pick])
    l2a = np.array([False, True, False, True])
    s2[l2a, 10] = 0
    s2[0, :, :3, :] = 0
    s2[2, 4, 7, 9] = 0
    s1 = rng.normal(-12, 4, (N, 8, SIDE, SIDE)).astype(np.float32)
    s1[:, [2, 3, 6, 7]] = -np.inf
    s1[3, 4:] = -np.inf
    s1[1, 0, 5, 5] = np.nan
    canopy = rng.integers(-3, 60, (N, 2, SIDE, SIDE))
    canopy[2, :, :4, :] = 127
    dw = rng.integers(1, 10, (N, 1, SIDE, SIDE))
    dw[1, :, :5, :5] = 0
    esa = np.array(ESA)[rng.integers(0, 11, (N, 1, SIDE, SIDE))]
    esa[1, :, :5, :5] = 0
    esa[2, 0, 0, 0] = 37
    era5 = rng.normal(285, 9, (N, 12)).astype(np.float32)
    era5[2, 3], era5[3, 7] = np.nan, np.inf
    unit = lambda angle: np.stack([np.sin(angle), np.cos(angle)], 1).astype(np.float32)
    latitude = unit(lat)
    latitude[3] = -np.inf
    biome = np.eye(14, dtype=np.uint8)[[4, 0, 13, 7]]
    biome[3] = 255
    region = np.eye(846, dtype=np.uint16)[[0, 845, 300, 300]]
    region[1] = 0
    level = l2a[:, None, None, None] * np.ones((N, 1, SIDE, SIDE))
    data = {
        "sentinel2": s2.astype(np.uint16),
        "sentinel2_cloudmask": rng.choice([0, 1024, 2048, 65535], (N, 1, SIDE, SIDE)).astype(np.uint16),
        "sentinel2_cloudprod": np.where(level, rng.integers(0, 101, level.shape), 65535).astype(np.uint16),
        "sentinel2_scl": np.where(level, rng.integers(0, 12, level.shape), 255).astype(np.uint8),
        "sentinel1": s1,
        "aster": rng.integers(-40, 900, (N, 2, SIDE, SIDE)).astype(np.int16),
        "era5": era5,
        "dynamic_world": dw.astype(np.uint8),
        "canopy_height_eth": canopy.astype(np.int8),
        "lat": latitude,
        "lon": unit(lon),
        "biome": biome,
        "eco_region": region,
        "month": unit(2 * np.pi * np.array([1, 6, 9, 12]) / 12),
        "esa_worldcover": esa.astype(np.uint8),
    }
    return data, ["l2a" if x else "l1c" for x in l2a]


def write(out, stem, data, levels, stats, with_level=True, layouts=False):
    """One release folder."""
    folder = out / stem
    folder.mkdir(parents=True)
    ids = [str(700 + 13 * i) for i in range(N)]
    ways = [
        {},
        {"chunks": 3, "compression": "gzip"},
        {"chunks": 1, "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": 1},
        {"chunks": (2, 1), "compression": "gzip"},
    ]
    with h5py.File(folder / f"{stem}.h5", "w") as f:
        for index, (name, x) in enumerate(data.items()):
            way = dict(ways[index % 5]) if layouts else {"chunks": 1, "compression": "gzip"}
            if isinstance(way.get("chunks"), int):
                way["chunks"] = (way["chunks"], *x.shape[1:])
            elif "chunks" in way:
                way["chunks"] = (*way["chunks"], *x.shape[2:])
            f.create_dataset(name, data=x, **way)
        meta = np.zeros(N, [("tile_id", "S100")] + ([("S2_type", "S10")] if with_level else []))
        meta["tile_id"] = ids
        if with_level:
            meta["S2_type"] = levels
        f.create_dataset("metadata", data=meta)
    info = {i: {"S2_type": level, "lat": 1.0, "NO_DATA": False, "era5": {"year": [1.5, float("nan")]}} for i, level in zip(ids, levels)}
    (folder / f"{stem}_tile_info.json").write_text(json.dumps(info))
    (folder / f"{stem}_splits.json").write_text(json.dumps({"train": [2, 0, 3, 1], "val": [], "test": []}))
    shutil.copy(stats, folder / f"{stem}_band_stats.json")
    return folder


def normalised(name, x, level, stats, as_released):
    """One tile as a model reads it; computed in float64, then float32, or int64 classes."""
    if name == "dynamic_world" or name == "esa_worldcover" or name == "sentinel2_scl":
        codes = {"dynamic_world": list(range(1, 10)), "esa_worldcover": ESA, "sentinel2_scl": list(range(12))}[name]
        out = np.full(x.shape[1:], -1, np.int64)
        for index, code in enumerate(codes):
            out[x[0] == code] = index
        if as_released and name == "esa_worldcover":
            out[x[0] == 0] = 0
        return out
    if name in ("biome", "eco_region"):
        if as_released or (x == 1).any():
            return np.array(np.argmax(x if as_released else x == 1), np.int64)
        return np.array(-1, np.int64)
    key = f"{name}_{level}" if name in ("sentinel2", "sentinel2_cloudmask", "sentinel2_cloudprod") else name
    shape = (-1,) + (1,) * (x.ndim - 1)
    mean, std = (np.array(stats[key][k], np.float64).reshape(shape) for k in ("mean", "std"))
    wide = x.astype(np.float64)
    z = ((wide - mean) / std).astype(np.float32)
    marker = NUMBERS[name]
    missing = ~np.isfinite(wide) if marker is None else (wide == marker if marker != "never" else np.zeros(x.shape, bool))
    if as_released and name in ("sentinel2", "canopy_height_eth"):
        missing[:] = False
    z[missing] = 0 if as_released and name == "sentinel1" else np.nan
    return z


def digest(x):
    """SHA-256 of an array's little-endian bytes, every NaN the same one."""
    x = np.ascontiguousarray(x)
    if x.dtype == np.float32:
        x = np.where(np.isnan(x), np.float32(np.nan), x)
    return hashlib.sha256(x.tobytes()).hexdigest()


def expected(path, stats, levels):
    """What h5py reads from a file, a row at a time."""
    stats = json.loads(stats.read_text())
    count = len(levels)
    out = {"rows": count, "raw": {}, "masked": {}, "as_released": {}}
    with h5py.File(path) as f:
        for name, d in f.items():
            out["raw"][name] = [hashlib.sha256(np.ascontiguousarray(d[i]).tobytes()).hexdigest() for i in range(count)]
            if name != "metadata":
                for kind in ("masked", "as_released"):
                    one = lambda i: digest(normalised(name, d[i], levels[i], stats, kind == "as_released"))
                    out[kind][name] = [one(i) for i in range(count)]
    bits = lambda v: struct.pack(">d", float(v)).hex()
    out["statistics"] = {n: {k: [bits(v) for v in vs] for k, vs in s.items()} for n, s in stats.items()}
    return out


def write_broken(out):
    """Files that must be refused."""
    out.mkdir()
    for what in ("type", "shape", "half"):
        with h5py.File(out / f"{what}.h5", "w", libver="earliest") as f:
            for name, dtype, channels in LAYOUT:
                per_pixel = name not in ("era5", "lat", "lon", "biome", "eco_region", "month")
                dtype = np.int32 if what == "type" and name == "aster" else dtype
                channels = 11 if what == "shape" and name == "era5" else channels
                shape = (2, channels, 2, 2) if per_pixel else (2, channels)
                if what == "half" and name == "aster":
                    d = f.create_dataset(name, shape, dtype, chunks=(1, *shape[1:]), compression="gzip")
                    d[0] = 1
                else:
                    f.create_dataset(name, data=np.ones(shape, dtype))
            meta = np.array([(b"1", b"l1c"), (b"2", b"l2a")], [("tile_id", "S100"), ("S2_type", "S10")])
            f.create_dataset("metadata", data=meta)


def expect(folder, out):
    """The expectations for a whole release."""
    only = lambda suffix: next(iter(folder.glob(f"data_*{suffix}")))
    info = json.loads(only("_tile_info.json").read_text())
    with h5py.File(only(".h5")) as f:
        levels = [info[record[0].decode()]["S2_type"] for record in f["metadata"][:]]
    out.write_text(json.dumps(expected(only(".h5"), only("_band_stats.json"), levels)))


def main():
    if sys.argv[1] == "--expect":
        expect(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
        return
    source, stats, out = (pathlib.Path(a) for a in sys.argv[1:])
    data, levels = make(source)
    found = {}
    for stem, options in [("data_100k_v001", {}), ("data_100k_v000", {"with_level": False}), ("data_layouts", {"layouts": True})]:
        folder = write(out, stem, data, levels, stats, **options)
        found[stem] = expected(folder / f"{stem}.h5", stats, levels)
    for stem in found:
        if stem != "data_100k_v001":
            del found[stem]["statistics"]
    write_broken(out / "broken")
    (out / "expected.json").write_text(json.dumps(found, indent=1, allow_nan=False))


if __name__ == "__main__":
    main()
