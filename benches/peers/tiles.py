"""Tiles like normalised multispectral ones, for calibration where no real ones are at hand.

Each band is a mixture of five random fields of spectrum 1/f^a, the same mixture in every tile, so that bands are correlated as those
of one sensor are; half of the tiles have fields with edges; noise and an offset a band are added. These are the statistics of the tiles on
which the peers were calibrated and are compared (shared/peers/model.py), from other random numbers.

  tiles.py SIZE COUNT SEED OUT.npy        [COUNT, 12, SIZE, SIZE] f32, mean near 0 and deviation near 1
"""
import sys

import numpy as np

BANDS = 12
STRENGTHS = (1.0, 0.7, 0.5, 0.35, 0.25)
# The mixture belongs to the sensor, not to the tile: the seed that the peers' tiles have.
MIXTURE_SEED = 7


def field(random, size, slope):
    """One field [size, size] whose amplitude falls as frequency ** -slope; mean 0, deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = 1.0 / size
    phase = np.exp(2j * np.pi * random.random(frequency.shape))
    values = np.fft.irfft2(frequency**-slope * phase, s=(size, size))
    return (values - values.mean()) / (values.std() + 1e-9)


def tile(random, size, mixture):
    """One tile [bands, size, size]."""
    slope = random.uniform(0.9, 1.8)
    fields = np.stack([field(random, size, slope) for _ in STRENGTHS])
    if random.random() < 0.5:
        parcel = 2 * (fields[0] > 0).astype(int) + (fields[1] > 0.5)
        fields[2] += random.standard_normal(4)[parcel]
    bands = np.tensordot(mixture, fields, 1)
    offset = 0.6 * random.standard_normal((BANDS, 1, 1))
    return bands * random.uniform(0.4, 1.4) + offset + 0.05 * random.standard_normal(bands.shape)


def tiles(count, size, seed):
    """[count, bands, size, size] f32."""
    mixture = np.random.default_rng(MIXTURE_SEED).standard_normal((BANDS, len(STRENGTHS))) * np.array(STRENGTHS)
    mixture /= np.sqrt((mixture**2).sum(1, keepdims=True))
    random = np.random.default_rng(seed)
    return np.stack([tile(random, size, mixture) for _ in range(count)]).astype(np.float32)


if __name__ == "__main__":
    size, count, seed = map(int, sys.argv[1:4])
    np.save(sys.argv[4], tiles(count, size, seed))
