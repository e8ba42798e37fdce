"""What the driver of a training job does while its workers train, with a process that is really sent SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray.train
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, NCCLHangError

from piti import storage
from piti.config.presets import load_config
from piti.errors import PitiError, StoppedError
from piti.job import SPEC_FILE, JobContext, JobSpec
from piti.jobs import driver as driver_module
from piti.jobs import train
from piti.jobs.driver import Driver, waiting_message
from piti.jobs.train import time_outs
from piti.plan import Plan
from piti.runs import WORKERS_FILE
from piti.training.watchdog import leave_stall
from tests.e2e.runs import wait_for
from tests.e2e.tiny import tiny_overrides


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobContext:
    monkeypatch.setattr(driver_module, "_LOOK_SECONDS", 0.05)
    config = load_config("demo-sketch", tiny_overrides(tmp_path))
    step = Plan(config).pretrain
    assert step is not None
    return JobContext(JobSpec.for_step(step, config, str(tmp_path / "jobs" / "one")))


def test_time_outs_are_settings(tmp_path: Path) -> None:
    """Under the names by which Ray Train reads them. An elastic run looks anew for room after Ray's own time."""
    told = {}
    for workers in (8, {"min": 2, "max": 8}):
        overrides = tiny_overrides(tmp_path, cluster__num_workers=workers, cluster__start_seconds=900)
        config = load_config("demo-sketch", overrides | {"cluster.stall_seconds": 700})
        step = Plan(config).stage2
        told[str(workers)] = time_outs(JobContext(JobSpec.for_step(step, config, str(tmp_path))))
    fixed, elastic = told.values()
    assert fixed == {"RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "700", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900"}
    assert elastic == {"RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "700"}
    gpu = load_config("demo-sketch", tiny_overrides(tmp_path, cluster__use_gpu=True))
    monitoring = time_outs(JobContext(JobSpec.for_step(Plan(gpu).stage2, gpu, str(tmp_path))))
    confirmed_seconds = float(monitoring["RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S"])
    assert confirmed_seconds < gpu.cluster.stall_seconds, "it says nothing before the end"
    assert confirmed_seconds > storage.PATIENCE_SECONDS + 60, "one worker's wait for storage is taken for a hang"
    ray = find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    known = Path(ray.origin).with_name("train").joinpath("v2/_internal/constants.py").read_text()
    assert all(name in known for name in {**fixed, **monitoring})


class Ended:
    """A trainer whose runs end one after the other as told; the last one's result is `done`."""

    return_value: ClassVar = "done"

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)

    def fit(self) -> Ended:
        if self._errors:
            raise self._errors.pop(0)
        return self


def fit(context: JobContext, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> Any:
    trainer = Ended(*errors)
    monkeypatch.setattr(train, "_trainer", lambda *_: trainer)
    storage.write_json(storage.join(context.spec.folder, SPEC_FILE), {})
    with Driver(context, "pretrain") as driver:
        return train._fit(context, driver)


def test_workers_that_get_no_room_wait_for_it_without_an_end(
    context: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_room = ControllerError(WorkerGroupStartupTimeoutError(8))
    assert fit(context, monkeypatch, *[no_room] * 20) == "done"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        # As NCCL's monitoring raises it, where RAY_TRAIN_NCCL_RAS_ACTION asks for that.
        (NCCLHangError("1 of 3 communicators have a mismatch.\nTo debug:\n  - read", worker_failures={}),
         "NCCLHangError: 1 of 3 communicators have a mismatch."),
        (ControllerError(RayTaskError("set_up", "Traceback\n line", RuntimeError("NCCL error: x")).as_instanceof_cause()),
         "Ray Train's controller failed: RuntimeError: NCCL error: x"),
        (ControllerError(WorkerGroupStartupFailedError("One failed due to error:\nTraceback\n  line\nx.RayActorError: Died.\n")),
         "failed: WorkerGroupStartupFailedError: One failed due to error: x.RayActorError: Died."),
        (ControllerError(WorkerGroupStartupFailedError("One failed")),
         "Ray Train's controller failed: WorkerGroupStartupFailedError: One failed"),
    ],
)  # fmt: skip
def test_failures_that_no_worker_raised_are_counted_and_named(
    context: JobContext,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    reason: str,
) -> None:
    caplog.set_level("INFO")
    assert fit(context, monkeypatch, error) == "done"
    assert f"{reason}; restart 1 of" in caplog.text
    with pytest.raises((PitiError, RuntimeError), match=re.escape(reason)):
        fit(context, monkeypatch, *[error] * 20)


def test_a_failure_with_storage_away_is_judged_when_storage_is_back(
    context: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the driver reads then would otherwise be the reason, or be taken for no progress."""
    states = []

    class Lost(Ended):
        def fit(self) -> Ended:
            if not states:
                states.append("lost")
                Path(context.spec.folder).rename(context.spec.folder + "-away")
                threading.Timer(0.5, back).start()
                raise ray.train.WorkerGroupError("lost", {0: ActorDiedError()})
            return self

    def back() -> None:
        states.append("back")
        Path(context.spec.folder + "-away").rename(context.spec.folder)

    def newest(_: str) -> int:
        states.append("asked")
        return 4

    monkeypatch.setattr(storage, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(train, "newest_step", newest)
    monkeypatch.setattr(train, "_trainer", lambda *_: Lost())
    storage.write_json(storage.join(context.spec.folder, SPEC_FILE), {})
    with Driver(context, "pretrain") as driver:
        assert train._fit(context, driver) == "done"
    assert states == ["lost", "back", "asked"]


def begin(context: JobContext, attempt: str) -> None:
    """As the workers of an attempt do when they begin."""
    storage.write_json(storage.join(context.spec.output, WORKERS_FILE), {"attempt": attempt})


def test_sigterm_asks_workers_that_train_to_end(context: JobContext) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Driver(context, "pretrain") as driver:
        begin(context, driver.attempt())
        wait_for("the driver to see the workers", lambda: driver._has_begun, 10)
        os.kill(os.getpid(), signal.SIGTERM)
        stop = JobContext(context.spec)
        error = wait_for("the request", stop.stop_reason, 10)
        assert "SIGTERM" in str(error)
        with pytest.raises(StoppedError, match="SIGTERM"):
            driver.attempt()  # no worker is started any more
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_ends_a_job_that_waits_for_workers_at_once(context: JobContext) -> None:
    def wait_for_workers() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    with Driver(context, "pretrain") as driver:
        driver.attempt()
        with pytest.raises(StoppedError, match="SIGTERM"):
            wait_for_workers()


@pytest.mark.parametrize(
    ("workers", "free", "states", "told"),
    [
        (3, {"CPU": 12.0, "memory": 1.0}, ["CREATED", "PENDING"], "waits for 3 workers with 1 CPU each; free are 12 CPUs"),
        (3, {"CPU": 1.0}, ["RESCHEDULING"], "waits for 3 workers with 1 CPU each; free are 1 CPU"),
        (3, {}, ["CREATED", "REMOVED"], None),
        ({"min": 2, "max": 3}, {"CPU": 1.0}, [], "waits for 2 workers with 1 CPU each; free are 1 CPU"),
        ({"min": 2, "max": 3}, {"CPU": 2.0}, [], None),
    ],
)  # fmt: skip
def test_a_job_that_waits_says_what_for(
    context: JobContext, monkeypatch: pytest.MonkeyPatch, workers: Any, free: Any, states: list[str], told: str | None
) -> None:
    """A fixed number waits while its placement group does, an elastic run while there is no room for the fewest."""
    monkeypatch.setattr(driver_module, "_QUIET_SECONDS", 0.0)
    monkeypatch.setattr(ray, "available_resources", lambda: free)
    groups = {str(number): {"state": state} for number, state in enumerate(states)}
    monkeypatch.setattr("ray.util.placement_group_table", lambda: groups)
    config = load_config("demo-sketch", tiny_overrides(Path(context.config.root), cluster__num_workers=workers))
    asked = JobContext(context.spec.model_copy(update={"config": config}))
    with Driver(asked, "pretrain") as driver:
        assert driver._waits_for() == told
        driver.attempt()
        if told is not None:
            progress = storage.join(context.spec.folder, "progress.json")
            wait_for("progress", lambda: storage.exists(progress), 10)
            assert storage.read_json(progress)["message"] == told


def test_what_a_job_waits_for_names_gpus() -> None:
    waits_for = waiting_message(8, {"CPU": 6, "GPU": 1}, {"CPU": 12.0, "GPU": 1.0, "memory": 1.0})
    assert waits_for == "waits for 8 workers with 6 CPUs, 1 GPU each; free are 12 CPUs, 1 GPU"


def test_stalls_of_another_attempt_do_not_count(context: JobContext) -> None:
    with Driver(context, "pretrain") as driver:
        attempt = driver.attempt()
        leave_stall(context.spec.folder, "another", 0, "worker 0 stood still")
        assert driver.stalls() == []
        leave_stall(context.spec.folder, attempt, 1, "worker 1 stood still")
        assert driver.stalls() == ["worker 1 stood still"]
