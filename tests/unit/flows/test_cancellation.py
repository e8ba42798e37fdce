"""Whose job is stopped when a run ends without wanting to: followers in a folder, Prefect's answers made up."""

from __future__ import annotations

import threading
import uuid
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling, Crashed, Failed, Running

from flows import cancellation
from flows.cancellation import give_up, is_wanted, stop_jobs, stop_unwanted_jobs
from flows.full_train import full_train
from piti.job import Followers


class Job:
    """A Ray job, as far as this is about it."""

    def __init__(self, folder: Path) -> None:
        self.id, self.followers, self.is_stopped = "job", Followers(str(folder)), False

    def stop(self) -> bool:
        self.is_stopped = True
        return True


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(cancellation, "_SILENCE_SECONDS", 3.0)
    return Job(tmp_path)


def test_the_only_follower_takes_its_job_along(job: Any) -> None:
    job.followers.renew("a")
    give_up(job, "a")
    assert job.is_stopped
    assert job.followers.names() == []


def test_a_dead_follower_keeps_no_job_alive(job: Any) -> None:
    job.followers.renew("a")
    job.followers.renew("dead")
    give_up(job, "a")
    assert job.is_stopped


def test_a_live_follower_keeps_its_job(job: Any) -> None:
    job.followers.renew("a")
    job.followers.renew("b")
    timer = threading.Timer(0.5, job.followers.renew, ["b"])
    timer.start()
    give_up(job, "a")
    timer.join()
    assert not job.is_stopped
    assert job.followers.names() == ["b"]


@pytest.mark.parametrize("closed", ["leave", "signs"])
def test_storage_that_is_away_keeps_no_job_alive(job: Any, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job.followers.renew("a")
    monkeypatch.setattr(job.followers, closed, refuse)
    give_up(job, "a")
    assert job.is_stopped


def refuse(*_: object) -> Any:
    raise PermissionError("not yours")


@pytest.fixture
def two_jobs(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job of ours, after one whose folder this process may not read."""
    foreign = Job(tmp_path / "foreign")
    monkeypatch.setattr(foreign.followers, "names", refuse)
    monkeypatch.setattr(cancellation, "Cluster", lambda: SimpleNamespace(running_jobs=lambda: [foreign, job]))
    return job


def test_a_cancelled_runs_job_is_stopped_beside_one_that_cannot_be_read(two_jobs: Job) -> None:
    run = FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4())
    two_jobs.followers.renew(str(run.id))
    stop_jobs(full_train, run, Cancelled())
    assert two_jobs.is_stopped


def test_unwanted_jobs_are_stopped_beside_one_that_cannot_be_read(
    two_jobs: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(Cancelling())
    monkeypatch.setattr(cancellation, "get_client", lambda sync_client: nullcontext(client))
    two_jobs.followers.renew(str(uuid.uuid4()))
    stop_unwanted_jobs()
    assert two_jobs.is_stopped
    assert two_jobs.followers.names() == []
    assert client.state is not None
    assert client.state.is_cancelled()


class Client:
    """A Prefect server that knows one run, or none."""

    def __init__(self, state: State | None) -> None:
        self.state = state

    def read_flow_run(self, flow_run_id: uuid.UUID) -> FlowRun:
        if self.state is None:
            raise ObjectNotFound(Exception())
        return FlowRun(id=flow_run_id, flow_id=uuid.uuid4(), state=self.state)

    def set_flow_run_state(self, flow_run_id: uuid.UUID, state: State, force: bool) -> None:
        assert force
        self.state = state


@pytest.mark.parametrize(
    ("state", "wanted"),
    [(None, False), (Cancelled(), False), (Cancelling(), False), (Failed(), False), (Running(), True)],
)
def test_a_cancelled_deleted_or_failed_run_is_not_wanted(state: State | None, wanted: bool) -> None:
    client: Any = Client(state)
    assert is_wanted(client, str(uuid.uuid4())) == wanted


def test_a_live_run_that_was_taken_for_crashed_is_running_again() -> None:
    client: Any = Client(Crashed())
    assert is_wanted(client, str(uuid.uuid4()))
    assert client.state.is_running()
