"""A run goes on with another number of workers as it would have gone on with the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piti.errors import PreemptedError
from piti.job import JobContext, JobSpec
from piti.training import stopping
from piti.training.loop import train
from piti.training.metrics import read_metrics
from piti.training.workers import Workers
from tests.worker_processes import run_workers

TOLERANCE = 1e-5
OPTIONS: dict[str, Any] = {
    "models__base__dropout": 0.0,  # its masks are each worker's own
    "training__pretrain__phases": [{"steps": 6, "learning_rate": 1e-4, "condition_dropout": 0.3}],
    "training__pretrain__checkpoint_every_steps": 100,
    "training__pretrain__batch_size": 3,  # which two workers divide into one and two
}


class StoppedAfter(JobContext):
    """A job whose node is about to go when it has taken `steps` steps in this process."""

    def __init__(self, spec: JobSpec, steps: int) -> None:
        super().__init__(spec)
        self._steps_left = steps

    def is_preempted(self) -> bool:
        self._steps_left -= 1
        return self._steps_left <= 0


def go_on(spec: dict[str, Any], steps: int) -> None:
    """Train `steps` more steps, from the newest checkpoint."""
    stopping.CHECK_SECONDS = 0.0  # asked after every step
    context = StoppedAfter(JobSpec.model_validate(spec), steps)
    with pytest.raises(PreemptedError):
        train(context, Workers.current())


def work(rank: int, folder: Path, spec: dict[str, Any], steps: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if rank:  # the first worker reads weights for all
            patch.setattr("piti.models.weight_files.read_weights", None)
        go_on(spec, steps)


def test_one_worker_then_two_then_one(pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "CHECK_SECONDS", 0.0)
    undisturbed = pipeline.context("pretrain", run="one", **OPTIONS)
    train(undisturbed, Workers())
    context = pipeline.context("pretrain", run="changing", **OPTIONS)
    spec = context.spec.model_dump(mode="json")
    go_on(spec, 2)
    run_workers(work, tmp_path, spec, 2)
    train(context, Workers())
    expected, found = (read_metrics(run.spec.output) for run in (undisturbed, context))
    assert [(record["step"], record["split"]) for record in found] == [
        (record["step"], record["split"]) for record in expected
    ]
    for one, other in zip(found, expected, strict=True):
        for name, value in other.items():
            if name in ("loss", "mse", "vb"):
                assert one[name] == pytest.approx(value, rel=TOLERANCE), f"step {one['step']}: {name}"
