"""Two processes of torch.distributed hold the same loss-aware timestep sampler, that of one process fed with everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from piti.diffusion import LossSecondMomentSampler
from piti.job import JobContext, JobSpec
from piti.models.checkpoints import load_trainer_state
from piti.training import state as training_state
from piti.training.gradients import Draw, _gathered
from piti.training.loop import train
from piti.training.workers import Workers
from tests.worker_processes import WORLD_SIZE, run_workers

NUM_TIMESTEPS = 3
ROUNDS = 25
SHARE = 4  # pictures a worker and round
OPTIONS: dict[str, Any] = {
    "diffusion__base__steps": NUM_TIMESTEPS,
    "models__base__dropout": 0.0,  # its masks are each worker's own
    "training__pretrain__phases": [{"steps": 16, "learning_rate": 2e-3, "condition_dropout": 0.3}],
    "training__pretrain__checkpoint_every_steps": 16,
}


def losses_of(rank: int, number: int) -> tuple[Tensor, Tensor, int]:
    """Timesteps and losses of a worker's share in a round, and how many of them count: the second worker lacks some."""
    generator = torch.Generator().manual_seed(1000 * rank + number)
    t = torch.randint(NUM_TIMESTEPS, (SHARE,), generator=generator)
    losses = (1 + t) * (1 + rank) * torch.rand(SHARE, generator=generator, dtype=torch.float64)
    return t, losses, SHARE - rank * (number % 3)


def fed_with(rank: int, workers: Workers) -> LossSecondMomentSampler:
    """A sampler that learned in rounds from what the workers found, through the loop's own gathering."""
    sampler = LossSecondMomentSampler(NUM_TIMESTEPS)
    for number in range(ROUNDS):
        t, losses, num_pictures = losses_of(rank, number)
        drawn = Draw(t, *(torch.zeros(SHARE) for _ in range(4)))
        gathered = _gathered(drawn, {"loss": losses}, num_pictures, (), workers)
        sampler.update(gathered.t, gathered.terms["loss"], gathered.is_there)
    return sampler


def work(rank: int, folder: Path, spec: dict[str, Any]) -> None:
    """One of the processes: feeds a sampler, trains a run, and leaves both samplers' states in files."""
    samplers: list[LossSecondMomentSampler] = []

    class Remembered(LossSecondMomentSampler):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            samplers.append(self)

    training_state.LossSecondMomentSampler = Remembered  # type: ignore[misc]
    workers = Workers.current()
    fed = fed_with(rank, workers)
    train(JobContext(JobSpec.model_validate(spec)), workers)
    (trained,) = samplers
    torch.save({"fed": fed.state_dict(), "trained": trained.state_dict()}, folder / f"rank-{rank}.pt")


def is_uniform(state: dict[str, Tensor]) -> bool:
    sampler = LossSecondMomentSampler(NUM_TIMESTEPS)
    sampler.load_state_dict(state)
    weights = sampler.weights()
    return bool((weights == weights[0]).all())


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor], relative: float = 0.0) -> None:
    torch.testing.assert_close(one["counts"], other["counts"], rtol=0, atol=0)
    torch.testing.assert_close(one["losses"], other["losses"], rtol=relative, atol=0)


@pytest.fixture
def states(pipeline: Any, tmp_path: Path) -> list[dict[str, dict[str, Tensor]]]:
    """What each of two processes holds at its end."""
    spec = pipeline.context("pretrain", run="two", **OPTIONS).spec.model_dump(mode="json")
    run_workers(work, tmp_path, spec)
    return [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]


def test_two_workers_learn_the_same_timesteps_as_one(states: list[dict[str, dict[str, Tensor]]], pipeline: Any) -> None:
    """Fed with losses of their own, some of them missing: equal to the last bit. Trained: equal but for sums' order."""
    single = LossSecondMomentSampler(NUM_TIMESTEPS)
    for number in range(ROUNDS):
        for rank in range(WORLD_SIZE):
            t, losses, num_pictures = losses_of(rank, number)
            single.update(t[:num_pictures], losses[:num_pictures])
    for state in states:
        assert_equal(state["fed"], single.state_dict())
    assert not is_uniform(single.state_dict())

    result = train(pipeline.context("pretrain", run="one", **OPTIONS), Workers())
    expected = load_trainer_state(result["checkpoint"])["timesteps"]
    assert not is_uniform(expected), "the histories are not full: nothing is proved"
    assert_equal(states[0]["trained"], states[1]["trained"])
    assert_equal(states[0]["trained"], expected, relative=1e-3)
