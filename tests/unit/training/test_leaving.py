"""A run that stops or fails leaves in time, whatever hangs: all that it waits for shares one deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from piti import storage
from piti.errors import StoppedError
from piti.job import STOP_LOOK_SECONDS, StopRequest
from piti.jobs import driver
from piti.jobs import train as train_job
from piti.jobs.train import WorkerContext, _train
from piti.runs import WORKERS_FILE
from piti.settings import Settings
from piti.training import checkpointer, observers, publisher, status, stopping
from piti.training.failures import WorkerError
from piti.training.metrics import read_metrics
from piti.training.status import Status
from piti.training.trackers import MLflow

SLACK_SECONDS = 3.0  # of a busy machine; a second deadline would add more


class Hanging:
    """Calls that hang from `begin` on, until the test's end. `seen`: which did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._begun, self._over = threading.Event(), threading.Event()
        self.seen: set[str] = set()

    def add(self, where: Any, name: str) -> None:
        """`where.name` will hang."""
        function = getattr(where, name)

        def called(*arguments: Any, **options: Any) -> Any:
            if self._begun.is_set():
                self._hang(name)
            return function(*arguments, **options)

        self._monkeypatch.setattr(where, name, called)

    def add_writes(self) -> None:
        """Every write to storage will hang; that of workers.json hangs already. They are seen by their files' names."""
        write_bytes = storage.write_bytes

        def write(uri: str, data: bytes, private: bool = False) -> None:
            name = storage.name(uri)
            if self._begun.is_set() or name == WORKERS_FILE:
                self._hang(name)
            write_bytes(uri, data, private)

        self._monkeypatch.setattr(storage, "write_bytes", write)

    def begin(self) -> None:
        self._begun.set()

    def end(self) -> None:
        self._over.set()

    def _hang(self, name: str) -> None:
        self.seen.add(name)
        self._over.wait(120)
        raise OSError("the test is over")


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    calls = Hanging(monkeypatch)
    yield calls
    calls.end()


@pytest.fixture
def worker(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerContext]:
    """Of a run with hundreds of steps and an MLflow that takes everything."""
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("ray.train.get_preemption_info", lambda: None)
    monkeypatch.setattr("piti.job.STOP_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(stopping, "STOP_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(stopping, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(publisher, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(MLflow, "_write", lambda *_: None)
    monkeypatch.setattr(MLflow, "_finish", lambda *_: None)
    monkeypatch.setattr(observers, "STOP_SECONDS", 4.0)
    monkeypatch.setattr(observers, "STOP_CLOSE_SECONDS", 2.0)
    monkeypatch.setattr(train_job, "_LAST_SECONDS", 0.5)
    monkeypatch.setattr(checkpointer, "TELL_SECONDS", 0.1)
    monkeypatch.setattr(checkpointer, "SLOWEST_BYTES_PER_SECOND", 1.0)  # days for a checkpoint of this size
    monkeypatch.setattr(status, "FLUSH_SECONDS", 0.1)
    phases = [{"steps": steps, "learning_rate": 1e-3} for steps in (4, 496)]
    options = {"phases": phases, "checkpoint_every_steps": 1000, "validate_every_steps": 1000}
    overrides = {f"training__pretrain__{name}": value for name, value in options.items()}
    context = WorkerContext(pipeline.context("pretrain", tracking__mlflow="http://x", **overrides).spec, "first", 0)
    yield context
    context.watchdog.close()


def hang_everywhere(hanging: Hanging) -> None:
    """Storage, of which nobody can say either whether it is away, TensorBoard's files, and MLflow."""
    hanging.add_writes()
    hanging.add(storage, "exists")
    hanging.add(SummaryWriter, "add_scalar")
    hanging.add(MLflow, "_write")


def assert_everything_hung(hanging: Hanging) -> None:
    """The worker's own file, a checkpoint's marker, both trackers, and metrics or progress, whichever came first."""
    assert hanging.seen >= {WORKERS_FILE, storage.MARKER, "add_scalar", "_write"}
    assert hanging.seen & {"metrics.jsonl", "progress.json"}


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[], None]) -> None:
    step = Status.step

    def stepped(self: Any, *arguments: Any) -> None:
        step(self, *arguments)
        if self._state.progress.step == number:
            do()

    monkeypatch.setattr(Status, "step", stepped)


def stop_at_step_3(monkeypatch: pytest.MonkeyPatch, worker: WorkerContext, hanging: Hanging) -> list[float]:
    """When it was asked to stop, by time.monotonic(). From then on calls hang."""
    asked: list[float] = []

    def ask() -> None:
        StopRequest(worker.spec.folder).make("its run was cancelled")
        hanging.begin()
        asked.append(time.monotonic())

    at_step(monkeypatch, 3, ask)
    return asked


def test_a_stopped_run_leaves_in_time_though_everything_hangs(
    worker: WorkerContext, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang_everywhere(hanging)
    asked = stop_at_step_3(monkeypatch, worker, hanging)
    with pytest.raises(StoppedError, match="its run was cancelled"):
        _train(worker, "first")
    assert time.monotonic() - asked[0] < observers.STOP_SECONDS + train_job._LAST_SECONDS + SLACK_SECONDS
    assert_everything_hung(hanging)


def test_a_stopped_run_leaves_in_time_though_it_hangs_why_writes_fail(
    worker: WorkerContext, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After several failures storage is asked whether it is away."""

    def gone(*_: Any) -> None:
        raise OSError("Transport endpoint is not connected")

    monkeypatch.setattr(storage, "publish_folder", gone)
    hanging.add(storage, "exists")
    asked = stop_at_step_3(monkeypatch, worker, hanging)
    with pytest.raises(StoppedError):
        _train(worker, "first")
    assert time.monotonic() - asked[0] < observers.STOP_SECONDS + SLACK_SECONDS
    assert hanging.seen == {"exists"}


def test_a_run_that_fails_leaves_in_time_though_everything_hangs(
    worker: WorkerContext, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of the first phase's end is being written at that time. The run was not asked to stop."""

    def fail() -> None:
        raise RuntimeError("a step failed")

    hang_everywhere(hanging)
    at_step(monkeypatch, 3, hanging.begin)
    at_step(monkeypatch, 6, fail)
    monkeypatch.setattr(observers, "CLOSE_SECONDS", 2.0)
    closes, close = list[float](), observers.Observers.close

    def timed(self: Any) -> None:
        closes.append(time.monotonic())
        close(self)

    monkeypatch.setattr(observers.Observers, "close", timed)
    with pytest.raises(WorkerError, match="a step failed"):
        _train(worker, "first")
    assert time.monotonic() - closes[0] < observers.CLOSE_SECONDS + train_job._LAST_SECONDS + SLACK_SECONDS
    assert_everything_hung(hanging)


def test_a_checkpoint_that_hangs_at_a_stop_costs_no_metrics(
    worker: WorkerContext, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of the time is theirs; trackers are told all, and that the run is over."""
    told, ended = list[int](), list[str]()
    monkeypatch.setattr(MLflow, "_write", lambda self, events: told.extend(step for *_, step in events))
    monkeypatch.setattr(MLflow, "_finish", lambda self: ended.append(self.name))
    hanging.add(storage, "publish_folder")
    stop_at_step_3(monkeypatch, worker, hanging)
    with pytest.raises(StoppedError):
        _train(worker, "first")
    steps = {record["step"] for record in read_metrics(worker.spec.output)}
    assert steps >= {1, 2, 3}
    assert set(told) == steps
    assert ended == ["MLflow"]


def test_all_that_a_stopped_job_waits_for_fits_into_what_it_gets() -> None:
    """SIGTERM, seen by the driver, passed on to the first worker, agreed on by all, then the run's end."""
    seen_seconds = driver._LOOK_SECONDS + STOP_LOOK_SECONDS + stopping.CHECK_SECONDS
    leaving_seconds = observers.STOP_SECONDS + train_job._LAST_SECONDS
    assert seen_seconds + leaving_seconds < Settings().job_stop_seconds
    assert observers.STOP_CLOSE_SECONDS < observers.STOP_SECONDS / 5, "most of it is the checkpoint's"
