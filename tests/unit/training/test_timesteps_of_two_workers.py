"""Two processes of torch.distributed hold the same loss-aware timestep sampler, that of one process fed with everything.

That trained runs agree, too: tests/integration/test_ray_training.py.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from piti.diffusion import LossSecondMomentSampler
from piti.training.gradients import RandomNumbers, _gathered
from piti.training.workers import Workers
from tests.worker_processes import WORLD_SIZE, run_workers

NUM_TIMESTEPS = 3
ROUNDS = 25
SHARE = 4  # pictures a worker and round


def losses_of(rank: int, number: int) -> tuple[Tensor, Tensor, int]:
    """Timesteps and losses of a worker's share in a round, and how many of them count: the second worker lacks some."""
    generator = torch.Generator().manual_seed(1000 * rank + number)
    t = torch.randint(NUM_TIMESTEPS, (SHARE,), generator=generator)
    losses = (1 + t) * (1 + rank) * torch.rand(SHARE, generator=generator, dtype=torch.float64)
    return t, losses, SHARE - rank * (number % 3)


def work(rank: int, folder: Path) -> None:
    """One of the processes: a sampler learns from what the workers found, through the loop's own gathering."""
    workers, sampler = Workers.current(), LossSecondMomentSampler(NUM_TIMESTEPS)
    for number in range(ROUNDS):
        t, losses, num_pictures = losses_of(rank, number)
        numbers = RandomNumbers(t, *(torch.zeros(SHARE) for _ in range(4)))
        gathered = _gathered(numbers, {"loss": losses}, num_pictures, (), workers)
        sampler.update(gathered.t, gathered.terms["loss"], gathered.is_there)
    torch.save(sampler.state_dict(), folder / f"rank-{rank}.pt")


def test_two_workers_learn_the_same_timesteps_as_one(tmp_path: Path) -> None:
    """To the last bit, with losses of their own of which some are missing."""
    run_workers(work, tmp_path)
    single = LossSecondMomentSampler(NUM_TIMESTEPS)
    for number in range(ROUNDS):
        for rank in range(WORLD_SIZE):
            t, losses, num_pictures = losses_of(rank, number)
            single.update(t[:num_pictures], losses[:num_pictures])
    weights = single.weights()
    assert not torch.equal(weights, weights[:1].expand_as(weights)), "the histories are not full: nothing is proved"
    for rank in range(WORLD_SIZE):
        state = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)
        assert differences(state, single.state_dict()) == []


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name in one.keys() | other.keys() if not torch.equal(one[name], other[name])]
