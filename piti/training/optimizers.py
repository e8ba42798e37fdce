"""Optimizers whose step is taken or skipped on the device, so that the host need not read each step's numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from piti.training.sharding import placed

Adam = TypeVar("Adam", bound=torch.optim.Optimizer)


def adamw(parameters: Iterable[nn.Parameter], *, weight_decay: float) -> torch.optim.AdamW:
    """AdamW for `step_where`; the learning rate is given with each step."""
    return _loading(torch.optim.AdamW(parameters, lr=0.0, weight_decay=weight_decay, fused=True))


def adam(parameters: Iterable[nn.Parameter], *, learning_rate: float) -> torch.optim.Adam:
    """Adam for `step_where`."""
    return _loading(torch.optim.Adam(parameters, lr=learning_rate, fused=True))


def step_where(is_usable: Tensor, optimizer: torch.optim.Optimizer, learning_rate: float | None = None) -> None:
    """Take the step if `is_usable` () bool; otherwise parameters, moments and step count stay. Forgets the gradients.

    `learning_rate` None: the one that the optimizer was made with.
    """
    if learning_rate is not None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
    optimizer.found_inf = (~is_usable).float()  # type: ignore[attr-defined]  # what torch's fused optimizers look at
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _loading(optimizer: Adam) -> Adam:
    """`optimizer` such that it takes any state: it stays fused, and its moments lie as its parameters do."""
    optimizer.register_load_state_dict_pre_hook(_fitted)
    return optimizer


def _fitted(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {name: value if name == "step" else placed(value, parameters[index]) for name, value in entry.items()}
        for index, entry in state["state"].items()
    }
    groups = [{**group, "fused": True, "foreach": None} for group in state["param_groups"]]
    return {**state, "state": moments, "param_groups": groups}
