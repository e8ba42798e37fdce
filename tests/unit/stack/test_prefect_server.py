"""The Prefect server: which address is whose, who gets its password, and what it tells of the serving process."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect.plugins import HookContext

from piti.settings import Settings
from piti.stack import Ports, control, prefect_api, prefect_plugin
from piti.stack.prefect_api import auth_string, local_api_url, prefect_json
from piti.stack.secret_files import ensure_secret
from piti.stack.services import DEPLOYMENTS, _all_served
from tests.unit.cli.test_cli_run import server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PITI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def recorded(home: Path, prefect_port: int) -> control.Stack:
    stack = control.Stack(id="x", home=home, folder=home, ports=Ports(prefect_port, 1, 2), num_cpus=None, processes={})
    control._save(stack)
    return stack


def test_the_local_stacks_server_is_found_and_its_password_goes_nowhere_else(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    assert local_api_url() is None
    stack = recorded(home, 4321)
    assert local_api_url() == "http://127.0.0.1:4321/api"
    assert control.running() == stack
    password = ensure_secret(Settings().auth_file)
    assert auth_string("http://127.0.0.1:4321/api") == password
    assert auth_string("http://127.0.0.1:4322/api") is None
    assert auth_string("https://prefect.example.com/api") is None
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "given:this")
    assert auth_string("http://127.0.0.1:4321/api") == "given:this"


def test_a_password_file_serves_the_server_that_the_environment_names(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    (tmp_path / "secret").write_text("team:word\n")
    monkeypatch.setenv("PITI_PREFECT_AUTH_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    assert auth_string("http://prefect:4200/api") == "team:word"
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api/")
    assert auth_string("http://prefect:4200/api") == "team:word"
    assert auth_string("http://elsewhere:4200/api") is None


def told_to_prefect() -> Mapping[str, str]:
    result = prefect_plugin.setup_environment(ctx=HookContext("3", None, logging.getLogger))
    assert result is not None
    return result.env


def test_the_local_server_is_known_by_other_spellings_of_its_address_and_asked_at_127_0_0_1(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's own default for people is `localhost`, which may mean ::1, where the stack does not listen."""
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(prefect_api, "request_json", lambda url, *_, basic, **__: asked.append((url, basic)))
    recorded(home, 4321)
    password = ensure_secret(Settings().auth_file)
    for spelling in ("http://localhost:4321/api", "http://LocalHost:4321/api/", "http://127.0.0.1:4321/api/"):
        prefect_json(spelling, "x")
        monkeypatch.setenv("PREFECT_API_URL", spelling)
        environment = told_to_prefect()
        assert environment["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"
        assert environment["PREFECT_API_AUTH_STRING"] == password
    assert asked == [("http://127.0.0.1:4321/api/x", password)] * 3
    for other in (
        "http://[::1]:4321/api",
        "http://localhost:4322/api",
        "https://localhost:4321/api",
        "http://localhost.example.com:4321/api",
    ):
        assert prefect_api.server_address(other) == other
        assert auth_string(other) is None


def test_a_serving_process_that_hangs_does_not_answer() -> None:
    """Prefect tells when each deployment was last asked for runs."""

    def answers(since: float, *ages: float) -> bool:
        stamps = [datetime.fromtimestamp(now - age, UTC).isoformat() for age in ages]
        found = [{"name": name, "last_polled": stamp} for name, stamp in zip(sorted(DEPLOYMENTS), stamps, strict=True)]
        with server([(200, found)]) as (api, _):
            return _all_served(api, since)

    now = time.time()
    assert answers(now - 3600, 1, 1, 1, 1, 10)
    assert not answers(now - 3600, 1, 1, 1, 1, 90), "it hangs"
    assert not answers(now - 5, 1, 1, 1, 1, 10), "it asked last before its restart"
