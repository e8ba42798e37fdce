"""Runs that train share a cluster one after the other. The limit is a stand-in; with a Prefect server: tests/e2e."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from flows import turns
from flows.cluster import UnreachableError, submission_prefix
from piti import storage
from piti.config.presets import load_config
from piti.errors import StackError
from piti.plan import Plan

Limit = Any


class FakeLimit:
    """A server with one concurrency limit: Prefect's answers to what `Slot` asks."""

    def __init__(self) -> None:
        self.slots, self.leases, self.num_made, self.num_renewed = 1, set[uuid.UUID](), 0, 0
        self.forgotten = 0  # slots that are counted without a lease
        self.is_there = False

    def read_global_concurrency_limit_by_name(self, name: str) -> None:
        if not self.is_there:
            raise turns.ObjectNotFound(Exception())

    def create_global_concurrency_limit(self, about: Any) -> None:
        self.is_there, self.slots, self.num_made = True, about.limit, self.num_made + 1

    def increment_concurrency_slots_with_lease(self, **_: Any) -> httpx.Response:
        request = httpx.Request("POST", "http://server")
        if len(self.leases) + self.forgotten >= self.slots:
            raise httpx.HTTPStatusError("", request=request, response=httpx.Response(423, request=request))
        self.leases.add(lease := uuid.uuid4())
        return httpx.Response(200, json={"lease_id": str(lease)}, request=request)

    def renew_concurrency_lease(self, lease_id: uuid.UUID, **_: Any) -> None:
        if lease_id not in self.leases:
            request = httpx.Request("POST", "http://server")
            raise httpx.HTTPStatusError("", request=request, response=httpx.Response(410, request=request))
        self.num_renewed += 1

    def release_concurrency_slots_with_lease(self, lease_id: uuid.UUID) -> None:
        self.leases.discard(lease_id)

    def update_global_concurrency_limit(self, name: str, about: Any) -> None:
        assert about.active_slots == 0
        self.forgotten = 0
        self.leases.clear()


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the cluster runs; None among them: it does not answer."""
    running: list[Any] = []

    def found() -> list[Any]:
        if None in running:
            raise UnreachableError("away")
        return running

    monkeypatch.setattr(turns, "Cluster", lambda: SimpleNamespace(running_jobs=found))
    return running


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch, jobs: list[Any]) -> Limit:
    limit = FakeLimit()

    @contextmanager
    def get_client(sync_client: bool) -> Any:
        yield limit

    monkeypatch.setattr(turns, "get_client", get_client)
    monkeypatch.setattr(turns, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(turns, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(turns, "wait_for_turn", turns.wait_for_turn.fn)
    monkeypatch.setattr(turns, "require_wanted", lambda who: None)
    return limit


def take_elsewhere(limit: Limit) -> uuid.UUID:
    """The lease of a slot that another process takes."""
    return uuid.UUID(limit.increment_concurrency_slots_with_lease().json()["lease_id"])


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def plan_of(root: Path) -> Plan:
    return Plan(load_config("demo", {"root": str(root)}))


def test_a_run_holds_one_slot_while_it_trains_and_gives_it_back(limit: Limit, tmp_path: Path) -> None:
    def failing_run() -> None:
        with turns.turn(plan_of(tmp_path)):
            assert len(limit.leases) == 1
            raise KeyError

    with pytest.raises(KeyError):
        failing_run()
    assert not limit.leases
    assert limit.num_made == 1
    with turns.turn(plan_of(tmp_path)):
        pass
    assert limit.num_made == 1, "what a person set of it since then stays"


def test_the_next_run_waits_and_says_for_what(
    limit: Limit, jobs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "test")
    other = take_elsewhere(limit)
    jobs.append(SimpleNamespace(goal="other", title="stage1 of coco-mask"))
    looks = []

    def sleep(_: float) -> None:
        looks.append(len(limit.leases))
        if len(looks) == 3:
            limit.leases.discard(other)

    monkeypatch.setattr(turns.time, "sleep", sleep)
    with turns.turn(plan_of(tmp_path)):
        assert len(limit.leases) == 1
    assert looks == [1, 1, 1]
    assert [line.getMessage() for line in caplog.records] == [
        f"waiting for stage1 of coco-mask (concurrency limit {turns.limit_name()!r})"
    ]


def test_a_run_of_the_same_follows_the_jobs_of_the_other(limit: Limit, jobs: list[Any], tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    theirs = take_elsewhere(limit)
    jobs.append(SimpleNamespace(goal=plan.goal, title="shard of demo"))
    with turns.turn(plan):
        assert limit.leases == {theirs}


def test_a_run_whose_jobs_nobody_else_makes_any_more_takes_the_slot(
    limit: Limit, jobs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that it followed was cancelled: now it trains by itself, and no third may train beside it."""
    monkeypatch.setattr(turns, "FOLLOWER_POLL_SECONDS", 0.01)
    plan = plan_of(tmp_path)
    theirs = take_elsewhere(limit)
    jobs.append(SimpleNamespace(goal=plan.goal, title="shard of demo"))
    with turns.turn(plan):
        limit.leases.discard(theirs)
        until(lambda: len(limit.leases) == 1)
    assert not limit.leases


def test_a_run_that_shares_only_data_waits(
    limit: Limit, jobs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another stage 1 on the same photographs: the job that shards them serves both, and their trainings would not fit."""
    plan = plan_of(tmp_path)
    other = Plan(load_config("demo", {"root": str(tmp_path), "training.stage1.phases.0.steps": 7}))
    assert submission_prefix(other.shard) == submission_prefix(plan.shard)
    theirs = take_elsewhere(limit)
    jobs.append(SimpleNamespace(goal=other.goal, title="shard of demo"))
    waited = []

    def sleep(_: float) -> None:
        waited.append(1)
        if len(waited) == 2:
            limit.leases.discard(theirs)

    monkeypatch.setattr(turns.time, "sleep", sleep)
    with turns.turn(plan):
        assert len(waited) == 2
        assert len(limit.leases) == 1


def test_a_run_that_is_deleted_while_it_waits_takes_no_turn(
    limit: Limit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deleted(who: str) -> None:
        raise StackError("this run was deleted")

    theirs = take_elsewhere(limit)
    monkeypatch.setattr(turns, "WANTED_INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr(turns, "require_wanted", deleted)
    with pytest.raises(StackError, match="deleted"), turns.turn(plan_of(tmp_path)):
        pass
    assert limit.leases == {theirs}


def test_nothing_left_to_do_needs_no_turn(limit: Limit, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    for step in [*plan.preparation, *plan.training]:
        storage.write_json(step.marker, {})
    with turns.turn(plan):
        assert not limit.leases


def test_slots_that_a_server_forgot_are_set_free_once_the_cluster_is_idle(
    limit: Limit, jobs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A restarted Prefect server counts slots whose leases it has lost. A cluster that is away proves nothing."""
    limit.is_there, limit.forgotten = True, 1
    jobs.append(None)
    clock = iter(range(0, 10_000, 20))
    now = 0.0
    monkeypatch.setattr(turns.time, "monotonic", lambda: now)

    def sleep(_: float) -> None:
        nonlocal now
        now = float(next(clock))
        if now > 1000:
            jobs.clear()

    monkeypatch.setattr(turns.time, "sleep", sleep)
    with turns.turn(plan_of(tmp_path)):
        assert len(limit.leases) == 1
    assert now > 1000 + turns.FORGOTTEN_SECONDS
    assert any("set free" in record.getMessage() for record in caplog.records)


def test_a_slot_is_kept_by_renewing_its_lease(limit: Limit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LEASE_SECONDS", 0.04)
    slot = turns.Slot("x")
    assert slot.take()
    with slot.kept():
        until(lambda: limit.num_renewed >= 2)


def test_a_slot_whose_lease_lapsed_is_taken_again(limit: Limit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server was away for more than a minute."""
    monkeypatch.setattr(turns, "LEASE_SECONDS", 0.04)
    monkeypatch.setattr(turns, "FOLLOWER_POLL_SECONDS", 0.01)
    slot = turns.Slot("x")
    assert slot.take()
    with slot.kept():
        limit.leases.clear()
        until(lambda: len(limit.leases) == 1)
    assert not limit.leases
