"""Pictures as the metrics take them, and the figure they return."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

PictureArray: TypeAlias = NDArray[np.uint8]
Pictures: TypeAlias = PictureArray | Iterable[PictureArray]
"""uint8 RGB pictures: one array (N,H,W,3), or an iterable of (H,W,3) and (n,H,W,3) arrays, all of one size."""

CONFIDENCE = 0.95


class WeightsError(Exception):
    """A network's weights file is missing, damaged or of another kind than needed. One line."""


@dataclass(frozen=True)
class Metric:
    """A figure with the bounds of its 95 % confidence interval. `note` says in words what to bear in mind."""

    value: float
    low: float
    high: float
    note: str | None = None


def batches(pictures: Pictures, batch_size: int) -> Iterator[torch.Tensor]:
    """Pictures as uint8 (n,3,H,W) tensors of up to `batch_size`, in order; all batches but the last are full.

    Raises ValueError for another dtype or shape, and where pictures differ in size.
    """
    waiting: list[PictureArray] = []
    size: tuple[int, ...] | None = None
    for picture in _single(pictures):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"pictures must be uint8 (N,H,W,3), not {picture.dtype} {picture.shape}")
        if size is not None and picture.shape != size:
            raise ValueError(f"pictures differ in size: {size[:2]} and {picture.shape[:2]}")
        size = picture.shape
        waiting.append(picture)
        if len(waiting) == batch_size:
            yield _stack(waiting)
            waiting = []
    if waiting:
        yield _stack(waiting)


def percentile_bounds(estimates: NDArray[np.float64]) -> tuple[float, float]:
    """Bounds of the central 95 % of resampled estimates (B,)."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return float(low), float(high)


def mean_with_bounds(values: NDArray[np.float64], bootstrap_samples: int, seed: int) -> Metric:
    """Mean of independent values (N,) with its percentile bootstrap interval.

    Raises ValueError if there are none.
    """
    if values.size == 0:
        raise ValueError("there is nothing to average")
    draws = np.random.default_rng(seed).integers(0, values.size, (bootstrap_samples, values.size))
    low, high = percentile_bounds(values[draws].mean(axis=1))
    return Metric(float(values.mean()), low, high)


def _single(pictures: Pictures) -> Iterator[PictureArray]:
    for item in pictures:
        if item.ndim == 4:
            yield from item
        else:
            yield item


def _stack(pictures: list[PictureArray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
