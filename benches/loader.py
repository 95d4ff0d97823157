#!/usr/bin/env python3
"""Tiles a second: the trainer's loader against h5py in one process, on the same rows of the same release.

    cargo build --release -p nadir-trainer --example loader
    python benches/loader.py target/release/examples/loader RELEASE PACKED [EPOCHS]     (needs numpy and h5py)

Both read MMEarth's twelve modalities of each tile, cut one aligned random crop of seven eighths and normalise it (float64, then
float32; classes int64; missing values NaN and -1), and put 64 tiles together to a batch. Three rounds, each measuring one after the other;
compare within a round only.
"""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import h5py
import numpy as np

BATCH = 64
SEVEN_EIGHTHS = lambda side: side * 7 // 8
ESA = np.full(256, -1, np.int64)
ESA[[10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]] = np.arange(11)
DW = np.full(256, -1, np.int64)
DW[1:10] = np.arange(9)
PIXELS = {"sentinel2", "sentinel1", "aster", "dynamic_world", "canopy_height_eth", "esa_worldcover"}
IMAGES = {"era5", "lat", "lon", "biome", "eco_region", "month"}
S2 = [i for i in range(13) if i != 10]


class Baseline:
    """The loader as one would write it with h5py and numpy."""

    def __init__(self, folder):
        only = lambda suffix: next(iter(folder.glob(f"data_*{suffix}")))
        self.file = h5py.File(only(".h5"))
        self.data = {name: self.file[name] for name in PIXELS | IMAGES}
        self.levels = [m[1].decode() for m in self.file["metadata"][:]]
        self.stats = {}
        for name, values in json.loads(only("_band_stats.json").read_text()).items():
            shape = (-1, 1, 1) if name.split("_l")[0] in PIXELS else (-1,)
            self.stats[name] = [np.array(values[k], np.float64).reshape(shape) for k in ("mean", "std")]
        for name in ("sentinel2_l1c", "sentinel2_l2a"):
            self.stats[name] = [v[S2] for v in self.stats[name]]
        self.side = self.data["sentinel2"].shape[-1]
        self.random = np.random.default_rng(1)

    def tile(self, row):
        crop = SEVEN_EIGHTHS(self.side)
        top, left = self.random.integers(0, self.side - crop + 1, 2)
        out = {}
        for name, data in self.data.items():
            x = data[row]
            if name in PIXELS:
                x = x[:, top : top + crop, left : left + crop]
            if name == "dynamic_world":
                out[name] = DW[x[0]]
            elif name == "esa_worldcover":
                out[name] = ESA[x[0]]
            elif name in ("biome", "eco_region"):
                out[name] = np.argmax(x) if (x == 1).any() else -1
            else:
                x = x[S2] if name == "sentinel2" else x
                mean, std = self.stats[f"sentinel2_{self.levels[row]}" if name == "sentinel2" else name]
                z = ((x.astype(np.float64) - mean) / std).astype(np.float32)
                if name == "sentinel2":
                    z[x == 0] = np.nan
                elif name == "canopy_height_eth":
                    z[x == 127] = np.nan
                elif name != "aster":
                    z[~np.isfinite(x)] = np.nan
                out[name] = z
        return out

    def speed(self, rows):
        start = time.perf_counter()
        for at in range(0, len(rows), BATCH):
            tiles = [self.tile(row) for row in rows[at : at + BATCH]]
            batch = {name: np.stack([t[name] for t in tiles]) for name in tiles[0]}
            assert len(batch) == 12
        return len(rows) / (time.perf_counter() - start)


def main():
    loader, release, packed = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    epochs = sys.argv[4] if len(sys.argv) > 4 else "4"
    baseline = Baseline(release)
    with tempfile.TemporaryDirectory() as scratch:
        rows_file = pathlib.Path(scratch) / "rows.json"

        def ours(folder, threads):
            return float(subprocess.check_output([loader, str(folder), str(threads), epochs, str(rows_file)]))

        ours(release, 0), ours(packed, 0)  # Everything is in the page cache from here on.
        rows = json.loads(rows_file.read_text())
        tiles, side = baseline.data["sentinel2"].shape[0], baseline.side
        print(f"{release.name}: {tiles} tiles of {side} x {side}, {len(rows)} read a measurement")
        print("tiles a second, times h5py; in brackets CPU milliseconds a tile")
        print("round  h5py                 HDF5, 1 thread         HDF5, all cores        packed, all cores")
        for n in range(3):
            line, first = [], None
            ways = [lambda: baseline.speed(rows), lambda: ours(release, 1), lambda: ours(release, 0), lambda: ours(packed, 0)]
            for way in ways:
                before = cpu()
                speed = way()
                spent = 1000 * (cpu() - before) / len(rows)
                first = first or speed
                line.append(f"{speed:7.1f} {speed / first:5.2f}x ({spent:4.2f})")
            print(f"{n + 1:5}  " + "  ".join(line), flush=True)


def cpu():
    """Processor seconds of this process and of those it waited for."""
    of = lambda who: sum(resource.getrusage(who)[:2])
    return of(resource.RUSAGE_SELF) + of(resource.RUSAGE_CHILDREN)


if __name__ == "__main__":
    main()
