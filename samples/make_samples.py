#!/usr/bin/env python3
"""Picks the sample tiles of this folder from two EuroSAT source files. Deterministic: the same sources give the same bytes.

    python make_samples.py SOURCES [--out samples] [--sheet docs/images/samples.png]

SOURCES is a folder holding `eurosat_rgb.npz` (the original JPEG bytes, labels, coordinates, environment values) and
`eurosat_ms13.h5` (13-band twins of some of them). Needs numpy, pillow and h5py. README.md says what is written and why.
"""

import argparse
import csv
import hashlib
import io
import os

import h5py
import numpy as np
from PIL import Image

TRAIN, TEST = 0, 2  # codes of the source's `split_spatial`: whole 1-degree cells
PER_CLASS = 20  # RGB tiles of each class, in train and again in test
TWINS_PER_CLASS = {TRAIN: (2, 2, 2, 2, 1, 1, 1, 1, 1, 1), TEST: (1,) * 10}  # 13-band tiles of each class
ENVIRONMENT = (
    "elevation_m", "slope_deg", "temperature_c", "humidity_pct",
    "soil_moisture", "ndvi", "night_lights", "pop_density",
)  # fmt: skip
LIMIT = 8_000_000  # bytes of this folder's data, all files together


def rank(name):
    """A fixed pseudo-random order that needs no random number generator: the SHA-256 of the tile's name."""
    return hashlib.sha256(f"nadir samples {name}".encode()).hexdigest()


def names_of(source):
    return [f"{source['classes'][c]}_{t}" for c, t in zip(source["label"], source["tile_id"])]


def choose(source, names, multispectral):
    """Rows of the RGB source to keep, and the rows of the 13-band source that are their twins, by split."""
    twin_row = {int(r): i for i, r in enumerate(multispectral["rgb_index"])}
    rows, twins = {TRAIN: [], TEST: []}, []
    for split in rows:
        for label in range(len(source["classes"])):
            of_class = np.flatnonzero((source["label"] == label) & (source["split_spatial"] == split))
            of_class = sorted(of_class.tolist(), key=lambda r: rank(names[r]))
            chosen = [r for r in of_class if r in twin_row][: TWINS_PER_CLASS[split][label]]
            twins += chosen
            chosen += [r for r in of_class if r not in chosen][: PER_CLASS - len(chosen)]
            assert len(chosen) == PER_CLASS, f"class {label}, split {split}: only {len(chosen)} tiles"
            rows[split] += chosen
    return rows, twins, twin_row


def capture_order(source, names, rows):
    """The stream's order: ten after ten, each ten holding one tile of every class in a fixed pseudo-random order.

    Any prefix then holds every class at its share of the whole, so "first in, first out" meets neither luck nor malice.
    By place it would not be so: whole classes cluster, and the first tiles decide.
    """
    seen, key = {}, {}
    for r in sorted(rows, key=lambda r: rank(names[r])):
        label = int(source["label"][r])
        seen[label] = seen.get(label, 0) + 1
        key[r] = (seen[label], rank(names[r] + " order"))
    return sorted(rows, key=key.get)


def decode(source, row):
    """[3, 64, 64] uint8 in the order B4 B3 B2 (a JPEG's red, green, blue), checked against the stored digest."""
    data = source["jpeg"][source["offset"][row] : source["offset"][row + 1]].tobytes()
    if hashlib.sha256(data).digest() != source["sha256"][row].tobytes():
        raise SystemExit(f"make_samples: tile {row} of eurosat_rgb.npz does not match its SHA-256")
    return np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)


def write_table(path, source, names, rows):
    def number(value, digits):
        return "" if np.isnan(value) else f"{value:.{digits}f}"

    with open(path, "w", newline="") as f:
        table = csv.writer(f, lineterminator="\n")
        table.writerow(("tile", "name", "class", "label", "split", "lat", "lon") + ENVIRONMENT + ("country_id",))
        for tile, r in enumerate(rows):
            label = int(source["label"][r])
            head = [tile, names[r], source["classes"][label], label, int(source["split_spatial"][r])]
            place = [number(source["lat"][r], 6), number(source["lon"][r], 6)]
            table.writerow(head + place + [number(source[k][r], 5) for k in ENVIRONMENT] + [int(source["country_id"][r])])


def write_set(folder, tiles, source, names, rows):
    os.makedirs(folder, exist_ok=True)
    np.save(os.path.join(folder, "tiles.npy"), tiles)
    np.save(os.path.join(folder, "labels.npy"), source["label"][rows].astype(np.uint8))
    np.save(os.path.join(folder, "split.npy"), source["split_spatial"][rows].astype(np.uint8))
    write_table(os.path.join(folder, "table.csv"), source, names, rows)


def write_sheet(path, tiles, columns=24, size=48, gap=2):
    """A contact sheet of RGB tiles [n, 3, 64, 64], row by row."""
    lines = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (size + gap) + gap, lines * (size + gap) + gap), (24, 26, 30))
    for i, tile in enumerate(tiles):
        picture = Image.fromarray(tile.transpose(1, 2, 0)).resize((size, size), Image.LANCZOS)
        sheet.paste(picture, (gap + i % columns * (size + gap), gap + i // columns * (size + gap)))
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    sheet.quantize(128, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", help="folder with eurosat_rgb.npz and eurosat_ms13.h5")
    parser.add_argument("--out", default=here)
    parser.add_argument("--sheet", default=os.path.join(here, "..", "docs", "images", "samples.png"))
    arguments = parser.parse_args()

    source = dict(np.load(os.path.join(arguments.sources, "eurosat_rgb.npz")))
    with h5py.File(os.path.join(arguments.sources, "eurosat_ms13.h5")) as f:
        multispectral = {k: f[k][:] for k in ("rgb_index", "label", "tile_id", "band")}
        names = names_of(source)
        rows, twins, twin_row = choose(source, names, multispectral)

        # The twins come in the order of the RGB rows: train by class, then test as captured.
        order = rows[TRAIN] + capture_order(source, names, rows[TEST])
        twins = [r for r in order if r in set(twins)]
        for r in twins:
            i = twin_row[r]
            same = multispectral["label"][i] == source["label"][r] and multispectral["tile_id"][i] == source["tile_id"][r]
            assert same, f"13-band row {i} is not the twin of RGB row {r}"
        tiles13 = np.stack([f["sentinel2_l1c"][twin_row[r]] for r in twins]).astype(np.uint16)

    tiles = np.stack([decode(source, r) for r in order])
    write_set(os.path.join(arguments.out, "eurosat-rgb"), tiles, source, names, order)
    write_set(os.path.join(arguments.out, "eurosat-ms"), tiles13, source, names, twins)
    bands = [b.decode().replace("B0", "B") for b in multispectral["band"]]  # B01 is called B1 in all of this project
    with open(os.path.join(arguments.out, "eurosat-ms", "bands.txt"), "w") as f:
        f.write(",".join(bands) + "\n")
    write_sheet(arguments.sheet, tiles[len(rows[TRAIN]) :][:192])

    digests, total = [], 0
    for folder in ("eurosat-ms", "eurosat-rgb"):
        for name in sorted(os.listdir(os.path.join(arguments.out, folder))):
            with open(os.path.join(arguments.out, folder, name), "rb") as f:
                data = f.read()
            total += len(data)
            digests.append(f"{hashlib.sha256(data).hexdigest()}  {folder}/{name}\n")
    with open(os.path.join(arguments.out, "SHA256SUMS"), "w") as f:
        f.writelines(digests)
    assert total <= LIMIT, f"{total} bytes of samples, at most {LIMIT}"
    print(f"{len(tiles)} RGB tiles {tiles.shape[1:]}, {len(tiles13)} 13-band tiles {tiles13.shape[1:]}, {total} bytes")


if __name__ == "__main__":
    main()
