"""Plain HTTP to the stack's servers. Loopback is never reached through a proxy; other servers are, if one is set."""

from __future__ import annotations

import base64
import http.client
import io
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
POLL_SECONDS = 0.25
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def request_json(
    url: str,
    token: str | None = None,
    body: Any = None,
    timeout_seconds: float = 5.0,
    *,
    basic: str | None = None,
    method: str | None = None,
) -> Any:
    """The JSON that a server answers; `body` makes it a POST. Raises OSError where nothing (good) answers: HTTPError
    with what the server said where it refuses.

    `token`: of a Ray cluster. `basic`: `user:password` of a Prefect server.
    """
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if basic:
        headers["Authorization"] = "Basic " + base64.b64encode(basic.encode()).decode()
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, headers, method=method)
        opener = _DIRECT if urlsplit(url).hostname in LOOPBACK else urllib.request.build_opener()
        with opener.open(request, timeout=timeout_seconds) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:  # nobody else would close its connection
            content = io.BytesIO(error.read())
        raise urllib.error.HTTPError(error.url, error.code, error.reason, error.headers, content) from None
    except http.client.HTTPException as error:
        raise OSError(f"{url} does not answer in HTTP ({type(error).__name__})") from error
    except ValueError as error:
        raise OSError(f"{url} answers something else than JSON, or is no address") from error


def ray_answers(url: str, token: str | None) -> bool:
    """Whether a Ray cluster's Jobs API is there and accepts the token."""
    try:
        return isinstance(request_json(f"{url}/api/jobs/", token), list)
    except OSError:
        return False
