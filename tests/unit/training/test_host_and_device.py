"""Between two logs the host reads nothing from the device, and the device does what the host did step by step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from piti.diffusion import LossSecondMomentSampler
from piti.training.batches import Batches
from piti.training.gradients import accumulate_gradients
from piti.training.loop import learn
from piti.training.observers import Observers
from piti.training.stages import TrainingStage
from piti.training.state import TrainingState
from piti.training.workers import Workers

# What makes the host wait for a GPU: one number read, and shapes that depend on values.
READING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")


class Reads(TorchDispatchMode):
    """Counts the operations that would make the host wait, and tensors that Python takes apart."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        for name in ("tolist", "numpy", "cpu"):
            patch.setattr(Tensor, name, self._counting(name, getattr(Tensor, name)))

    def _counting(self, name: str, read: Any) -> Any:
        def counted(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
            self.found[name] += 1
            return read(tensor, *arguments, **named)

        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        selects = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in READING or selects:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", ["pretrain", "upsampler"])
def test_the_host_reads_the_device_only_where_it_logs(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Steps 2 and 3 of three, with clipping and, for the upsampler, its critic; the log after step 3 is seen."""
    options = {"log_every_steps": 3, "gradient_clip": 1.0, "validate_every_steps": 100, "checkpoint_every_steps": 100}
    context = pipeline.context(stage, **{f"training__{stage}__{name}": value for name, value in options.items()})
    state = TrainingState.fresh(TrainingStage(stage, context.config), context.spec.inputs, Workers())
    batches = Batches(context, state)
    observers, stream = Observers(context, state, batches), iter(batches)
    reads = []
    try:
        for _ in range(3):
            batch = next(stream)
            with monkeypatch.context() as patch, Reads(patch) as counted:
                losses = accumulate_gradients(state, batch.examples)
                learn(state, losses)
                observers.log(losses, state.learning_rate())
            reads.append(counted.found)
    finally:
        observers.close()
    assert reads[0] == reads[1] == Counter()
    assert reads[2], "the log was not seen: nothing is proved"


def one_by_one(history: list[list[float]], t: list[int], losses: list[float], length: int) -> None:
    """What `LossSecondMomentSampler.update` does, as the published code does it."""
    for step, loss in zip(t, losses, strict=True):
        history[step].append(loss)
        del history[step][:-length]


def test_the_vectorised_sampler_keeps_the_histories_of_one_that_takes_losses_one_by_one() -> None:
    """Batches with many losses of a timestep, more than its history holds, and losses that do not count (NaN)."""
    generator = torch.Generator().manual_seed(5)
    sampler, history = LossSecondMomentSampler(4, history=3), [list[float]() for _ in range(4)]
    for size in (1, 3, 17, 2, 9, 1, 30):
        t = torch.randint(4, (size,), generator=generator).pow(2) % 4  # uneven
        losses = torch.rand(size, generator=generator, dtype=torch.float64)
        counts = torch.rand(size, generator=generator) < 0.8
        sampler.update(t, torch.where(counts, losses, torch.nan), counts)
        one_by_one(history, t[counts].tolist(), losses[counts].tolist(), 3)
        state = sampler.state_dict()
        assert state["counts"].tolist() == [len(entry) for entry in history]
        for step, entry in enumerate(history):
            assert state["losses"][step, : len(entry)].tolist() == entry


def test_timesteps_are_those_that_torch_draws() -> None:
    """Runs of before this sampler are resumed with the same timesteps: the chances are turned into them as before."""
    sampler = LossSecondMomentSampler(50, history=1)
    sampler.update(torch.arange(50), torch.rand(50, generator=torch.Generator().manual_seed(1)) ** 3)
    weights = sampler.weights()
    for seed in range(20):
        drawn, _ = sampler.sample(33, torch.Generator().manual_seed(seed))
        expected = torch.multinomial(
            weights / weights.sum(), 33, replacement=True, generator=torch.Generator().manual_seed(seed)
        )
        assert torch.equal(drawn, expected)
