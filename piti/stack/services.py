"""The three services of the local stack: how each is started, and how one sees that it answers."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from piti.settings import PROJECT, Settings
from piti.stack.http import prefect_answers, ray_answers, served_deployments
from piti.stack.ports import HOST, Ports
from piti.stack.processes import MARK

DEPLOYMENTS = {"full-train", "prepare", "train", "evaluate"}

# Ray's sockets lie at <temporary folder>/session_<date>_<pid>/sockets/plasma_store, and a Unix socket's path
# may have 107 bytes (103 on macOS).
_LONGEST_RAY_FOLDER = 103 - len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")
_KEPT_RAY_SESSIONS = 2

# What the user's shell may hold for other servers must not reach this stack's processes.
_FOREIGN_VARIABLES = (
    "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE", "PREFECT_SERVER_DATABASE_CONNECTION_URL",
    "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_HEADERS",
)  # fmt: skip


@dataclass(frozen=True)
class Service:
    """`answers(since)` is whether the service that was started at `since` (seconds since the epoch) is of use."""

    name: str
    title: str
    port_names: tuple[str, ...]
    command: tuple[str, ...]
    answers: Callable[[float], bool]


def client_environment(settings: Settings, ports: Ports) -> dict[str, str]:
    """What a program needs in its environment to use the stack on these ports, and to send nothing home."""
    return {
        "PREFECT_API_URL": ports.prefect_api_url,
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
        "DO_NOT_TRACK": "1",
        "PITI_HOME": str(settings.home),
        "PITI_RAY_JOBS_URL": ports.ray_url,
        "PITI_RAY_TOKEN_FILE": str(settings.token_file),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(settings.token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's name for "this is one machine": every part listens on loopback instead of on all interfaces.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def server_environment(settings: Settings, ports: Ports, stack_id: str) -> dict[str, str]:
    """The whole environment of the stack's own processes."""
    inherited = {name: value for name, value in os.environ.items() if name not in _FOREIGN_VARIABLES}
    direct = ",".join(
        part for part in (inherited.get("NO_PROXY", inherited.get("no_proxy", "")), HOST, "localhost") if part
    )
    return {
        **inherited,
        **client_environment(settings, ports),
        MARK: stack_id,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": direct,
        "no_proxy": direct,
        "PREFECT_RUNNER_POLL_FREQUENCY": inherited.get("PREFECT_RUNNER_POLL_FREQUENCY", "2"),
        "RAY_START_HOOK": "piti.stack.ray_head.without_ray_client",
    }


def services(settings: Settings, ports: Ports, ray_folder: Path, num_cpus: int | None) -> list[Service]:
    """Prefect server, Ray head and serving process, in the order in which they are stopped last to first."""
    token = read_token(settings)
    ray = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
        "--node-ip-address", HOST, "--port", str(ports.ray),
        "--dashboard-host", HOST, "--dashboard-port", str(ports.ray_dashboard), "--dashboard-agent-listen-port", "0",
        "--min-worker-port", "0", "--max-worker-port", "0",
        "--object-store-memory", str(settings.object_store_megabytes * 2**20),
        "--temp-dir", str(ray_folder), "--log-color", "false",
        *([] if num_cpus is None else ["--num-cpus", str(num_cpus)]),
    ]  # fmt: skip
    prefect = [
        sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(ports.prefect),
        "--analytics-off",
    ]  # fmt: skip
    return [
        Service("prefect", "Prefect server", ("prefect",), tuple(prefect), lambda _: prefect_answers(ports.prefect_api_url)),
        Service("ray", "Ray head", ("ray_dashboard", "ray"), tuple(ray), lambda _: ray_answers(ports.ray_url, token)),
        Service(
            "serve", "Deployments", (), (sys.executable, "-m", "flows.serve"), lambda since: _all_served(ports, since)
        ),
    ]  # fmt: skip


def _all_served(ports: Ports, since: float) -> bool:
    """Whether every deployment has been asked for runs by a serving process that was started at `since`."""
    try:
        polled = served_deployments(ports.prefect_api_url)
    except OSError:
        return False
    return all(
        (stamp := polled.get(name)) is not None and datetime.fromisoformat(stamp).timestamp() >= since
        for name in DEPLOYMENTS
    )


def read_token(settings: Settings) -> str | None:
    """The local cluster's token; None if there is none yet."""
    try:
        return settings.token_file.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def ensure_token(settings: Settings) -> None:
    """Make the token file, readable by its owner only, if there is none; correct its mode otherwise."""
    path = settings.token_file
    if read_token(settings) is not None:
        path.chmod(0o600)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(secrets.token_hex(32))
    os.replace(aside, path)


def ray_folder(settings: Settings) -> Path:
    """Where Ray keeps its sockets and logs: below PITI_HOME, or in a temporary folder where that path is too long."""
    folder = settings.home / "ray"
    if len(os.fsencode(folder)) <= _LONGEST_RAY_FOLDER:
        return folder
    return Path(tempfile.mkdtemp(prefix="piti-ray-", dir="/tmp"))


def prune_ray_sessions(folder: Path) -> None:
    """Delete the logs of all but the latest sessions that Ray left behind; only while Ray is not running."""
    sessions = sorted(path for path in folder.glob("session_*") if path.is_dir() and not path.is_symlink())
    for old in sessions[: -_KEPT_RAY_SESSIONS or None]:
        shutil.rmtree(old, ignore_errors=True)


def working_folder() -> Path:
    """Where the services run: the checkout, whose prefect.toml and flows/ they read."""
    return PROJECT
