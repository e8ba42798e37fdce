"""A Ray cluster that is away: waited for, for a while, and told apart from one that refuses. With a real one: tests/e2e."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows import cluster as cluster_module
from flows.cluster import Cluster, UnreachableError, patiently
from piti.errors import StackError


class Head(BaseHTTPRequestHandler):
    """What a Ray head says of its version, or that it does not know us."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        about = {"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "session_1"}
        self.wfile.write(json.dumps(about).encode() if self.status == 200 else b"Invalid or missing token")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def head(url: str) -> Iterator[type[Head]]:
    """A head that comes up half a second from now."""
    kind, server = type("H", (Head,), {}), []

    def serve() -> None:
        server.append(HTTPServer(("127.0.0.1", int(url.rpartition(":")[2])), kind))
        server[0].serve_forever(0.01)

    timer = threading.Timer(0.5, serve)
    timer.start()
    yield kind
    server[0].shutdown()
    timer.join()
    server[0].server_close()


def test_a_head_that_comes_back_is_waited_for(
    url: str, head: type[Head], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PITI_RAY_PATIENCE_SECONDS", "30")
    monkeypatch.setattr(cluster_module, "POLL_SECONDS", 0.05)
    found = patiently(logging.getLogger("test"), lambda: Cluster(url))
    assert found.session == "session_1"
    (line,) = [record.getMessage() for record in caplog.records if record.name == "test"]
    assert line.startswith(f"no Ray cluster answers at {url} (")
    assert line.endswith("; waiting up to 30 s for it")


def test_one_that_stays_away_is_an_error_for_people(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITI_RAY_PATIENCE_SECONDS", "0.01")
    with pytest.raises(UnreachableError, match=r"no Ray cluster answers at .* - start one with `piti up`"):
        patiently(logging.getLogger("test"), lambda: Cluster(url))


def test_one_that_refuses_our_token_is_not_waited_for(url: str, head: type[Head]) -> None:
    head.status = 403
    with pytest.raises(StackError, match="does not accept our token - PITI_RAY_TOKEN_FILE") as caught:
        patiently(logging.getLogger("test"), lambda: Cluster(url))
    assert not isinstance(caught.value, UnreachableError)


def test_one_that_says_nothing_at_all_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a machine without power: the connection stands, no answer comes."""
    monkeypatch.setattr(cluster_module, "REQUEST_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UnreachableError):
        Cluster(f"http://127.0.0.1:{silent.getsockname()[1]}")
