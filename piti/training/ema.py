"""The averaged weights, which are what a stage hands on."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from piti.models import PITIModel


def ema_rate_at(step: int, rate: float, warmup: bool) -> float:
    """Decay of the average after optimizer step number `step` (from 0); see StageConfig.ema_warmup."""
    return min(rate, (1 + step) / (10 + step)) if warmup else rate


class EMA:
    """An exponential moving average of a network's learnable parameters, kept as a network in evaluation mode.

    Parameters that do not learn (a frozen decoder) are equal in both and are left alone.
    """

    def __init__(self, model: PITIModel) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, rate: float) -> None:
        """average <- rate * average + (1 - rate) * model, for every parameter of `model` that learns."""
        averages: list[Tensor] = []
        current: list[Tensor] = []
        for average, parameter in zip(self.model.parameters(), model.parameters(), strict=True):
            if parameter.requires_grad:
                averages.append(average)
                current.append(parameter.detach())
        torch._foreach_lerp_(averages, current, 1.0 - rate)
