"""What the plugin of the `prefect` command refuses, and that it reads command lines as Prefect does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path

import pytest
from prefect.context import SettingsContext, use_profile
from prefect.settings import PREFECT_PROFILES_PATH, temporary_settings

from piti.errors import StackError
from piti.stack import prefect_plugin

PROFILES = """
active = "mine"

[profiles.mine]

[profiles.open]
PREFECT_SERVER_API_HOST = "0.0.0.0"

[profiles.closed]
PREFECT_SERVER_API_HOST = "0.0.0.0"
PREFECT_SERVER_API_AUTH_STRING = "user:word"

[profiles.forgetful]
PREFECT_SERVER_API_AUTH_STRING = ""
"""


@pytest.fixture
def prefect_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[dict[str, str]], SettingsContext]]:
    """Prefect's settings as they are in a new process with some profiles, and what the environment holds."""
    (tmp_path / "profiles.toml").write_text(PROFILES)
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(tmp_path / "profiles.toml"))
    for name in ("PREFECT_PROFILE", "PREFECT_SERVER_API_HOST", "PREFECT_SERVER_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    with ExitStack() as stack:
        stack.enter_context(temporary_settings({PREFECT_PROFILES_PATH: tmp_path / "profiles.toml"}))

        def enter(environment: dict[str, str]) -> SettingsContext:
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            active = environment.get("PREFECT_PROFILE", "mine")
            return stack.enter_context(use_profile(active, include_current_context=False))

        yield enter


WITH_PASSWORD = {"PREFECT_SERVER_API_AUTH_STRING": "user:word"}


@pytest.mark.parametrize(
    ("command", "environment", "refused"),
    [
        ("server start", {}, False),
        ("server start --host 127.0.0.1", {}, False),
        ("server start --host 127.0.0.9", {}, False),
        ("server start --host localhost", {}, False),
        ("server start --host 0.0.0.0", {}, True),
        ("server start --host=::", {}, True),
        ("server start --host 127.0.0.1.example.org", {}, True),
        ("server start --host 0.0.0.0", WITH_PASSWORD, False),
        ("server start", {"PREFECT_SERVER_API_HOST": "0.0.0.0"}, True),
        ("server start", {"PREFECT_SERVER_API_HOST": "0.0.0.0"} | WITH_PASSWORD, False),
        ("--no-prompt server start --host 0.0.0.0", {}, True),
        ("--prompt=false server start --host 0.0.0.0", {}, True),
        ("--profile mine server start --host 0.0.0.0", {}, True),
        ("-p mine --no-prompt server start --host 0.0.0.0", {}, True),
        ("--profile=mine server start --host 0.0.0.0", {}, True),
        ("server --profile mine start --host 0.0.0.0", {}, True),
        ("server start --no-prompt --background --host 0.0.0.0", {}, True),
        ("server start --host --no-prompt 0.0.0.0", {}, True),
        ("dev api --host 0.0.0.0", {}, True),
        ("--profile open server start", {}, True),
        ("server start --profile open", {}, True),
        ("-p open server start", WITH_PASSWORD, False),
        ("--profile closed server start", {}, False),
        ("--profile forgetful server start --host 0.0.0.0", WITH_PASSWORD, True),
        ("server start", {"PREFECT_PROFILE": "open"}, True),
        ("server start", {"PREFECT_PROFILE": "closed"}, False),
        ("--profile nothing server start", {}, False),
        ("server stop", {"PREFECT_PROFILE": "open"}, False),
    ],
)
def test_a_public_prefect_server_needs_a_password(
    command: str,
    environment: dict[str, str],
    refused: bool,
    prefect_settings: Callable[[dict[str, str]], SettingsContext],
) -> None:
    prefect_settings(environment)
    with pytest.raises(StackError, match="without a password") if refused else nullcontext():
        prefect_plugin.refuse_open_server(command.split())


@pytest.mark.parametrize(
    "command",
    [
        "server start", "--no-prompt server start", "--profile x server start", "--profile=x server start", "-p x server start",
        "server start --profile x", "server --profile x start --prompt", "--prompt=false server start", "-p x deployment run piti/x -p a=b",
        "--no-prompt --profile x deployment run piti/x --param a=b", "deployment run piti/x -p overrides={}",
    ],
)  # fmt: skip
def test_command_lines_are_read_as_prefect_reads_them(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.cli import _app as prefects

    read: list[tuple[str | None, list[str]]] = []

    def note(tokens: tuple[str, ...], *, profile: str | None, prompt: bool | None) -> None:
        read.append((profile, list(tokens)))

    monkeypatch.setattr(prefects, "_setup_and_run", note)
    with suppress(SystemExit):
        prefects._app.meta(prefects._normalize_top_level_flags(command.split()))
    assert read == [tuple(prefect_plugin.Command.of(command.split()))]


def test_every_alias_of_an_asking_command_asks() -> None:
    from prefect.cli._app import _app

    names: dict[int, set[str]] = {}
    for name, command in _app._commands.items():
        names.setdefault(id(command), set()).add(name)
    for alike in names.values():
        assert len({prefect_plugin.asks([name]) for name in alike}) == 1, alike
    assert set(prefect_plugin._ASKING) <= set.union(*names.values()), "commands that there are"


@pytest.mark.parametrize(
    ("command", "asks"),
    [
        ("deployment run piti/train", True),
        ("--no-prompt deploy --all", True),
        ("--profile piti deployment run piti/train", True),
        ("-p piti deployment run piti/train -p config=demo", True),
        ("work-pools ls", True),
        ("--profile piti flow-run execute 7", False),
        ("--profile deployment server start", False),
        ("flow-run cancel 7", True),
        ("flow-run execute 7", False),
        ("11111111-2222-3333-4444-555555555555", False),
        ("worker start --pool piti", False),
        ("server start", False),
        ("profile use piti", False),
        ("deployment run --help", False),
        ("", False),
    ],
)
def test_only_commands_of_people_are_ended_where_no_server_answers(command: str, asks: bool) -> None:
    """The process of a flow run waits for a server that is away, as Prefect does."""
    assert prefect_plugin.asks(command.split()) is asks
