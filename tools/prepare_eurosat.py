#!/usr/bin/env python3
"""Unpacks the EuroSAT RGB archive into the arrays that the trainer reads.

    python prepare_eurosat.py eurosat_rgb.npz OUT     (needs numpy and pillow)

OUT/tiles.npy   u8 [tiles, 3, 64, 64], band order B4 B3 B2 (the red, green and blue of the JPEG files)
OUT/labels.npy  u8 [tiles], index of the class
OUT/split.npy   u8 [tiles], 0 train, 1 validation, 2 test; whole cells of one degree, so that no test tile
                has a training tile in its own neighbourhood
OUT/table.csv   one row a tile: name, class, label, split, place and environment; an empty field is missing

Every tile is checked against the SHA-256 of its JPEG bytes.
"""

import argparse
import csv
import hashlib
import io
import pathlib

import numpy as np
from PIL import Image

ENVIRONMENT = [
    "elevation_m",
    "slope_deg",
    "temperature_c",
    "humidity_pct",
    "soil_moisture",
    "ndvi",
    "night_lights",
    "pop_density",
]


def decode(archive, index):
    """Tile `index` as u8 [3, 64, 64] in the order B4 B3 B2."""
    start, end = archive["offset"][index : index + 2]
    jpeg = archive["jpeg"][start:end].tobytes()
    if hashlib.sha256(jpeg).digest() != archive["sha256"][index].tobytes():
        raise SystemExit(f"tile {index} does not have its SHA-256: the archive is damaged")
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)))
    if pixels.shape != (64, 64, 3):
        raise SystemExit(f"tile {index} has shape {pixels.shape}, expected (64, 64, 3)")
    return pixels.transpose(2, 0, 1)


def field(value):
    """A number in the fewest digits that give it back; empty if missing."""
    return "" if np.isnan(value) else np.format_float_positional(value, trim="-")


def table_rows(archive):
    """Header and rows of table.csv."""
    yield ["tile", "name", "class", "label", "split", "lat", "lon", *ENVIRONMENT, "country_id"]
    classes = archive["classes"]
    for i, label in enumerate(archive["label"]):
        name = f"{classes[label]}_{archive['tile_id'][i]}.jpg"
        place = [field(archive["lat"][i]), field(archive["lon"][i])]
        environment = [field(archive[column][i]) for column in ENVIRONMENT]
        yield [i, name, classes[label], label, archive["split_spatial"][i], *place, *environment, archive["country_id"][i]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=pathlib.Path, help="eurosat_rgb.npz")
    parser.add_argument("out", type=pathlib.Path, help="folder to write; made if missing")
    args = parser.parse_args()
    with np.load(args.archive) as packed:
        archive = {name: packed[name] for name in packed.files}
    args.out.mkdir(parents=True, exist_ok=True)
    tiles = np.stack([decode(archive, i) for i in range(len(archive["label"]))])
    np.save(args.out / "tiles.npy", tiles)
    np.save(args.out / "labels.npy", archive["label"].astype(np.uint8))
    np.save(args.out / "split.npy", archive["split_spatial"].astype(np.uint8))
    with open(args.out / "table.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table_rows(archive))
    counts = np.bincount(archive["split_spatial"], minlength=3)
    print(f"{len(tiles)} tiles (train {counts[0]}, validation {counts[1]}, test {counts[2]}) in {args.out}")


if __name__ == "__main__":
    main()
