"""The averaged weights, which a stage passes to the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from piti.models import PITIModel
from piti.models.checkpoints import model_around
from piti.training.sharding import mine, placed, whole


def ema_rate_at(step: int, rate: float, warmup: bool) -> float:
    """Decay of the average after optimizer step number `step` (from 0); see StageConfig.ema_warmup."""
    return min(rate, (1 + step) / (10 + step)) if warmup else rate


class EMA:
    """An exponential moving average of a network's trained parameters: `averages`, by name, divided over the workers where
    these are."""

    def __init__(self, model: nn.Module) -> None:
        self.averages = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module, rate: float, is_usable: Tensor) -> None:
        """average <- rate * average + (1 - rate) * model, for every trained parameter of `model`.

        If `is_usable`, () bool on the parameters' device, is false, nothing changes.
        """
        averages, current = self._pairs(model)
        share = is_usable * torch.tensor(1.0 - rate)
        torch._foreach_lerp_(averages, current, [share] * len(averages))

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give `model` the averaged weights."""
        averages, current = self._pairs(model)
        torch._foreach_copy_(current, averages)

    def network(self, model: PITIModel) -> PITIModel:
        """A network in evaluation mode with the averages and, shared with `model`, the weights that are not trained.

        Its weights are whole, those of divided averages are copies. Every worker must call this.
        """
        weights = {name: whole(self.averages.get(name, value)) for name, value in model.state_dict().items()}
        return model_around(model.config, weights).eval().requires_grad_(False)

    def load(self, averages: dict[str, Tensor]) -> None:
        """Take over stored averages, whole ones."""
        self.averages = {name: placed(averages[name], like=average) for name, average in self.averages.items()}

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """This worker's averages, and in the same order the parameters of `model`."""
        current = [mine(parameter) for parameter in model.parameters() if parameter.requires_grad]
        return [mine(average) for average in self.averages.values()], current
