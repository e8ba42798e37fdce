"""The parts of `piti up` and `piti down` without servers: ports, processes, environment, token, folders."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest

from piti import settings as settings_module
from piti.errors import StackError
from piti.settings import PROJECT, Settings
from piti.stack import Ports, control, prefect_profile, processes, ray_head
from piti.stack.environment import client_environment, server_environment, temporary_folder
from piti.stack.ports import free_port, holder, is_free, problems
from piti.stack.processes import MARK, Identity
from piti.stack.secret_files import ensure_secret, read_secret
from piti.stack.services import prune_ray_sessions, ray_folder

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
    """Jobs take memory in large pages unless told otherwise."""
    monkeypatch.setenv("PITI_RAY_PATIENCE_SECONDS", "5")
    monkeypatch.setenv("PITI_JOB_STOP_SECONDS", "7")
    assert Settings().ray_patience_seconds == 5
    assert Settings().job_environment()["RAY_JOB_STOP_WAIT_TIME_S"] == "7"
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    assert Settings().job_environment()["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    assert Settings().job_environment()["THP_MEM_ALLOC_ENABLE"] == "0"


def test_a_taken_port_is_found_out_and_its_holder_named() -> None:
    with socket.create_server(("", 0)) as listener:
        assert not is_free(listener.getsockname()[1]), "taken on all interfaces"
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


def test_free_ports_are_different_and_free() -> None:
    ports = Ports.free().chosen()
    assert len({ports.prefect, ports.ray_dashboard, ports.ray, ports.reports}) == 4
    assert list(problems(ports, ["prefect", "ray_dashboard", "ray", "reports"])) == []
    assert replace(Ports().chosen(), reports=0) == Ports(), "given ports stay"


def test_a_process_is_not_mistaken_for_one_that_had_its_pid(sleeper: subprocess.Popen[bytes]) -> None:
    identity = Identity.of(sleeper.pid)
    assert identity.find() == psutil.Process(sleeper.pid)
    assert replace(identity, started_ticks=identity.started_ticks - 1).find() is None
    assert replace(identity, boot="another").find() is None, "pids and ticks begin anew with each boot"


def test_a_process_is_recognised_whatever_the_clock_is_set_to(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, created = Identity.of(sleeper.pid), psutil.Process(sleeper.pid).create_time()
    assert identity.started_at() == pytest.approx(created, abs=1.5), "psutil's boot time is in whole seconds"
    now = time.time()
    for shift in (-86400.0, 86400.0):
        monkeypatch.setattr(time, "time", lambda shift=shift: now + shift)
        assert identity.find() is not None
        assert identity.started_at() == pytest.approx(created + shift, abs=5), "in the time of the clock as it is now"


def test_a_process_whose_name_holds_brackets_is_recognised(tmp_path: Path) -> None:
    program = tmp_path / "a) (b 1"
    program.symlink_to(sys.executable)
    with subprocess.Popen([program, *SLEEP[1:]]) as process:
        assert Identity.of(process.pid).find() is not None
        process.kill()


def test_an_ended_process_is_not_found_though_nobody_has_buried_it(sleeper: subprocess.Popen[bytes]) -> None:
    identity = Identity.of(sleeper.pid)
    sleeper.kill()
    deadline = time.monotonic() + 10
    while identity.find() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_family_is_offspring_and_whatever_carries_the_mark(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """The parent dies and leaves a child of another session; the mark still finds it, and not the bystander."""
    mark = str(tmp_path)  # no other test on this machine uses it
    code = f"import subprocess; subprocess.Popen({SLEEP!r}, start_new_session=True); import time; time.sleep(60)"
    root = processes.start([sys.executable, "-c", code], {**os.environ, MARK: mark}, tmp_path / "log", tmp_path)
    deadline = time.monotonic() + 10
    while len(found := processes.family([root], mark)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    by_descent = processes.family([root], "nobody of " + mark)
    assert {process.pid for process in by_descent} == {process.pid for process in found}
    parent = root.find()
    assert parent is not None
    assert processes.kill([parent]) == []
    (orphan,) = processes.family([root], mark)
    assert orphan.pid in {process.pid for process in found}
    assert processes.terminate([orphan], 5) == []
    assert processes.family([root], mark) == []
    assert sleeper.poll() is None


def test_our_own_process_is_never_part_of_a_family() -> None:
    """`piti down` run from a flow of the stack must not end itself."""
    ourselves = Identity.of(os.getpid())
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


def test_a_secret_is_made_once_and_only_its_owner_reads_it(home: Path) -> None:
    path = Settings().auth_file
    assert read_secret(path) is None
    ensure_secret(path, prefix="piti:")
    secret = read_secret(path)
    assert secret is not None
    assert re.fullmatch("piti:[0-9a-f]{64}", secret)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert ensure_secret(path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_ray_gets_a_short_folder_where_home_is_deep_or_not_ascii() -> None:
    short = Path("/tmp/x/.piti")
    assert ray_folder(Settings(home=short)) == short / "ray"
    for unusable in ("deep" * 30, "für alle"):
        folder = ray_folder(Settings(home=Path("/tmp") / unusable))
        assert len(str(folder)) < 45
        assert not folder.parent.exists(), "asking makes nothing"


def test_a_start_that_is_refused_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The taken port is named, with its holder and the option."""
    home = tmp_path / ("deep" * 30)
    monkeypatch.setenv("PITI_HOME", str(home))
    told = rf"port \d+ .*is taken.*pid {os.getpid()}.*--ray-port"
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(StackError, match=told):
        control.up(replace(Ports.free(), ray=listener.getsockname()[1]))
    assert not (home / "stack.json").exists()
    assert not ray_folder(Settings()).parent.exists()


def test_a_folder_that_another_user_made_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: ours + 1)
    with pytest.raises(StackError, match=f"{tmp_path} belongs to another user"):
        control._make_ours(tmp_path)


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
    ensure_secret(Settings().auth_file, prefix="piti:")
    environment = server_environment(Settings(), Ports(prefect=4321), "id", Path("/work"), Path("/tmp/x"))
    assert {"PREFECT_API_KEY", "RAY_ADDRESS"} & set(environment) == set()
    assert environment["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"
    assert environment["NO_PROXY"] == environment["no_proxy"] == "intranet,127.0.0.1,localhost,::1"
    ui = Path(environment["PREFECT_SERVER_UI_STATIC_DIRECTORY"])
    assert ui.is_relative_to(home), "Prefect would write into its own package"
    assert environment[MARK] == "id"
    assert MARK not in client_environment(Settings(), Ports()), "a client is no part of the stack"


def test_the_server_asks_for_a_password_and_no_other_origin_may_call_it(home: Path) -> None:
    with pytest.raises(ValueError, match="prefect-auth is missing"):
        server_environment(Settings(), Ports(), "id", Path("/work"), Path("/tmp/x"))
    password = ensure_secret(Settings().auth_file, prefix="piti:")
    environment = server_environment(Settings(), Ports(prefect=4321), "id", Path("/work"), Path("/tmp/x"))
    assert environment["PREFECT_SERVER_API_AUTH_STRING"] == environment["PREFECT_API_AUTH_STRING"] == password
    assert environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4321"
    assert environment["PITI_CONFIG_FOLDERS"] == "/work"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9"), ("https_proxy", "SOCKS5H://127.0.0.1:9"), ("ALL_PROXY", "socks://127.0.0.1:9"),
        ("all_proxy", "ftp://127.0.0.1:9"), ("http_proxy", "socks4://127.0.0.1:9"), ("HTTPS_PROXY", "http://127.0.0.1:port"),
        ("HTTPS_PROXY", "://127.0.0.1"), ("http_proxy", "127.0.0.1:port"), ("NO_PROXY", "intranet,[::1]"), ("NO_PROXY", "fd00::/8"),
        ("no_proxy", "10.0.0.0/8,host:port"), ("NO_PROXY", "[::1]:80"), ("no_proxy", "http://a:b"),
    ],
)  # fmt: skip
def test_a_proxy_that_httpx_refuses_is_left_out(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """httpx, which Prefect's client uses, otherwise refuses to start even for hosts that no proxy serves."""
    ensure_secret(Settings().auth_file)
    for proxy in [known for known in os.environ if known.lower().endswith("_proxy")]:
        monkeypatch.delenv(proxy)
    monkeypatch.setenv(name, value)
    with pytest.raises((ImportError, ValueError, httpx.InvalidURL)):
        httpx.Client(verify=False)
    environment = server_environment(Settings(), Ports(), "id", Path("/work"), Path("/tmp/x"))
    monkeypatch.delenv(name)
    for proxy in [known for known in environment if known.lower().endswith("_proxy")]:
        monkeypatch.setenv(proxy, environment[proxy])
    httpx.Client(verify=False).close()


def test_a_proxy_that_httpx_takes_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_secret(Settings().auth_file)
    kept = {
        "https_proxy": "http://127.0.0.1:9",
        "ALL_PROXY": "127.0.0.1:9",
        "http_proxy": "",
        "NO_PROXY": "10.0.0.0/8,.org,[fe80::1],*",
    }
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    environment = server_environment(Settings(), Ports(), "id", Path("/work"), Path("/tmp/x"))
    assert {name: environment[name] for name in ("https_proxy", "ALL_PROXY", "http_proxy")} == {
        name: kept[name] for name in ("https_proxy", "ALL_PROXY", "http_proxy")
    }
    assert environment["no_proxy"] == "10.0.0.0/8,.org,fe80::1,*,127.0.0.1,localhost,::1"


@pytest.mark.parametrize("folder", ["/nowhere/at/all", "/dev/null", "here", "/tmp/" + "long" * 20])
def test_temporary_files_lie_in_tmp_where_the_temporary_folder_cannot_be_used(
    home: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert temporary_folder(Settings()).parent == Path("/var/tmp")
    monkeypatch.setenv("TMPDIR", folder)
    assert temporary_folder(Settings()).parent == Path("/tmp")
    assert temporary_folder(Settings()) != temporary_folder(Settings(home=home / "second"))


def test_nothing_calls_home(home: Path) -> None:
    environment = client_environment(Settings(), Ports())
    assert environment["DO_NOT_TRACK"] == "1"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert environment["PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS"] == "false"


def test_up_refuses_another_number_of_cores_than_the_stack_has(home: Path, sleeper: subprocess.Popen[bytes]) -> None:
    lives = {"ray": Identity.of(sleeper.pid)}
    for has, says in ((None, "with all CPU cores"), (2, "with 2 CPU cores")):
        stack = control.Stack(id="x", home=home, folder=home, ports=Ports(), num_cpus=has, processes=lives)
        control._save(stack)
        with pytest.raises(StackError, match=f"{says} - `piti down` first"):
            control.up(num_cpus=1)
        assert control._found_or_new(home, None, has).num_cpus == has
        assert control._found_or_new(home, None, None).num_cpus == has


def test_up_refuses_a_folder_whose_name_would_be_read_as_two(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a:b").mkdir()
    monkeypatch.chdir(tmp_path / "a:b")
    with pytest.raises(StackError, match="has a colon in its name"):
        control.up(Ports.free())
    monkeypatch.setenv("PITI_CONFIG_FOLDERS", "/mine")
    assert control._found_or_new(home, None, None).folder == tmp_path / "a:b"


def test_two_ups_at_once_are_refused(home: Path) -> None:
    with control._lock(home), pytest.raises(StackError, match="another `piti up`"), control._lock(home):
        pass


def test_a_public_ray_dashboard_needs_a_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray_head.guarded(SimpleNamespace(dashboard_host="127.0.0.1"), True)
    ray_head.guarded(SimpleNamespace(dashboard_host="0.0.0.0"), False)
    with pytest.raises(SystemExit):
        ray_head.guarded(SimpleNamespace(dashboard_host="0.0.0.0"), True)
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    ray_head.guarded(SimpleNamespace(dashboard_host="0.0.0.0"), True)


def test_a_ray_node_that_is_slow_to_start_is_waited_for() -> None:
    """On two busy cores a node took more than the 30 s that Ray waits."""
    answers = iter([RuntimeError("not yet"), {"node_manager_port": 1}])

    def get_node(address: str) -> object:
        if isinstance(answer := next(answers), RuntimeError):
            raise answer
        return answer

    assert ray_head.patient(get_node, 5)("here") == {"node_manager_port": 1}
    answers = iter([RuntimeError("never")])
    with pytest.raises(RuntimeError, match="never"):
        ray_head.patient(get_node, -1)("here")


def test_the_profile_is_made_and_activated_only_where_the_user_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_PROFILE", raising=False)
    monkeypatch.delenv("PREFECT_PROFILES_PATH", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "new"))
    assert "activated" in str(prefect_profile.ensure_profile())
    assert prefect_profile.ensure_profile() is None, "nothing is left to say"
    theirs = 'active = "cloud"\n\n[profiles.cloud]\nPREFECT_API_KEY = "secret"  # mine\n'
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "profiles.toml").write_text(theirs)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "old"))
    assert "'cloud' stays active" in str(prefect_profile.ensure_profile())
    text = (tmp_path / "old" / "profiles.toml").read_text()
    assert text.startswith(theirs)
    assert set(tomllib.loads(text)["profiles"]) == {"cloud", "piti"}
    assert "'cloud' stays active" in str(prefect_profile.ensure_profile())
    assert (tmp_path / "old" / "profiles.toml").read_text() == text


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
