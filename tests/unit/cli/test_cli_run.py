"""`piti run` and a Prefect server that is busy: a real server on loopback, which answers as it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from piti.cli import run
from piti.errors import PitiError, StackError

Answer = tuple[int, Any]
BUSY: Answer = (503, {"exception_message": "Service Unavailable"})
FOUND: Answer = (200, {"id": "deployment"})
CREATED: Answer = (201, {"id": "flow run"})


@contextmanager
def server(answers: list[Answer]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its address, and the bodies of the POSTs that it got. It gives one answer after the other, the last one for ever."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            code, content = answers.pop(0) if len(answers) > 1 else answers[0]
            length = int(self.headers.get("Content-Length") or 0)
            if length:
                bodies.append(json.loads(self.rfile.read(length)))
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = answer  # noqa: N815 - names that http.server calls

        def log_message(self, *_: object) -> None:
            """Nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}/api", bodies
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "POLL_SECONDS", 0.01)


def test_a_busy_server_is_asked_again_and_makes_one_run() -> None:
    with server([BUSY, BUSY, FOUND, BUSY, BUSY, CREATED]) as (api, bodies):
        assert run.create_flow_run(api, "prepare", {"config": "demo"}) == "flow run"
    assert [body["parameters"] for body in bodies] == [{"config": "demo"}] * 3
    assert len({body["idempotency_key"] for body in bodies}) == 1


@pytest.mark.parametrize(
    ("answers", "kind", "message"),
    [
        ([BUSY], StackError, "the Prefect server fails .*503"),
        ([FOUND, BUSY], StackError, "the Prefect server fails .*503"),
        ([(500, {})], StackError, "the Prefect server fails .*500"),
        ([(404, {}), (200, [{"name": "train"}])], PitiError, "no deployment 'prepare' .*the server knows: train"),
        ([FOUND, (409, {"detail": "seed is no number"})], PitiError, "does not accept .*: seed is no number"),
    ],
)
def test_each_answer_has_its_reason(
    answers: list[Answer], kind: type[PitiError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PATIENCE_SECONDS", 0.1)
    with server(list(answers)) as (api, _), pytest.raises(kind, match=message):
        run.create_flow_run(api, "prepare", {})


def test_a_server_that_went_away_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PATIENCE_SECONDS", 0.1)
    with server([FOUND]) as (api, _):
        pass
    with pytest.raises(StackError, match="does not answer"):
        run.create_flow_run(api, "prepare", {})


COMPLETED: Answer = (200, {"state": {"type": "COMPLETED", "name": "Completed", "message": "all done"}})


def test_a_completed_run_succeeds_though_nobody_tells_its_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "PATIENCE_SECONDS", 0.1)
    with server([(200, []), (200, []), COMPLETED, BUSY]) as (api, _):
        assert run.Follower(api, "id").follow() == []
    assert "does not tell the reports (HTTP Error 503" in capsys.readouterr().out


def test_a_run_that_is_deleted_is_no_server_that_is_away() -> None:
    with server([(200, []), (200, []), (404, {})]) as (api, _), pytest.raises(PitiError, match="it was deleted"):
        run.Follower(api, "id").follow()


def table(number: int) -> dict[str, Any]:
    return {"id": f"{number}", "created": f"2026-01-01T00:{number:04}", "data": json.dumps([{"report": f"r{number}"}])}


def test_every_report_of_a_large_run_is_told() -> None:
    """Prefect gives 200 entries at once; a busy server is asked again."""
    pages = [
        (200, [table(number) for number in numbers]) for numbers in (range(449, 249, -1), range(250, 50, -1), range(51))
    ]
    tasks = [{"id": f"{number}", "name": "x", "expected_start_time": None, "state": None} for number in range(200)]
    with server([(200, tasks), (200, []), (200, []), COMPLETED, BUSY, *pages]) as (api, bodies):
        assert run.Follower(api, "id").follow() == [f"r{number}" for number in range(450)]
    assert [body["offset"] for body in bodies] == [0, 200, 0, 0, 0, 200, 400]
    assert {body["sort"] for body in bodies} == {"ID_DESC"}, "an order that no change of a run alters"
