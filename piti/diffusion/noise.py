"""Each picture's own random numbers, so that neither batch size nor the number of workers changes a picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

_INITIAL = -1


class PictureNoise:
    """Standard normal noise for a batch of pictures of one `shape` (C, H, W), one seed a picture.

    A number is a function of (seed, step, position) alone. It is drawn on the CPU, so that devices agree too.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._seeds = list(seeds)
        self._shape = tuple(shape)
        self._device = torch.device(device)

    def initial(self) -> Tensor:
        """The noise that sampling begins with, (N, C, H, W) float32."""
        return self._draw(_INITIAL)

    def step(self, number: int) -> Tensor:
        """The noise added in sampling step `number` (0, 1, ...), (N, C, H, W) float32."""
        return self._draw(number)

    def _draw(self, number: int) -> Tensor:
        pictures = []
        for seed in self._seeds:
            digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            pictures.append(torch.randn(self._shape, generator=generator))
        return torch.stack(pictures).to(self._device)
