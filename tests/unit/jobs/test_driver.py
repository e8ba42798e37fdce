"""What the driver of a training job does while its workers train, with a process that is really sent SIGTERM."""

from __future__ import annotations

import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from piti import storage
from piti.config.presets import load_config
from piti.errors import StoppedError
from piti.job import JobContext, JobSpec
from piti.jobs import driver as driver_module
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
    assert confirmed_seconds < gpu.cluster.stall_seconds, "the stacks come after the end"
    assert confirmed_seconds > storage.PATIENCE_SECONDS + 60, "one worker's wait for storage is taken for a hang"
    ray = find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    known = Path(ray.origin).with_name("train").joinpath("v2/_internal/constants.py").read_text()
    assert all(name in known for name in {**fixed, **monitoring})


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


def test_a_job_that_waits_says_what_for(context: JobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    waits_for = waiting_message(8, {"CPU": 6, "GPU": 1}, {"CPU": 12.0, "GPU": 1.0, "memory": 1.0})
    assert waits_for == "waits for 8 workers with 6 CPUs, 1 GPU each; free are 12 CPUs, 1 GPU"
    monkeypatch.setattr(driver_module, "_QUIET_SECONDS", 0.0)
    monkeypatch.setattr(Driver, "_waits_for", lambda self: waits_for)
    progress = storage.join(context.spec.folder, "progress.json")
    with Driver(context, "pretrain") as driver:
        driver.attempt()
        wait_for("progress", lambda: storage.exists(progress), 10)
    assert storage.read_json(progress)["message"] == waits_for


def test_stalls_of_another_attempt_do_not_count(context: JobContext) -> None:
    with Driver(context, "pretrain") as driver:
        attempt = driver.attempt()
        leave_stall(context.spec.folder, "another", 0, "worker 0 stood still")
        assert driver.stalls() == []
        leave_stall(context.spec.folder, attempt, 1, "worker 1 stood still")
        assert driver.stalls() == ["worker 1 stood still"]
