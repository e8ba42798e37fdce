"""Automations of the project in a Prefect server that a person uses, too. The server is a stand-in."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from pathlib import Path
from typing import Any

import pytest
from prefect.automations import Automation

from flows import serve as serving
from flows.automations import ensure
from flows.crashed_runs import _rule
from flows.serve import deployments


class Server:
    """Keeps one automation, or none, and counts what is done to it."""

    kept: Automation | None = None
    num_updates = 0

    async def aread(self, name: str) -> Automation:
        if self.kept is None or self.kept.name != name:
            raise ValueError(name)
        return Automation(**self.kept.model_dump())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()

    async def acreate(rule: Automation) -> None:
        server.kept = Automation(**{**rule.model_dump(), "id": uuid.uuid4()})

    async def aupdate(rule: Automation) -> None:
        assert server.kept is not None
        assert rule.id == server.kept.id
        server.kept, server.num_updates = Automation(**rule.model_dump()), server.num_updates + 1

    monkeypatch.setattr(Automation, "aread", server.aread)
    monkeypatch.setattr(Automation, "acreate", acreate)
    monkeypatch.setattr(Automation, "aupdate", aupdate)
    return server


def kept(server: Server) -> Any:
    return server.kept


def test_a_rule_is_made_once_and_left_alone(server: Server) -> None:
    for _ in range(2):
        asyncio.run(ensure(_rule()))
    assert kept(server).name == _rule().name
    assert server.num_updates == 0, "an update makes the server forget what it waits for"


def test_an_upgrade_changes_the_rule_and_leaves_it_switched_off(server: Server) -> None:
    old = _rule()
    old.description = "of an older version"
    asyncio.run(ensure(old))
    kept(server).enabled = False
    asyncio.run(ensure(_rule()))
    assert kept(server).description == _rule().description
    assert not kept(server).enabled, "a person switched it off"
    assert server.num_updates == 1


def test_registering_a_deployment_again_leaves_its_trigger_as_a_person_set_it(server: Server) -> None:
    """And asks nobody to delete other people's: there is no client to ask."""
    (evaluate,) = [deployment for deployment in deployments() if deployment.triggers]
    nobody: Any = None
    deployment_id = uuid.uuid4()
    asyncio.run(evaluate._create_triggers(deployment_id, nobody))
    assert kept(server).actions[0].deployment_id == deployment_id
    kept(server).enabled = False
    asyncio.run(evaluate._create_triggers(deployment_id, nobody))
    assert not kept(server).enabled


def test_a_registration_says_nothing_of_what_a_person_sets() -> None:
    for deployment in deployments():
        assert deployment.tags == ["piti"], "of a deployment that is new"
        told = set(deployment.model_dump(exclude_unset=True))  # what Prefect sends for one that is there
        assert not told & {"tags", "parameters", "paused", "schedules", "concurrency_limit", "concurrency_options"}


def test_runs_that_wait_leave_room_and_nothing_is_kept_where_other_users_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    async def nothing() -> None: ...

    monkeypatch.setenv("PITI_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(serving, "wait_until_prefect_answers", lambda: None)
    monkeypatch.setattr(serving, "ensure_crashed_runs_are_marked", nothing)
    monkeypatch.setattr(serving, "stop_unwanted_jobs", lambda: None)
    monkeypatch.setattr(serving, "serve", lambda *_, **options: told.update(options, folder=tempfile.gettempdir()))
    serving.main()
    assert told["limit"] >= 12, "a night's trainings may wait while an evaluation runs"
    assert told["folder"] == str(tmp_path / "serve")
