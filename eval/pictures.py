"""Pictures as the metrics take them, and the figure they return."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

PictureArray: TypeAlias = NDArray[np.uint8]
Pictures: TypeAlias = PictureArray | Iterable[PictureArray]
"""uint8 RGB pictures: one array (N,H,W,3), or an iterable of (H,W,3) and (n,H,W,3) arrays, all of one size."""

CONFIDENCE = 0.95


class WeightsError(Exception):
    """A network's weights file is missing, damaged or of another kind than needed. One line."""


@dataclass(frozen=True)
class NetworkIdentity:
    """What a figure was measured with.

    Args:
        name: for people.
        slug: for names of figures: `fd_<slug>`.
        comparable: whether its figures may be compared with published ones; only then do they get the published name.
        resize: how pictures were brought to the network's size.
    """

    name: str
    slug: str
    weights_sha256: str
    comparable: bool
    resize: str

    def figure(self, published: str, otherwise: str) -> str:
        """What a figure is called: by its published name through the published network, else by what it is."""
        return published if self.comparable else f"{otherwise}_{self.slug}"


@dataclass(frozen=True)
class Metric:
    """A figure, and all that has to be known to read it.

    Args:
        name: `fid` only through the published network; `fd_efficientnet_lite0`, say, through another.
        low, high: the 95 % confidence interval, None where no honest one can be given.
        note: what to bear in mind, in words: bias, why there is no interval.
        network: what it was measured with, None for a figure that needs no network.
    Raises ValueError for a number that is not finite.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    note: str | None = None
    network: NetworkIdentity | None = None

    def __post_init__(self) -> None:
        for what in ("value", "low", "high", "standard_error"):
            number = getattr(self, what)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"the {what} of {self.name} is {number}")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"{self.name} has one bound only ({self.low} to {self.high})")


def normal_bounds(value: float, standard_error: float) -> tuple[float, float]:
    """The central 95 % of a normal distribution."""
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * standard_error
    return value - half, value + half


def mean_metric(
    name: str, values: NDArray[np.float64], network: NetworkIdentity | None = None, note: str = ""
) -> Metric:
    """Mean of independent values (N,) with Student's interval; a single value has none.

    Raises ValueError if there are none, or one is not finite.
    """
    if values.size == 0:
        raise ValueError(f"{name}: there is nothing to average")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: {np.count_nonzero(~np.isfinite(values))} of {values.size} values are not finite")
    mean = float(values.mean())
    if values.size == 1:
        return Metric(name, mean, note="; ".join(filter(None, ("one value, so no interval", note))), network=network)
    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, values.size - 1)) * error
    return Metric(name, mean, mean - half, mean + half, error, note or None, network)


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


def paired_batches(
    generated: Pictures, truth: Pictures, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`batches` of generated pictures, each with that of the truth. Raises ValueError where they differ in number or size."""
    for a, b in itertools.zip_longest(batches(generated, batch_size), batches(truth, batch_size)):
        if a is None or b is None or a.shape != b.shape:
            shapes = [None if x is None else tuple(x.shape) for x in (a, b)]
            raise ValueError(f"generated pictures and truth do not pair up: {shapes[0]} and {shapes[1]}")
        yield a, b


def _single(pictures: Pictures) -> Iterator[PictureArray]:
    for item in pictures:
        if item.ndim == 4:
            yield from item
        else:
            yield item


def _stack(pictures: list[PictureArray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
