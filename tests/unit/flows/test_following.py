"""A run follows its job first, and shows it where Prefect answers. Storage that is away ends nothing."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES
from ray.job_submission import JobStatus

from flows import cluster, steps
from piti import storage
from piti.config.presets import load_config
from piti.plan import Plan, Step
from tests.unit.flows.test_attempts import Client, cluster_of


def test_a_prefect_server_that_is_away_delays_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that retries would keep the run from renewing its lease for minutes, and the job would end."""
    done: list[str] = []

    class Job:
        def follow(self, log: Any, on_poll: Callable[[], None], who: str, seen: int) -> JobStatus:
            done.append("followed")
            on_poll()
            return JobStatus.SUCCEEDED

        def progress(self) -> dict[str, Any]:
            return {"done": 1, "total": 2, "message": ""}

    def away(**_: Any) -> None:
        assert PREFECT_CLIENT_MAX_RETRIES.value() == 0
        done.append("asked")
        raise httpx.ConnectError("away")

    monkeypatch.setattr(steps, "create_progress_artifact", away)
    monkeypatch.setattr(steps, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(steps, "_wait_for_prefect", lambda: None)
    plan, job = Plan(load_config("demo", {"root": str(tmp_path)})), Job()
    status = steps._follow(job, plan.shard, plan.config, "a", 0, None)  # type: ignore[arg-type]
    assert status == JobStatus.SUCCEEDED
    assert done == ["followed", "asked", "asked"]


class DoneAtOnce(Client):
    """A cluster whose job has made `step`'s output as soon as it is submitted; then `after` is called."""

    def __init__(self, step: Step, after: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._step, self._after = step, after

    def submit_job(self, *, submission_id: str, **about: Any) -> None:
        storage.write_json(self._step.marker, {})
        self.jobs[submission_id] = JobStatus.SUCCEEDED
        self._after()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a flow run, and without its waits."""
    monkeypatch.setattr(steps, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(steps, "_wait_for_prefect", lambda: None)
    monkeypatch.setattr(steps, "create_progress_artifact", lambda **_: None)
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(cluster, "LAST_LINES_SECONDS", 0.01)


def test_a_mount_that_is_gone_when_a_job_ends_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """The job's output is not seen, nor are its attempts: another attempt would be made, on the disk below the mount."""
    (tmp_path / "disk").mkdir()
    root = tmp_path / "root"
    root.symlink_to(tmp_path / "disk")
    plan = Plan(load_config("demo", {"root": str(root)}))

    def point_to(target: Path) -> None:
        (tmp_path / "aside").symlink_to(target)
        (tmp_path / "aside").replace(root)

    mount = threading.Timer(1.0, point_to, [tmp_path / "disk"])

    def unmount() -> None:
        point_to(tmp_path / "not-mounted" / "disk")
        mount.start()

    client = DoneAtOnce(plan.shard, unmount)
    monkeypatch.setattr(steps, "Cluster", lambda: cluster_of(client))
    assert isinstance(steps.run_step(plan.shard, plan.config), steps.Output)
    mount.join()
    assert len(client.jobs) == 1


def test_storage_that_fails_between_two_jobs_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    plan = Plan(load_config("demo", {"root": str(tmp_path)}))
    client = DoneAtOnce(plan.shard)
    monkeypatch.setattr(steps, "Cluster", lambda: cluster_of(client))
    asked: dict[str, int] = {}

    def failing_first(work: Callable[[str], Any]) -> Callable[[str], Any]:
        def call(uri: str) -> Any:
            asked[uri] = asked.get(uri, 0) + 1
            if asked[uri] == 1:
                raise OSError(errno.EIO, "Input/output error")
            return work(uri)

        return call

    for name in ("read_json", "list_names"):
        monkeypatch.setattr(storage, name, failing_first(getattr(storage, name)))
    assert isinstance(steps.run_step(plan.shard, plan.config), steps.Output)
    assert len(client.jobs) == 1
    assert {plan.shard.marker, str(tmp_path / "jobs"), plan.shard.output} <= set(asked)
    assert "storage does not answer (OSError: [Errno 5] Input/output error); waiting up to 600 s for it" in caplog.text
