"""The averaged weights, which a stage passes to the next."""

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

    Parameters that are not trained (a frozen decoder) are shared with the network, not copied.
    """

    def __init__(self, model: PITIModel) -> None:
        frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
        self.model = copy.deepcopy(model, memo=dict(frozen)).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, rate: float, is_usable: Tensor) -> None:
        """average <- rate * average + (1 - rate) * model, for every trained parameter of `model`.

        If `is_usable`, () bool on the parameters' device, is false, nothing changes.
        """
        averages, current = self._learning(model)
        share = is_usable * torch.tensor(1.0 - rate)
        torch._foreach_lerp_(averages, current, [share] * len(averages))

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give `model` the averaged weights."""
        averages, current = self._learning(model)
        torch._foreach_copy_(current, averages)

    def _learning(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Pairs of an average and its parameter of `model`."""
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        learning = [(average, parameter.detach()) for average, parameter in pairs if parameter.requires_grad]
        return [average for average, _ in learning], [parameter for _, parameter in learning]
