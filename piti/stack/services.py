"""The four services of the local stack: the command of each, and the check that it answers."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from piti.settings import Settings
from piti.stack.environment import home_digest
from piti.stack.http import ray_answers
from piti.stack.ports import HOST, Ports
from piti.stack.prefect_api import prefect_answers, served_deployments
from piti.stack.reports import reports_answer
from piti.stack.secret_files import read_secret

DEPLOYMENTS = {"full-train", "prepare", "train", "evaluate", "study"}

# Ray's sockets lie at <temporary folder>/session_<date>_<pid>/sockets/plasma_store, and a Unix socket's path
# may have 107 bytes.
_LONGEST_RAY_FOLDER = 107 - len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")
_KEPT_RAY_SESSIONS = 2
_LONGEST_SILENCE_SECONDS = 60.0  # of the serving process, which asks every few seconds


@dataclass(frozen=True)
class Service:
    """`answers(since)` is whether the service that was started at `since` (seconds since the epoch) is of use.

    `umask`: of its process; None: that of whoever starts it.
    """

    name: str
    title: str
    port_names: tuple[str, ...]
    command: tuple[str, ...]
    answers: Callable[[float], bool]
    umask: int | None = None


def services(settings: Settings, ports: Ports, num_cpus: int | None) -> list[Service]:
    """Prefect server, Ray head, reports and serving process, in the order in which they are stopped last to first."""
    token = read_secret(settings.token_file)
    ray = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
        "--node-ip-address", HOST, "--port", str(ports.ray),
        "--dashboard-host", HOST, "--dashboard-port", str(ports.ray_dashboard), "--dashboard-agent-listen-port", "0",
        "--min-worker-port", "0", "--max-worker-port", "0",
        "--object-store-memory", str(settings.object_store_megabytes * 2**20),
        "--temp-dir", str(ray_folder(settings)), "--log-color", "false",
        *([] if num_cpus is None else ["--num-cpus", str(num_cpus)]),
    ]  # fmt: skip
    prefect = [
        sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(ports.prefect),
        "--analytics-off",
    ]  # fmt: skip
    reports = (sys.executable, "-m", "piti.stack.report_server", str(ports.reports))
    api = ports.prefect_api_url
    return [
        Service("prefect", "Prefect server", ("prefect",), tuple(prefect), lambda _: prefect_answers(api), umask=0o077),
        Service("ray", "Ray head", ("ray_dashboard", "ray"), tuple(ray), lambda _: ray_answers(ports.ray_url, token)),
        Service("reports", "Reports", ("reports",), reports, lambda _: reports_answer(ports.reports_url)),
        Service("serve", "Deployments", (), (sys.executable, "-m", "flows.serve"), lambda since: _all_served(api, since)),
    ]  # fmt: skip


def _all_served(api_url: str, since: float) -> bool:
    """Whether every deployment was asked for runs within the last minute, by a serving process started at `since`."""
    try:
        polled = served_deployments(api_url)
    except OSError:
        return False
    oldest = max(since, time.time() - _LONGEST_SILENCE_SECONDS)
    return all(
        (stamp := polled.get(name)) is not None and datetime.fromisoformat(stamp).timestamp() >= oldest
        for name in DEPLOYMENTS
    )


def ray_folder(settings: Settings) -> Path:
    """Where Ray keeps its sockets and logs: below PITI_HOME, or in a temporary folder where Ray cannot use that path,
    which is too long for a Unix socket, or not ASCII. Never in /tmp/ray, which belongs to whoever was there first.
    """
    folder = settings.home / "ray"
    if len(os.fsencode(folder)) <= _LONGEST_RAY_FOLDER and str(folder).isascii():
        return folder
    return (
        Path("/tmp") / f"piti-ray-{os.getuid()}-{home_digest(settings)}" / "ray"
    )  # Ray opens its own folder to all, but not ours


def prune_ray_sessions(folder: Path) -> None:
    """Delete the logs of all but the latest sessions that Ray left behind; only while Ray is not running."""
    sessions = sorted(path for path in folder.glob("session_*") if path.is_dir() and not path.is_symlink())
    for old in sessions[: -_KEPT_RAY_SESSIONS or None]:
        shutil.rmtree(old, ignore_errors=True)
