"""Classifier-free guidance, plain (equation 7) and normalised (equation 8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

_STATISTICS_DIMS = (1, 2, 3)  # mean and deviation of each picture, over channels and positions


class ConditionalFunction(Protocol):
    def __call__(self, x_t: Tensor, t: Tensor, *, null: bool = False) -> Tensor:
        """The network's output (N, 6, H, W) under the condition, or with `null` under the null condition."""
        ...


def guided(
    conditional_fn: ConditionalFunction,
    scale: float,
    normalized: bool = True,
    both_fn: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """A model function whose noise is guided with `scale` s = 1 + w; s = 1 is the plain conditional model.

    Equation 7: e^ = null + s (cond - null). With `normalized`, equation 8: e^ is shifted and scaled to have the mean
    and standard deviation of each picture's conditional noise. The variance output stays the conditional one, as
    published. `both_fn(x_t, t)` computes the outputs under the condition and under the null condition in one pass,
    which reads the weights once. None: `conditional_fn` is called a second time with null=True.
    """
    if scale == 1:
        return conditional_fn

    def model_fn(x_t: Tensor, t: Tensor) -> Tensor:
        conditional, null = both_fn(x_t, t) if both_fn else (conditional_fn(x_t, t), conditional_fn(x_t, t, null=True))
        noise, place = conditional.chunk(2, dim=1)
        null_noise = null.chunk(2, dim=1)[0]
        guided_noise = null_noise + scale * (noise - null_noise)
        if normalized:
            guided_noise = normalize(guided_noise, noise)
        return torch.cat([guided_noise, place], dim=1)

    return model_fn


def normalize(guided_noise: Tensor, conditional_noise: Tensor) -> Tensor:
    """Equation 8: e~ = (sigma / sigma^) (e^ - mu^) + mu, with the statistics of each picture of (N, C, H, W)."""
    mean = conditional_noise.mean(_STATISTICS_DIMS, keepdim=True)
    deviation = conditional_noise.std(_STATISTICS_DIMS, keepdim=True)
    guided_mean = guided_noise.mean(_STATISTICS_DIMS, keepdim=True)
    guided_deviation = guided_noise.std(_STATISTICS_DIMS, keepdim=True)
    tiny = torch.finfo(guided_noise.dtype).tiny
    return (guided_noise - guided_mean) * (deviation / guided_deviation.clamp(min=tiny)) + mean
