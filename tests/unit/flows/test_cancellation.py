"""Whose job is stopped when a run ends without wanting to: followers in a folder, Prefect's answers made up."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling, Crashed, Running

from flows import cancellation
from flows.cancellation import give_up, is_wanted
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
    ("state", "wanted"), [(None, False), (Cancelled(), False), (Cancelling(), False), (Running(), True)]
)
def test_a_cancelled_or_deleted_run_is_not_wanted(state: State | None, wanted: bool) -> None:
    client: Any = Client(state)
    assert is_wanted(client, str(uuid.uuid4())) == wanted


def test_a_live_run_that_was_taken_for_crashed_is_running_again() -> None:
    client: Any = Client(Crashed())
    assert is_wanted(client, str(uuid.uuid4()))
    assert client.state.is_running()
