"""Which timesteps to train on: uniformly, or more often where the loss is large."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from piti.errors import CheckpointError


class TimestepSampler(Protocol):
    """Draws timesteps and the weights that keep the expected loss unchanged."""

    def weights(self) -> Tensor:
        """Unnormalised probabilities, (num_timesteps,) float64."""
        ...

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Timesteps (n,) int64 and loss weights (n,) float32: 1 / (num_timesteps * probability)."""
        ...

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learn from losses (n,) seen at timesteps (n,). All ranks must call it with the same, gathered values."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class UniformSampler:
    """Every timestep equally often, all weights 1."""

    def __init__(self, num_timesteps: int) -> None:
        self.num_timesteps = num_timesteps

    def weights(self) -> Tensor:
        return torch.ones(self.num_timesteps, dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return _importance_sample(self.weights(), n, generator)

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise CheckpointError(
                "the checkpoint holds another timestep sampler's state", "set timestep_sampler as it was trained"
            )


class LossSecondMomentSampler:
    """Probability in proportion to the root mean square of a timestep's last losses (Nichol and Dhariwal, 2021).

    Uniform until every timestep has `history` losses. `uniform_probability` is then shared by all evenly.
    """

    def __init__(self, num_timesteps: int, history: int = 10, uniform_probability: float = 0.001) -> None:
        self.num_timesteps = num_timesteps
        self.history = history
        self.uniform_probability = uniform_probability
        self._losses = torch.zeros(num_timesteps, history, dtype=torch.float64)
        self._counts = torch.zeros(num_timesteps, dtype=torch.int64)

    def weights(self) -> Tensor:
        if bool((self._counts < self.history).any()):
            return torch.ones(self.num_timesteps, dtype=torch.float64)
        weights = self._losses.square().mean(dim=1).sqrt()
        weights = weights / weights.sum() * (1 - self.uniform_probability)
        return weights + self.uniform_probability / self.num_timesteps

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return _importance_sample(self.weights(), n, generator)

    def update(self, t: Tensor, losses: Tensor) -> None:
        for step, loss in zip(t.tolist(), losses.detach().double().tolist(), strict=True):
            count = int(self._counts[step])
            if count == self.history:
                self._losses[step] = self._losses[step].roll(-1)
                self._losses[step, -1] = loss
            else:
                self._losses[step, count] = loss
                self._counts[step] = count + 1

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self._losses.clone(), "counts": self._counts.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`. Raises CheckpointError if it is of another size or kind."""
        expected = {"losses": self._losses.shape, "counts": self._counts.shape}
        found = {key: getattr(value, "shape", None) for key, value in state.items()}
        if found != expected:
            raise CheckpointError(
                f"the checkpoint's timestep sampler has {found}, this run's {expected}",
                "keep timestep_sampler and the number of diffusion steps as they were trained",
            )
        self._losses = state["losses"].to(torch.float64).clone()
        self._counts = state["counts"].to(torch.int64).clone()


def _importance_sample(weights: Tensor, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    probabilities = weights / weights.sum()
    t = torch.multinomial(probabilities, n, replacement=True, generator=generator)
    return t, (1 / (len(probabilities) * probabilities[t])).float()
