"""The stack for real: `up` finds what is there and brings back what died; `down` takes all of it and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from piti.settings import PROJECT
from piti.stack.http import ray_answers, request_json
from piti.stack.prefect_api import prefect_answers
from piti.stack.processes import lives
from piti.stack.services import DEPLOYMENTS
from tests.e2e.runs import Prefect, wait_for
from tests.running_stack import RunningStack, run_piti

pytestmark = pytest.mark.integration

# A job that leaves a process of its own session behind, as a careless library might.
STRAY = "import subprocess, time; subprocess.Popen(['sleep', '987'], start_new_session=True); time.sleep(600)"


def prefect(*arguments: str, cwd: Path = PROJECT, **environment: str) -> subprocess.CompletedProcess[str]:
    """The `prefect` command, in the checkout if not said otherwise, with nothing in the environment that names a server."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAY_", "PITI_"))
    }
    return subprocess.run(
        [sys.executable, "-m", "prefect", *arguments], env={**inherited, "NO_COLOR": "1", **environment}, cwd=cwd,
        capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def identities(stack: RunningStack) -> dict[str, int]:
    return {name: identity.pid for name, identity in stack.record.processes.items()}


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks a lot like ours, but belongs to nobody's stack."""
    command = [sys.executable, "-c", "import time; time.sleep(600)", "flows.serve", "raylet", "prefect server start"]
    with subprocess.Popen(command, env={**os.environ, "PITI_STACK_ID": "another"}) as process:
        yield process
        process.kill()


def test_everything_answers_and_ray_asks_for_a_private_token(stack: RunningStack) -> None:
    token = stack.home / "ray-token"
    assert prefect_answers(stack.prefect_api_url)
    assert served(stack) == DEPLOYMENTS
    assert ray_answers(stack.ray_url, token.read_text())
    assert not ray_answers(stack.ray_url, None)
    assert not ray_answers(stack.ray_url, "0" * 64)


def served(stack: RunningStack) -> set[str]:
    password = (stack.home / "prefect-auth").read_text()
    url, query = f"{stack.prefect_api_url}/deployments/filter", {"flows": {"name": {"any_": ["piti"]}}}
    return {deployment["name"] for deployment in request_json(url, body=query, basic=password)}


@pytest.mark.parametrize("password", [None, "piti:wrong", ":", "piti"])
def test_nobody_reads_or_changes_a_deployment_without_the_password(stack: RunningStack, password: str | None) -> None:
    """Whoever could set a deployment's pull steps would have them run as this user."""
    for method, path in (("POST", "deployments/filter"), ("POST", "deployments/"), ("GET", "admin/settings")):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            request_json(f"{stack.prefect_api_url}/{path}", body={}, basic=password, method=method)


def test_a_page_of_another_origin_may_not_ask_the_api(stack: RunningStack) -> None:
    def allowed(origin: str) -> str | None:
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        request = urllib.request.Request(f"{stack.prefect_api_url}/deployments/filter", method="OPTIONS", headers=asked)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
                return str(answer.headers["Access-Control-Allow-Origin"])
        except urllib.error.HTTPError as error:
            with error:
                return error.headers["Access-Control-Allow-Origin"]

    assert allowed(stack.record.ports.prefect_url) == stack.record.ports.prefect_url
    assert allowed("http://evil.example") is None


def test_what_the_stack_keeps_is_closed_to_other_users(stack: RunningStack) -> None:
    assert stat.S_IMODE(stack.home.stat().st_mode) == 0o700
    files = [*stack.home.glob("*-*"), *(stack.home / "logs").iterdir(), *(stack.home / "prefect").glob("prefect.db*")]
    assert len(files) >= 6, "two secrets, three logs, the database"
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_everything_listens_on_loopback_only(stack: RunningStack) -> None:
    ours = {process.pid for process in stack.processes()}
    listening = [
        connection.laddr.ip.removeprefix("::ffff:")
        for connection in psutil.net_connections("tcp")
        if connection.pid in ours and connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 3
    assert set(listening) == {"127.0.0.1"}


def test_nothing_lies_in_folders_that_belong_to_whichever_user_came_first(stack: RunningStack) -> None:
    """Ray's own default, and Prefect's for serving processes: a second user could not write there."""
    shared = (f"{tempfile.gettempdir()}/ray/", f"{tempfile.gettempdir()}/runner_storage")
    used: list[str] = []
    for process in stack.processes():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended just now
            used += [*(file.path for file in process.open_files()), *process.cmdline()]
    assert any(path.startswith(str(stack.record.ray_folder)) for path in used)
    assert [path for path in used if path.startswith(shared)] == []
    assert list((stack.home / "serve" / "runner_storage").iterdir())


def test_up_again_changes_nothing(stack: RunningStack) -> None:
    before = identities(stack)
    started = time.monotonic()
    answer = stack.up()
    assert time.monotonic() - started < 20
    assert identities(stack) == before
    assert answer.stdout.count("answers") == 4
    assert stack.record.ports.prefect_url in answer.stdout
    assert stack.piti("status").returncode == 0


def test_up_brings_back_only_what_died_and_keeps_what_a_person_set(stack: RunningStack) -> None:
    prefect = Prefect(stack.environment)
    url = f"/deployments/{prefect.request('GET', '/deployments/name/piti/prepare')['id']}"
    schedule = {"active": False, "schedule": {"cron": "0 3 * * *", "timezone": "Europe/Berlin"}}
    prefect.request("POST", f"{url}/schedules", [schedule])
    mine = {"paused": True, "parameters": {"config": "coco-mask"}, "concurrency_limit": 1, "tags": ["mine"]}
    prefect.request("PATCH", url, mine)
    run_it = {"type": "run-deployment", "source": "selected", "deployment_id": url.rpartition("/")[2]}
    trigger = {"type": "event", "expect": ["a-new-picture"], "posture": "Reactive", "threshold": 1, "within": 0}
    owner = {"owner_resource": f"prefect.deployment.{run_it['deployment_id']}"}  # as `prefect deploy` makes triggers
    theirs = prefect.request(
        "POST", "/automations/", {"name": "mine", "trigger": trigger, "actions": [run_it], **owner}
    )["id"]
    rules = prefect.request("POST", "/automations/filter", {})
    ours = [f"/automations/{rule['id']}" for rule in rules if rule["name"].startswith("piti: ")]
    assert len(ours) == 2, "crashed runs, finished checkpoints"
    for rule in ours:
        prefect.request("PATCH", rule, {"enabled": False})
    before = identities(stack)
    stack.kill("serve")
    status = stack.piti("status")
    assert status.returncode == 1
    assert "ended" in status.stdout
    stack.up()
    after = identities(stack)
    assert {name for name in before if before[name] != after[name]} == {"serve"}
    found = prefect.request("GET", url)
    assert {name: found[name] for name in ("paused", "parameters", "tags")} == {
        "paused": True, "parameters": mine["parameters"], "tags": ["mine"],
    }  # fmt: skip
    assert found["global_concurrency_limit"]["limit"] == 1
    assert [kept["schedule"]["cron"] for kept in found["schedules"]] == ["0 3 * * *"]
    assert prefect.request("GET", f"/automations/{theirs}")["enabled"]
    for rule in ours:
        assert not prefect.request("GET", rule)["enabled"], "a person switched it off"
        prefect.request("PATCH", rule, {"enabled": True})
    prefect.request("DELETE", f"/automations/{theirs}")
    prefect.request("DELETE", f"{url}/schedules/{found['schedules'][0]['id']}")
    prefect.request("PATCH", url, {"paused": False, "parameters": {}, "concurrency_limit": None, "tags": ["piti"]})


def test_other_ports_while_running_are_refused(stack: RunningStack) -> None:
    answer = stack.piti("up", "--prefect-port", "4999")
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert "piti down" in answer.stderr


@pytest.mark.parametrize("folder", ["checkout", "elsewhere"])
def test_the_prefect_command_finds_the_stack_and_signs_in(stack: RunningStack, tmp_path: Path, folder: str) -> None:
    """In the checkout by its prefect.toml, elsewhere by the profile that `piti up` made; whatever proxies are set."""
    places = {"checkout": (PROJECT, tmp_path), "elsewhere": (tmp_path, stack.home / "prefect")}
    cwd, profiles = places[folder]
    proxies = {"http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}
    answer = prefect(
        "deployment", "inspect", "piti/full-train", cwd=cwd, PITI_HOME=str(stack.home), PREFECT_HOME=str(profiles), **proxies
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "full-train" in answer.stdout


def test_the_prefect_command_without_a_server_says_what_to_do(tmp_path: Path) -> None:
    place = {"PITI_HOME": str(tmp_path), "PREFECT_HOME": str(tmp_path)}
    answer = prefect("deployment", "run", "piti/full-train", PREFECT_API_URL="http://127.0.0.1:9/api", **place)
    assert answer.returncode == 1
    assert (
        answer.stderr.strip() == "piti: no Prefect server answers at http://127.0.0.1:9/api - start one with `piti up`"
    )


def test_run_names_the_deployments_and_refuses_wrong_parameters(stack: RunningStack) -> None:
    unknown = stack.piti("run", "full-trian")
    assert unknown.returncode == 1
    assert "evaluate, full-train, prepare, study, train" in unknown.stderr
    wrong = stack.piti("run", "full-train", "-p", "start_from=nowhere")
    assert wrong.returncode == 1
    assert "start_from" in wrong.stderr or "nowhere" in wrong.stderr
    assert "Traceback" not in wrong.stderr + unknown.stderr


def test_run_ends_with_all_that_is_wrong_in_one_line(stack: RunningStack, tmp_path: Path) -> None:
    """Each problem by itself, and those that a config's form has: tests/unit/flows/test_preflight.py."""
    overrides = {
        "root": str(tmp_path / "refused"),
        "cluster.num_workers": 1,
        "cluster.cpus_per_worker": 1000,
        "sampling.base_respacing": "ddim7777",
        "data.source": {"kind": "paired", "images": "/nowhere"},
    }
    answer = stack.piti("run", "train", "--config", "demo-sketch", "--param", f"overrides={json.dumps(overrides)}")
    assert answer.returncode == 1
    assert "runs/flow-run/" in answer.stdout
    (line,) = answer.stderr.splitlines()
    for part in ("preflight found", "/nowhere", "no whole stride takes exactly 7777", "training wants 1000 CPUs"):
        assert part in line
    assert not (tmp_path / "refused").exists(), "nothing half-written is left behind"


def test_a_service_that_cannot_start_leaves_nothing_running(tmp_path: Path) -> None:
    """Prefect cannot open its database, so what was started beside it is stopped again."""
    (tmp_path / "prefect" / "prefect.db").mkdir(parents=True)
    answer = run_piti("up", "--free-ports", environment={**os.environ, "PITI_HOME": str(tmp_path)})
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert "Prefect server" in answer.stderr
    assert "prefect.log" in answer.stderr
    assert not (tmp_path / "stack.json").exists()
    assert [process for process in psutil.process_iter() if belongs_below(process, tmp_path)] == []


def belongs_below(process: psutil.Process, home: Path) -> bool:
    try:
        return process.environ().get("PITI_HOME") == str(home) and lives(process)
    except psutil.Error:
        return False


def test_a_second_stack_is_as_quiet_as_one_and_takes_nothing_from_the_first(
    stack: RunningStack, tmp_path: Path
) -> None:
    """In a home whose name is not ASCII and looks like markup."""
    before = identities(stack)
    second = RunningStack.start(tmp_path / "zweiter [b] Stapel é")
    try:
        status = second.piti("status")
        assert (status.returncode, status.stderr) == (0, "")
        assert str(second.home) in second.up().stdout
        assert not {one.pid for one in second.processes()} & {one.pid for one in stack.processes()}
        assert second.record.ray_folder != stack.record.ray_folder
    finally:
        left = second.stop()
    assert left == []
    status = stack.piti("status")
    assert (status.returncode, status.stderr) == (0, "")
    assert identities(stack) == before
    assert [one for one in psutil.process_iter() if belongs_below(one, second.home)] == []


def test_down_takes_everything_and_nothing_else(stack: RunningStack, bystander: subprocess.Popen[bytes]) -> None:
    """Last of a session: tests/e2e come before (Makefile)."""
    token = (stack.home / "ray-token").read_text()
    job = {"entrypoint": f'{sys.executable} -c "{STRAY}"'}
    request_json(f"{stack.ray_url}/api/jobs/", token, job, timeout_seconds=90)
    strays = wait_for("the job's stray process", lambda: [one for one in stack.processes() if is_stray(one)], 90)
    ray_folder, temporary = stack.record.ray_folder, stack.record.temporary
    (temporary / "left-by-a-killed-process").mkdir()
    assert stack.stop() == []
    assert not any(lives(process) for process in strays)
    assert not (stack.home / "stack.json").exists()
    assert ray_folder.is_relative_to(stack.home) or not ray_folder.exists()
    assert not temporary.exists()
    assert bystander.poll() is None
    again = stack.piti("down")
    assert (again.returncode, again.stdout.strip()) == (0, "nothing was running")


def is_stray(process: psutil.Process) -> bool:
    try:
        return process.cmdline() == ["sleep", "987"]
    except psutil.Error:
        return False
