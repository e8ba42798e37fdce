"""`piti up` believes in a stack only when a job has run on it; what Ray answers is played by a server on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piti.errors import StackError
from piti.settings import Settings
from piti.stack import trial_job
from piti.stack.http import request_json
from piti.stack.trial_job import run_trial_job
from tests.unit.cli.test_cli_run import server

SUBMITTED = (200, {"submission_id": "x"})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, job_python="/opt/my python", start_timeout_seconds=1)


def test_a_job_that_succeeds_is_forgotten(settings: Settings) -> None:
    with server([SUBMITTED, (200, {"status": "PENDING"}), (200, {"status": "SUCCEEDED"}), (200, True)]) as (
        api,
        bodies,
    ):
        run_trial_job(settings, api, "token")
    assert bodies[0]["entrypoint"].startswith("'/opt/my python' -c "), "the way of every job: PITI_JOB_PYTHON"
    assert bodies[0]["runtime_env"]["env_vars"] == settings.job_environment()


def test_a_ray_whose_agent_is_not_there_yet_is_waited_for(settings: Settings) -> None:
    answers: list[tuple[int, Any]] = [(500, {}), SUBMITTED, (200, {"status": "SUCCEEDED"}), (200, True)]
    with server(answers) as (api, bodies):
        run_trial_job(settings, api, None)
    assert bodies[0]["submission_id"] != bodies[1]["submission_id"], "Ray takes each id once"


def test_a_ray_that_fails_or_is_slow_for_a_moment_is_asked_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(url: str, *arguments: Any, **options: Any) -> Any:
        asked.append(url)
        if len(asked) == 2:
            raise TimeoutError("timed out")
        return request_json(url, *arguments, **options)

    monkeypatch.setattr(trial_job, "request_json", ask)
    with server([SUBMITTED, (500, {}), (200, {"status": "SUCCEEDED"}), (200, True)]) as (api, _):
        run_trial_job(settings, api, None)
    assert len(asked) == 5


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([SUBMITTED, (200, {"status": "FAILED"}), (200, {"logs": "a\nModuleNotFoundError: piti\n"})], "ModuleNotFoundError: piti"),
        ([SUBMITTED, (200, {"status": "FAILED"}), (200, {"logs": ""})], "it wrote nothing"),
        ([SUBMITTED, (200, {"status": "PENDING"})], "did not end within 1 s|takes no jobs"),
        ([(500, {})], "takes no jobs: .*500"),
        ([(401, {})], "takes no jobs: .*401"),
        ([SUBMITTED, (200, {})], "takes no jobs"),
        ([SUBMITTED, (500, {})], "takes no jobs: .*500"),
        ([SUBMITTED, (404, {}), (200, {"status": "SUCCEEDED"})], "takes no jobs: .*404"),
    ],
)  # fmt: skip
def test_a_job_that_does_not_end_well_is_a_stack_that_does_not_work(
    settings: Settings, answers: list[tuple[int, Any]], says: str
) -> None:
    with server(list(answers)) as (api, _), pytest.raises(StackError, match=says):
        run_trial_job(settings, api, None)


def test_a_ray_that_is_gone_is_said_to_be_gone(settings: Settings) -> None:
    with server([SUBMITTED]) as (api, _):
        pass
    with pytest.raises(StackError, match="takes no jobs"):
        run_trial_job(settings, api, None)
