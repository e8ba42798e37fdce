"""Random numbers of a training run, each a pure function of (seed, stage, what for, step, position in the batch).

So resuming needs no saved generator, and the number of workers or the size of a microbatch changes no picture's
noise. Numbers are drawn on the CPU, so that devices agree too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from piti.seeds import seed_of


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded with `seed_of(*parts)`."""
    return torch.Generator().manual_seed(seed_of(*parts))


def normal_pictures(names: Iterable[object], shape: Sequence[int], *parts: object) -> Tensor:
    """Standard normal noise (N, *shape) float32, one generator for each name (a position or a key)."""
    return torch.stack([torch.randn(tuple(shape), generator=generator(*parts, name)) for name in names])


def uniform(names: Iterable[object], *parts: object) -> Tensor:
    """Numbers (N,) float32 in [0, 1), one generator for each name."""
    return torch.cat([torch.rand(1, generator=generator(*parts, name)) for name in names])
