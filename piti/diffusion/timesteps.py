"""Samplers of the timesteps to train on: uniform, or in proportion to the loss."""

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
        """Timesteps (n,) int64 and loss weights (n,) float32: 1 / (num_timesteps * probability).

        Random numbers come from `generator` on the CPU; all else is computed on the sampler's device.
        """
        ...

    def update(self, t: Tensor, losses: Tensor, counts: Tensor | None = None) -> None:
        """Update from losses (n,) at timesteps (n,), in this order; `counts` (n,) bool selects the losses to use.

        All ranks must call it with the same gathered values. The host does not wait for the device.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class UniformSampler:
    """All timesteps with equal probability and weight 1."""

    def __init__(self, num_timesteps: int, device: torch.device | str = "cpu") -> None:
        self.num_timesteps = num_timesteps
        self._device = torch.device(device)

    def weights(self) -> Tensor:
        return torch.ones(self.num_timesteps, dtype=torch.float64, device=self._device)

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return _importance_sample(self.weights(), n, generator)

    def update(self, t: Tensor, losses: Tensor, counts: Tensor | None = None) -> None:
        """Does nothing."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise CheckpointError(
                "the checkpoint holds another timestep sampler's state", "set timestep_sampler as it was trained"
            )


UNIFORM_PROBABILITY = 0.001


class LossSecondMomentSampler:
    """Probability in proportion to the root mean square of a timestep's last losses (Nichol and Dhariwal, 2021).

    Uniform until every timestep has `history` losses. Then `UNIFORM_PROBABILITY` is spread evenly over all timesteps.
    """

    def __init__(
        self,
        num_timesteps: int,
        history: int = 10,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_timesteps = num_timesteps
        self.history = history
        self._losses = torch.zeros(num_timesteps, history, dtype=torch.float64, device=device)  # oldest first
        self._counts = torch.zeros(num_timesteps, dtype=torch.int64, device=device)

    def weights(self) -> Tensor:
        weights = self._losses.square().mean(dim=1).sqrt()
        weights = weights / weights.sum() * (1 - UNIFORM_PROBABILITY)
        weights = weights + UNIFORM_PROBABILITY / self.num_timesteps
        return torch.where((self._counts == self.history).all(), weights, torch.ones_like(weights))

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return _importance_sample(self.weights(), n, generator)

    def update(self, t: Tensor, losses: Tensor, counts: Tensor | None = None) -> None:
        counts = torch.ones_like(t, dtype=torch.bool) if counts is None else counts
        same = (t[:, None] == t) & counts
        num_before = same.tril(-1).sum(dim=1)  # of its own timestep, in this batch
        num_new = torch.zeros_like(self._counts).index_add(0, t, counts.long())
        num_dropped = (self._counts + num_new - self.history).clamp(min=0)
        # Make room at the end of each full history for the new losses; move the older ones to the front.
        places = torch.arange(self.history, device=t.device) + num_dropped[:, None]
        moved = self._losses.gather(1, places.clamp(max=self.history - 1))
        place = self._counts[t] + num_before - num_dropped[t]
        nowhere = self.num_timesteps * self.history  # where losses go that do not count, or that newer ones replaced
        place = torch.where(counts & (place >= 0), t * self.history + place, nowhere)
        room = torch.cat([moved.flatten(), moved.new_zeros(1)])
        self._losses = room.scatter(0, place, losses.detach().double())[:-1].view_as(self._losses)
        self._counts = (self._counts + num_new).clamp(max=self.history)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self._losses.clone(), "counts": self._counts.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`. Raises CheckpointError if it has another size or kind."""
        expected = {"losses": self._losses.shape, "counts": self._counts.shape}
        found = {key: getattr(value, "shape", None) for key, value in state.items()}
        if found != expected:
            raise CheckpointError(
                f"the checkpoint's timestep sampler has {found}, this run's {expected}",
                "keep timestep_sampler and the number of diffusion steps as they were trained",
            )
        self._losses = state["losses"].to(self._losses, copy=True)
        self._counts = state["counts"].to(self._counts, copy=True)


def _importance_sample(weights: Tensor, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Draw n timesteps by inverting the distribution function at uniform random numbers, as torch.multinomial does on a
    CPU."""
    probabilities = weights / weights.sum()
    chances = torch.rand(n, dtype=torch.float64, generator=generator).to(weights.device, non_blocking=True)
    distribution = probabilities.cumsum(0)
    t = torch.searchsorted(distribution / distribution[-1], chances).clamp(max=len(weights) - 1)
    return t, (1 / (len(probabilities) * probabilities[t])).float()
