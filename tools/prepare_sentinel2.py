#!/usr/bin/env python3
"""Unpacks the multispectral Sentinel-2 tiles into the arrays that the trainer reads.

    python prepare_sentinel2.py s2_l2a12_unlabelled.npz eurosat_ms13.h5 OUT     (needs numpy, pillow with JPEG 2000, h5py)

OUT/l2a-tiles.npy    u16 [tiles, 12, 64, 64], level 2A, no labels, bands B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B11 B12
OUT/l2a-split.npy    u8 [tiles], 0 train, 1 validation
OUT/l1c-tiles.npy    u16 [tiles, 13, 64, 64], level 1C, EuroSAT, bands B1 B2 B3 B4 B5 B6 B7 B8 B9 B10 B11 B12 B8A
OUT/l1c-labels.npy   u8 [tiles], index of the class
OUT/l1c-split.npy    u8 [tiles], 0 train, 1 validation, 2 test; whole cells of one degree

Level 1C (top of the atmosphere) and level 2A (surface) are different quantities: normalise each by its own statistics.
Every level 2A tile is checked against its SHA-256.
"""

import argparse
import hashlib
import io
import pathlib

import h5py
import numpy as np
from PIL import Image


def unlabelled(path):
    """All level 2A tiles, one lossless JPEG 2000 codestream a band, and their split."""
    archive = dict(np.load(path))
    offset = archive["offset"]
    stream = archive["j2k"].tobytes()
    tiles = np.empty(archive["shape"], np.uint16)
    bands = tiles.shape[1]
    for i, tile in enumerate(tiles):
        for band in range(bands):
            start, end = offset[i * bands + band : i * bands + band + 2]
            tile[band] = np.asarray(Image.open(io.BytesIO(stream[start:end])))
        if hashlib.sha256(tile.tobytes()).digest() != archive["sha256"][i].tobytes():
            raise SystemExit(f"{path}: tile {i} is damaged: its SHA-256 differs")
    return tiles, archive["split"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("l2a", type=pathlib.Path)
    parser.add_argument("l1c", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tiles, split = unlabelled(args.l2a)
    np.save(args.out / "l2a-tiles.npy", tiles)
    np.save(args.out / "l2a-split.npy", split.astype(np.uint8))
    print(f"level 2A: {tiles.shape}")
    with h5py.File(args.l1c) as file:
        tiles = file["sentinel2_l1c"][...]
        np.save(args.out / "l1c-tiles.npy", tiles)
        np.save(args.out / "l1c-labels.npy", file["label"][...].astype(np.uint8))
        np.save(args.out / "l1c-split.npy", file["split_spatial"][...].astype(np.uint8))
    print(f"level 1C: {tiles.shape}")


if __name__ == "__main__":
    main()
