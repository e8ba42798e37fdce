"""Features: the vectors that networks make of pictures, whose distributions FID, KID and precision/recall compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from eval.pictures import NetworkIdentity, Pictures, batches


class FeatureExtractor(Protocol):
    """uint8 (N,3,H,W) -> float32 (N, number of features)."""

    identity: NetworkIdentity

    def __call__(self, pictures: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Features:
    """Features of a set of pictures. Raises ValueError where they are not all finite, or not a matrix.

    Args:
        values: float64 (N, D) on the CPU, in the pictures' order.
        network: what made them.
        picture_size: height and width of the pictures in pixels.
    """

    values: Tensor
    network: NetworkIdentity
    picture_size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype != torch.float64:
            raise ValueError(f"features must be float64 (N, D), not {self.values.dtype} {tuple(self.values.shape)}")
        broken = int((~self.values.isfinite()).any(dim=1).sum())
        if broken:
            raise ValueError(f"features of {broken} of {len(self.values)} pictures are not finite")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def size_in_words(self) -> str:
        """Height and width of the pictures: `256x256`."""
        return "x".join(str(side) for side in self.picture_size)


def check_comparable_sets(generated: Features, truth: Features, figure: str, fewest: int) -> None:
    """Raises ValueError where two sets differ in network or size of pictures, or one has fewer than `fewest`."""
    if generated.network != truth.network:
        raise ValueError(
            f"{figure}: features of different networks: {generated.network.name} ({generated.network.resize}) and "
            f"{truth.network.name} ({truth.network.resize})"
        )
    if generated.picture_size != truth.picture_size:
        raise ValueError(
            f"{figure}: generated pictures are {generated.size_in_words}, the truth is {truth.size_in_words} pixels: "
            "bring them to one size"
        )
    for features in (generated, truth):
        if len(features) < fewest:
            raise ValueError(f"{figure} needs at least {fewest} pictures in a set, there are {len(features)}")


def features_of(pictures: Pictures, extractor: FeatureExtractor, batch_size: int = 32) -> Features:
    """Features of pictures. Raises ValueError for no pictures, and for features that are not finite."""
    size: tuple[int, int] | None = None
    parts = []
    with torch.inference_mode():
        for batch in batches(pictures, batch_size):
            size = (batch.shape[2], batch.shape[3])
            parts.append(extractor(batch).double().cpu())
    if size is None:
        raise ValueError("there are no pictures")
    return Features(torch.cat(parts), extractor.identity, size)
