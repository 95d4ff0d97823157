"""Writes the three archives beside this file with numpy: python make_fixture.py"""

import pathlib

import numpy as np

here = pathlib.Path(__file__).parent
arrays = {
    "tiles": (100 * np.arange(24, dtype=np.uint16)).reshape(2, 3, 2, 2),
    "labels": np.array([3, -1], dtype=np.int8),
    "heights": np.array([[0.5, -2.25]]),
}
np.savez(here / "plain.npz", **arrays)
np.savez_compressed(here / "compressed.npz", **arrays)
np.savez(here / "single.npz", only=np.array([7], dtype=np.uint8))
