"""A run goes on with another number of workers as it would have gone on with the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from piti import storage
from piti.errors import PreemptedError
from piti.job import JobContext, JobSpec
from piti.training import stopping
from piti.training.batches import Batch, Batches
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


def work(rank: int, folder: Path, spec: dict[str, Any], steps: int | None) -> None:
    """Train `steps` more steps, or to the end."""
    with pytest.MonkeyPatch.context() as patch:
        if rank:  # the first worker reads weights for all
            patch.setattr("piti.models.weight_files.read_weights", None)
        with keys_told(Path(spec["folder"])):
            if steps is None:
                train(JobContext(JobSpec.model_validate(spec)), Workers.current())
            else:
                go_on(spec, steps)


@contextmanager
def keys_told(folder: Path) -> Iterator[None]:
    """Each step's keys of a worker are written into files `keys-<step>-<rank>` in `folder`."""
    batches = Batches.__iter__

    def told(self: Batches) -> Iterator[Batch]:
        for batch in batches(self):
            state = self._state
            name = f"keys-{state.progress.step}-{state.workers.rank}"
            storage.write_json(str(folder / name), {"keys": list(batch.keys)})
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "__iter__", told)
        yield


def keys_of(folder: str) -> list[list[str]]:
    """Each step's keys, of all workers one after the other."""
    found: dict[int, list[str]] = {}
    for path in sorted(Path(folder).glob("keys-*")):
        step = int(path.name.split("-")[1])
        found[step] = found.get(step, []) + storage.read_json(str(path))["keys"]
    return [found[step] for step in sorted(found)]


@pytest.mark.parametrize("order", [(1, 2, 1), (2, 1, 2)], ids=str)
def test_another_number_of_workers_goes_on_alike(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]
) -> None:
    """The same pictures in each step, in the same order, and the same losses to 1e-5 as one worker has all along."""
    monkeypatch.setattr(stopping, "CHECK_SECONDS", 0.0)
    undisturbed = pipeline.context("pretrain", run=f"one-{order}", **OPTIONS)
    with keys_told(Path(undisturbed.spec.folder)):
        train(undisturbed, Workers())
    context = pipeline.context("pretrain", run=f"changing-{order}", **OPTIONS)
    spec = context.spec.model_dump(mode="json")
    for number, (num_workers, steps) in enumerate(zip(order, (2, 2, None), strict=True)):
        if num_workers == 1:
            work(0, tmp_path, spec, steps)
        else:
            folder = tmp_path / str(number)
            folder.mkdir()
            run_workers(work, folder, spec, steps)
    keys = keys_of(undisturbed.spec.folder)
    assert [len(step) for step in keys] == [3] * 6
    assert keys_of(context.spec.folder) == keys
    expected, found = (read_metrics(run.spec.output) for run in (undisturbed, context))
    assert [(record["step"], record["split"]) for record in found] == [
        (record["step"], record["split"]) for record in expected
    ]
    for one, other in zip(found, expected, strict=True):
        for name, value in other.items():
            if name in ("loss", "mse", "vb"):
                assert one[name] == pytest.approx(value, rel=TOLERANCE), f"step {one['step']}: {name}"
