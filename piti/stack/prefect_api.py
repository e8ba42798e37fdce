"""Requests to the Prefect server: its address, the password, and its answers."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
from typing import Any

from piti.errors import StackError
from piti.settings import settings
from piti.stack.http import POLL_SECONDS, request_json
from piti.stack.secret_files import read_secret

DEFAULT_API_URL = "http://127.0.0.1:4200/api"
_PATIENCE_SECONDS = 180.0  # of a serving process with its server


def local_api_url() -> str | None:
    """Where the stack that `piti up` started has its server; None if none was started or its record is damaged."""
    try:
        ports = json.loads((settings().home / "stack.json").read_text(encoding="utf-8"))["ports"]
        return f"http://127.0.0.1:{int(ports['prefect'])}/api"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def server_address(api_url: str) -> str:
    """`api_url` without a last slash; with 127.0.0.1 for `localhost` where it names the local stack's server.

    `localhost` may mean ::1 as well, where another user's program could listen and get the password.
    """
    api_url = api_url.rstrip("/")
    local = local_api_url()
    named = re.sub(r"^http://localhost(?=:)", "http://127.0.0.1", api_url, flags=re.IGNORECASE)
    return local if local is not None and named == local else api_url


def auth_string(api_url: str) -> str | None:
    """`user:password` for a server, None if it needs none that we know of.

    PREFECT_API_AUTH_STRING wins. The local stack's password goes to the local stack's server and nowhere else;
    that of a file which PITI_PREFECT_AUTH_FILE names goes to the server that PREFECT_API_URL names.
    """
    if given := os.environ.get("PREFECT_API_AUTH_STRING"):
        return given
    known = settings()
    named = os.environ.get("PREFECT_API_URL", "")
    chosen = known.prefect_auth_file is not None and api_url in (named, server_address(named))
    if not chosen and api_url != local_api_url():
        return None
    return read_secret(known.auth_file)


def prefect_json(api_url: str, path: str, body: Any = None) -> Any:
    """What the Prefect server answers at `<api_url>/<path>`, signed in; `body` makes it a POST. Raises OSError."""
    api_url = server_address(api_url)
    return request_json(f"{api_url}/{path}", None, body, basic=auth_string(api_url))


def prefect_answers(api_url: str) -> bool:
    """Whether a Prefect server answers and is healthy; needs no password."""
    try:
        return prefect_json(api_url, "health") is True
    except OSError:
        return False


def prefect_lets_in(api_url: str) -> bool:
    """Whether the server at `api_url`, which answers, accepts our password."""
    try:
        prefect_json(api_url, "admin/version")
    except urllib.error.HTTPError as error:
        return error.code not in (401, 403)
    except OSError:
        return True
    return True


def require_prefect(api_url: str) -> None:
    """Raise StackError unless a server answers at `api_url` and lets us in."""
    if not prefect_answers(api_url):
        raise StackError(f"no Prefect server answers at {api_url}", "start one with `piti up`")
    if not prefect_lets_in(api_url):
        raise StackError(
            f"the Prefect server at {api_url} asks for a password",
            "set PREFECT_API_AUTH_STRING to user:password, or PITI_HOME to the home of the stack that you mean",
        )


def served_deployments(api_url: str) -> dict[str, str | None]:
    """Names of the deployments and when each was last polled by a serving process (ISO 8601, None: never)."""
    found = prefect_json(api_url, "deployments/filter", {"flows": {"name": {"any_": ["piti"]}}})
    return {deployment["name"]: deployment.get("last_polled") for deployment in found}


def wait_until_prefect_answers() -> None:
    """Block until the server that PREFECT_API_URL names answers. Raises StackError after three minutes."""
    api_url = os.environ.get("PREFECT_API_URL", DEFAULT_API_URL)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not prefect_answers(api_url):
        if time.monotonic() > deadline:
            raise StackError(f"no Prefect server answers at {api_url}", "start one with `piti up`")
        time.sleep(POLL_SECONDS)
