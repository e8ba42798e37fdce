"""The environment that the stack's processes get, and the one that a program needs to use the stack."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

from piti.settings import Settings
from piti.stack.http import LOOPBACK
from piti.stack.ports import HOST, Ports
from piti.stack.processes import MARK
from piti.stack.secret_files import read_secret

HEARTBEAT_SECONDS = 30  # a run whose process was killed is marked Crashed after three: flows/crashed_runs.py

# Settings of Prefect for every process of this project, wherever it runs.
PREFECT_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    "DO_NOT_TRACK": "1",
}

# What the user's shell may hold for other servers must not reach this stack's processes.
_FOREIGN_VARIABLES = (
    "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE", "PREFECT_SERVER_DATABASE_CONNECTION_URL",
    "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_HEADERS", "RAY_TMPDIR",
)  # fmt: skip

# Programs put Unix sockets below TMPDIR, multiprocessing at /pymp-<8>/listener-<8>; such a path may have 107 bytes.
_LONGEST_TEMPORARY_FOLDER = 50


def client_environment(settings: Settings, ports: Ports) -> dict[str, str]:
    """What a program needs in its environment to use the stack on these ports, and to send nothing home."""
    password = read_secret(settings.auth_file)
    return {
        **PREFECT_SETTINGS,
        "PREFECT_API_URL": ports.prefect_api_url,
        **({"PREFECT_API_AUTH_STRING": password} if password else {}),
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PITI_HOME": str(settings.home),
        "PITI_RAY_JOBS_URL": ports.ray_url,
        "PITI_RAY_TOKEN_FILE": str(settings.token_file),
        "PITI_REPORTS_URL": ports.reports_url,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(settings.token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's name for "this is one machine": every part listens on loopback instead of on all interfaces.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def server_environment(
    settings: Settings, ports: Ports, stack_id: str, folder: Path, temporary: Path
) -> dict[str, str]:
    """The whole environment of the stack's own processes.

    `folder`: where `piti up` was started. `temporary`: the folder of their temporary files (`temporary_folder`).

    Raises ValueError if there is no password for the Prefect server yet.
    """
    inherited = without_broken_proxies(os.environ)
    inherited = {name: value for name, value in inherited.items() if name not in _FOREIGN_VARIABLES}
    client = client_environment(settings, ports)
    if "PREFECT_API_AUTH_STRING" not in client:
        raise ValueError(f"{settings.auth_file} is missing or empty")
    return {
        **inherited,
        **client,
        **direct_to_loopback(inherited),
        "PREFECT_SERVER_API_AUTH_STRING": client["PREFECT_API_AUTH_STRING"],
        # The UI comes from the server itself; no page of another origin may ask the API.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ports.prefect_url,
        # Prefect's default is its own package's folder, which belongs to whoever installed it.
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(settings.home / "prefect" / "ui"),
        "PITI_CONFIG_FOLDERS": settings.config_folders or str(folder),
        MARK: stack_id,
        "TMPDIR": str(temporary),
        "PITI_CACHE": inherited.get("PITI_CACHE") or str(settings.home / "cache"),  # outlives the temporary files
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # a folder `flows` or `prefect` where `piti up` was started is not ours
        "PREFECT_RUNNER_POLL_FREQUENCY": inherited.get("PREFECT_RUNNER_POLL_FREQUENCY", "2"),
        "RAY_START_HOOK": "piti.stack.ray_head.for_one_machine",
    }


def direct_to_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY in both spellings: what it says as far as httpx can read it, and loopback."""
    given = environment.get("NO_PROXY", environment.get("no_proxy", "")).split(",")
    names = [bare for name in given if (bare := name.strip().removeprefix("[").removesuffix("]"))]
    readable = [name for name in names if _httpx_reads(name)]
    direct = ",".join([*readable, *(name for name in (HOST, "localhost", "::1") if name not in readable)])
    return {"NO_PROXY": direct, "no_proxy": direct}


def without_broken_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without proxies that httpx refuses, SOCKS where nothing can speak it: Prefect's client would not
    even start, whatever server it asks."""
    return {
        name: value
        for name, value in environment.items()
        if not name.lower().endswith("_proxy") or name.lower() == "no_proxy" or not value or _httpx_takes(value)
    }


def _httpx_takes(proxy: str) -> bool:
    import httpx  # slow; few have a proxy

    try:
        url = httpx.Proxy(proxy if "://" in proxy else f"http://{proxy}").url
    except (ValueError, httpx.InvalidURL):
        return False
    return not url.scheme.startswith("socks") or importlib.util.find_spec("socksio") is not None


def _httpx_reads(name: str) -> bool:
    """Whether a host in NO_PROXY becomes a pattern of httpx's. `fd00::/8` does not."""
    if name in {HOST, "localhost", "::1"}:
        return True
    import httpx

    address = name.partition("/")[0]
    host = f"[{name}]" if address.count(":") > 1 else f"*{name}"
    try:
        httpx.URL(name if "://" in name else f"all://{host}")
    except httpx.InvalidURL:
        return False
    return True


def home_digest(settings: Settings) -> str:
    """Twelve hex digits that tell this home's files in shared folders from other homes'."""
    return hashlib.sha256(os.fsencode(settings.home)).hexdigest()[:12]


def temporary_folder(settings: Settings) -> Path:
    """A name in TMPDIR for the temporary files of the stack of this home alone; in /tmp where TMPDIR is of no use.

    `piti down` deletes it: processes that are killed leave files there.
    """
    given = os.environ.get("TMPDIR", "")
    return Path(given if _keeps_files_and_sockets(given) else "/tmp") / f"piti-{home_digest(settings)}"


def _keeps_files_and_sockets(folder: str) -> bool:
    if not os.path.isabs(folder) or len(os.fsencode(folder)) > _LONGEST_TEMPORARY_FOLDER:
        return False
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a server that listens on `host`."""
    if host in LOOPBACK:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name, 127.0.0.1.example.org say
        return False
