"""Asks the stack's servers whether they answer. Plain HTTP on loopback, without any proxy."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

from piti.errors import StackError

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
POLL_SECONDS = 0.25


def request_json(url: str, token: str | None = None, body: Any = None, timeout_seconds: float = 5.0) -> Any:
    """The JSON that a server answers; `body` makes it a POST. Raises OSError where nothing (good) answers."""
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    with _OPENER.open(urllib.request.Request(url, data, headers), timeout=timeout_seconds) as answer:
        try:
            return json.loads(answer.read())
        except ValueError as error:
            raise OSError(f"{url} answers something else than JSON") from error


def prefect_answers(api_url: str) -> bool:
    """Whether a Prefect server is there and healthy."""
    try:
        return request_json(f"{api_url}/health") is True
    except OSError:
        return False


def ray_answers(url: str, token: str | None) -> bool:
    """Whether a Ray cluster's Jobs API is there and accepts the token."""
    try:
        return isinstance(request_json(f"{url}/api/jobs/", token), list)
    except OSError:
        return False


def served_deployments(api_url: str) -> dict[str, str | None]:
    """Names of the deployments and when each was last polled by a serving process (ISO 8601, None: never)."""
    found = request_json(f"{api_url}/deployments/filter", body={"flows": {"name": {"any_": ["piti"]}}})
    return {deployment["name"]: deployment.get("last_polled") for deployment in found}


def wait_until_prefect_answers(timeout_seconds: float = 180.0) -> None:
    """Block until the server that PREFECT_API_URL names answers. Raises StackError after `timeout_seconds`."""
    api_url = os.environ.get("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    deadline = time.monotonic() + timeout_seconds
    while not prefect_answers(api_url):
        if time.monotonic() > deadline:
            raise StackError(f"no Prefect server answers at {api_url}", "start one with `piti up`")
        time.sleep(POLL_SECONDS)
