"""The order in which samples are seen: a function of (seed, epoch) alone, and the chances of a sample likewise.

Nothing is remembered, so a position in the stream is all that is needed to go on from it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from piti.data.geometry import CropBox
from piti.seeds import stable_hash

_WINDOW_SHARDS = 8  # so many shards are open at a time: enough to mix, few enough to keep in a local cache


class SampleOrder:
    """Which sample the endless stream holds at each position; `shard` (n,) is the number of each sample's shard."""

    def __init__(self, shard: NDArray[np.int32], seed: int) -> None:
        self._samples_of = [np.flatnonzero(shard == number) for number in range(int(shard.max(initial=-1)) + 1)]
        self._seed = seed
        self.num_samples = len(shard)
        self._epoch_order = lru_cache(maxsize=2)(self._shuffle)

    def at(self, position: int) -> tuple[int, int]:
        """(epoch, sample) at a position of the stream, all counted from 0."""
        epoch, place = divmod(position, self.num_samples)
        return epoch, int(self._epoch_order(epoch)[place])

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        """A permutation of the samples: shards in random order, then samples at random within windows of shards."""
        rng = np.random.default_rng(stable_hash("order", self._seed, epoch))
        shards = rng.permutation(len(self._samples_of))
        windows = []
        for first in range(0, len(shards), _WINDOW_SHARDS):
            window = np.concatenate([self._samples_of[number] for number in shards[first : first + _WINDOW_SHARDS]])
            windows.append(rng.permutation(window))
        return np.concatenate(windows)


@dataclass(frozen=True)
class Chances:
    """What is drawn for a sample in an epoch. `variant` numbers the degraded variant (0 where there are none)."""

    flip: bool
    variant: int
    box: CropBox


def draw_chances(seed: int, epoch: int, key: str, *, num_variants: int, crop_from: tuple[int, ...]) -> Chances:
    """The chances of a sample, from (seed, epoch, key) alone. `crop_from`: shape (height, width) of its picture."""
    # Python's generator, whose random() is the same in every version: NumPy's takes ten times as long to seed.
    chance = random.Random(stable_hash("chances", seed, epoch, key)).random
    return Chances(chance() < 0.5, int(chance() * max(1, num_variants)), CropBox.draw(chance, *crop_from[:2]))
