"""How many shards a split is divided among, by number of samples or by bytes."""

from __future__ import annotations

from collections.abc import Mapping

from piti.config import DataConfig, Modality

_FRAME_BYTES = 2560  # of a sample in its tar beside pictures: headers, padding and JSON
_BYTES_A_PIXEL: Mapping[Modality, float] = {"mask": 0.5, "sketch": 0.5, "geometry": 7.0}  # as measured, 256x256
_STEPS_A_DOUBLING = 8


def num_shards(num_items: int, mean_bytes: float, data: DataConfig) -> int:
    """Shards for `num_items` (at least 1) whose files have `mean_bytes` each, as listed.

    With `data.shard_megabytes` numbers grow in steps of an eighth (1, 2, ... 16, 18, ... 32, 36, ...), so that a
    dataset that grows is seldom divided anew; shards are then at most that size, on average, and seldom much smaller.
    """
    if data.shard_megabytes is None:
        return -(-num_items // data.samples_per_shard)
    needed = num_items * stored_bytes(mean_bytes, data) / (data.shard_megabytes * 1e6)
    return min(num_items, _rounded_up(needed))


def stored_bytes(mean_bytes: float, data: DataConfig) -> float:
    """Estimate of a sample's bytes in its tar.

    What keeps its size is taken to keep its bytes; what shrinks, to be a photograph stored as JPEG with its condition.
    """
    if data.geometry == "random" and mean_bytes:
        return mean_bytes + _FRAME_BYTES
    return data.image_size**2 * _BYTES_A_PIXEL[data.modality] + _FRAME_BYTES


def _rounded_up(needed: float) -> int:
    """The least number of steps that is not below `needed`: 1 to 16, then 8 to each doubling."""
    step = 1
    while needed > 2 * _STEPS_A_DOUBLING * step:
        step *= 2
    return max(1, step * -int(-needed // step))
