"""The parts of `piti up` and `piti down` without servers: ports, processes, environment, token, folders."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from piti import settings as settings_module
from piti.errors import StackError
from piti.settings import PROJECT, Settings
from piti.stack import Ports, control, prefect_plugin, processes
from piti.stack.ports import free_port, holder, is_free, problems
from piti.stack.processes import MARK, Identity
from piti.stack.services import (
    client_environment,
    ensure_token,
    prune_ray_sessions,
    ray_folder,
    read_token,
    server_environment,
)

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(SLEEP) as process:
        yield process
        process.kill()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PITI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_every_setting_is_in_the_table() -> None:
    documented = re.findall(r"^\| (PITI_\w+)", settings_module.__doc__ or "", flags=re.MULTILINE)
    assert documented == [f"PITI_{field.upper()}" for field in Settings.model_fields]


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITI_RAY_PATIENCE_SECONDS", "5")
    monkeypatch.setenv("PITI_JOB_STOP_SECONDS", "7")
    assert Settings().ray_patience_seconds == 5
    assert Settings().job_environment()["RAY_JOB_STOP_WAIT_TIME_S"] == "7"


def test_jobs_take_memory_in_large_pages_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    assert Settings().job_environment()["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    assert Settings().job_environment()["THP_MEM_ALLOC_ENABLE"] == "0"


def test_a_taken_port_is_found_out_and_its_holder_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not is_free(port)
        assert f"pid {os.getpid()}" in str(holder(port))
        (problem,) = problems(
            Ports(prefect=free_port(), ray_dashboard=port, ray=free_port()), ["prefect", "ray_dashboard"]
        )
        assert f"port {port}" in str(problem)
        assert "--ray-dashboard-port" in str(problem)
    assert is_free(port)


def test_a_port_taken_on_all_interfaces_counts_as_taken() -> None:
    with socket.create_server(("", 0)) as listener:
        assert not is_free(listener.getsockname()[1])


def test_free_ports_are_different_and_free() -> None:
    ports = Ports.free().chosen()
    assert len({ports.prefect, ports.ray_dashboard, ports.ray}) == 3
    assert list(problems(ports, ["prefect", "ray_dashboard", "ray"])) == []
    assert Ports().chosen() == Ports(), "given ports stay"


def test_a_process_is_not_mistaken_for_one_that_had_its_pid(sleeper: subprocess.Popen[bytes]) -> None:
    created = psutil.Process(sleeper.pid).create_time()
    assert Identity(sleeper.pid, created).find() == psutil.Process(sleeper.pid)
    assert Identity(sleeper.pid, created - 60).find() is None


def test_an_ended_process_is_not_found_though_nobody_has_buried_it(sleeper: subprocess.Popen[bytes]) -> None:
    identity = Identity(sleeper.pid, psutil.Process(sleeper.pid).create_time())
    sleeper.kill()
    deadline = time.monotonic() + 10
    while identity.find() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_family_is_offspring_and_whatever_carries_the_mark(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """The parent dies and leaves a child of another session; the mark still finds it, and not the bystander."""
    code = f"import subprocess; subprocess.Popen({SLEEP!r}, start_new_session=True); import time; time.sleep(60)"
    root = processes.start([sys.executable, "-c", code], {**os.environ, MARK: "mine"}, tmp_path / "log", tmp_path)
    deadline = time.monotonic() + 10
    while len(found := processes.family([root], "mine")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    by_descent = processes.family([root], "another")
    assert {process.pid for process in by_descent} == {process.pid for process in found}
    parent = root.find()
    assert parent is not None
    assert processes.kill([parent]) == []
    (orphan,) = processes.family([root], "mine")
    assert orphan.pid in {process.pid for process in found}
    assert processes.terminate([orphan], 5) == []
    assert processes.family([root], "mine") == []
    assert sleeper.poll() is None


def test_our_own_process_is_never_part_of_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """`piti down` run from a flow of the stack must not end itself."""
    ourselves = Identity(os.getpid(), psutil.Process().create_time())
    assert os.getpid() not in {process.pid for process in processes.family([ourselves], "nobody")}


def test_a_started_process_outlives_the_terminal_and_writes_its_log(tmp_path: Path) -> None:
    identity = processes.start(
        [sys.executable, "-c", "import os; print(os.getsid(0), os.getpid())"],
        os.environ,
        tmp_path / "a" / "log",
        tmp_path,
    )
    deadline = time.monotonic() + 20
    while identity.find() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    session, pid = (tmp_path / "a" / "log").read_text().split()
    assert session == pid == str(identity.pid)


def test_the_token_is_made_once_and_only_its_owner_reads_it(home: Path) -> None:
    settings = Settings()
    assert read_token(settings) is None
    ensure_token(settings)
    token = read_token(settings)
    assert token is not None
    assert len(token) == 64
    assert stat.S_IMODE(settings.token_file.stat().st_mode) == 0o600
    settings.token_file.chmod(0o644)
    ensure_token(settings)
    assert read_token(settings) == token
    assert stat.S_IMODE(settings.token_file.stat().st_mode) == 0o600


def test_ray_gets_a_short_folder_where_home_is_deep(tmp_path: Path) -> None:
    short = Path("/tmp/x/.piti")
    assert ray_folder(Settings(home=short)) == short / "ray"
    folder = ray_folder(Settings(home=tmp_path / ("deep" * 30)))
    try:
        assert len(str(folder)) < 40
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        folder.rmdir()


def test_only_the_latest_ray_sessions_are_kept(tmp_path: Path) -> None:
    for day in range(1, 6):
        (tmp_path / f"session_2026-01-0{day}_00-00-00_000000_1").mkdir()
    (tmp_path / "session_latest").symlink_to(tmp_path / "session_2026-01-05_00-00-00_000000_1")
    (tmp_path / "other").mkdir()
    prune_ray_sessions(tmp_path)
    kept = {path.name[:18] for path in tmp_path.iterdir()}
    assert kept == {"session_2026-01-04", "session_2026-01-05", "session_latest", "other"}


def test_what_a_shell_holds_for_other_servers_does_not_reach_ours(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere")
    monkeypatch.setenv("PREFECT_API_URL", "https://elsewhere")
    monkeypatch.setenv("NO_PROXY", "intranet")
    environment = server_environment(Settings(), Ports(prefect=4321), "id")
    assert {"PREFECT_API_KEY", "RAY_ADDRESS"} & set(environment) == set()
    assert environment["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"
    assert environment["NO_PROXY"] == "intranet,127.0.0.1,localhost"
    assert environment[MARK] == "id"
    assert MARK not in client_environment(Settings(), Ports()), "a client is no part of the stack"


def test_nothing_calls_home(home: Path) -> None:
    environment = client_environment(Settings(), Ports())
    assert environment["DO_NOT_TRACK"] == "1"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert environment["PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS"] == "false"


def test_two_ups_at_once_are_refused(home: Path) -> None:
    with control._lock(home), pytest.raises(StackError, match="another `piti up`"), control._lock(home):
        pass


def test_the_prefect_plugin_finds_the_stacks_server(home: Path) -> None:
    assert prefect_plugin.local_api_url() is None
    stack = control.Stack(id="x", home=home, ports=Ports(4321, 1, 2), ray_folder=home, num_cpus=None, processes={})
    control._save(stack)
    assert prefect_plugin.local_api_url() == "http://127.0.0.1:4321/api"
    assert control.running() == stack


def test_no_lock_file_line_names_a_machine_or_an_index() -> None:
    lines = (PROJECT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 100
    assert all(re.fullmatch(r"[a-z0-9._-]+==[\w.]+( ; [^#]+)?(\s+# via .*)?", line) for line in pins)
    assert not any(word in "\n".join(lines) for word in ("://", "file:", "+cpu", "--"))
    assert {"torch==2.13.0", "ray==2.60.0"} <= {line.split()[0] for line in pins}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"PYTHON": "no-such-python"}, "there is no no-such-python"),
        ({"PYTHON": "./old-python"}, "too old"),
        ({"NEEDED_DISK_GIB": "99999999"}, "GiB are free"),
    ],
)
def test_make_says_in_one_line_what_a_machine_lacks(tmp_path: Path, environment: dict[str, str], says: str) -> None:
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1"\nexit 1\n')
    old.chmod(0o755)
    answer = subprocess.run(
        [PROJECT / "scripts" / "check-machine"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )  # fmt: skip
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert says in line
    assert " - " in line, "a remedy follows"
