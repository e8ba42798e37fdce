"""Many short flow runs at once against a Prefect server, on SQLite or on Postgres: how long they take, whether any is lost.

    python benchmarks/prefect_load.py [--runs 200] [--processes 4] [--postgres postgresql+asyncpg://user@host/empty]

Each run has a task, writes a log line and an artifact, as the flows here do, and sleeps a second in between. All are started
together. `--postgres`: in an empty database of a Postgres that is there (with its extension pg_trgm, which Prefect asks for)
instead of SQLite. Prints a line of JSON:
`seconds` from the first run's start to the last one's end; what the server has of each in the end; `refused`, answers that told a
client to come again later; `slowest_answer_seconds`, of the server's health check, asked twice a second meanwhile. Exits
with 1 if anything is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import acreate_markdown_artifact

from flows.serve import PATIENCE
from piti.stack.environment import PREFECT_SETTINGS
from piti.stack.http import request_json
from piti.stack.ports import HOST, free_port
from piti.stack.prefect_api import prefect_answers

SERVER_PATIENCE_SECONDS = 180.0
EVENTS_PATIENCE_SECONDS = 120.0


@task
async def step(number: int) -> int:
    await asyncio.sleep(1)
    return number


@flow(name="short", validate_parameters=False)
async def short(number: int) -> None:
    get_run_logger().warning("run %d", number)  # of the level that is not left out here
    await acreate_markdown_artifact(str(await step(number)), key=f"run-{number}")


class Refusals(logging.Handler):
    """Counts what Prefect's client says of answers that it asks for again."""

    num_seen = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.num_seen += "retryable status code" in record.getMessage()


async def all_at_once(first: int, count: int) -> None:
    """The runs `first`, `first` + 1, ...; prints how often the server refused."""
    refusals, client = Refusals(), logging.getLogger("prefect.client")
    client.addHandler(refusals)
    client.setLevel(logging.DEBUG)
    client.propagate = False
    failed = [
        one for one in await asyncio.gather(*map(short, range(first, first + count)), return_exceptions=True) if one
    ]
    print(json.dumps({"refused": refusals.num_seen, "errors": sorted({repr(one)[:200] for one in failed})}))


@contextlib.contextmanager
def prefect_server(connection: str | None, folder: Path) -> Iterator[dict[str, str]]:
    """A Prefect server on loopback; the environment of its clients."""
    port = free_port()
    url = f"http://{HOST}:{port}/api"
    environment = {**os.environ, **PREFECT_SETTINGS, **PATIENCE, "PREFECT_HOME": str(folder), "PREFECT_API_URL": url}
    environment["PREFECT_LOGGING_LEVEL"] = "WARNING"
    if connection is not None:
        environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = connection
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        HOST,
        "--port",
        str(port),
        "--analytics-off",
    ]
    with (
        open(folder / "server.log", "wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            deadline = time.monotonic() + SERVER_PATIENCE_SECONDS
            while not prefect_answers(url):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / "server.log").read_text()[-2000:])
                time.sleep(0.2)
            yield environment
        finally:
            server.terminate()


@contextlib.contextmanager
def answer_times(url: str) -> Iterator[list[float]]:
    """Seconds that the server takes for its health check, asked meanwhile."""
    times: list[float] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.wait(0.5):
            began = time.monotonic()
            with contextlib.suppress(OSError):
                request_json(f"{url}/health", timeout_seconds=120)
            times.append(time.monotonic() - began)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield times
    finally:
        is_over.set()
        asking.join()


def measure(connection: str | None, num_runs: int, num_processes: int) -> dict[str, Any]:
    """The figures."""
    with (
        tempfile.TemporaryDirectory(prefix="load-") as folder,
        prefect_server(connection, Path(folder)) as environment,
        answer_times(environment["PREFECT_API_URL"]) as times,
    ):
        each = -(-num_runs // num_processes)
        parts = [range(first, min(first + each, num_runs)) for first in range(0, num_runs, each)]
        command = [sys.executable, __file__, "--client"]
        clients = [
            subprocess.Popen(
                [*command, str(part[0]), str(len(part))], env=environment, stdout=subprocess.PIPE, text=True
            )
            for part in parts
        ]
        told = [json.loads(client.communicate()[0].splitlines()[-1]) for client in clients]
        url = environment["PREFECT_API_URL"]
        wait_for_events(url, num_runs)
        runs = request_json(f"{url}/flow_runs/filter", body={"limit": 200})
        for offset in range(200, num_runs, 200):
            runs += request_json(f"{url}/flow_runs/filter", body={"limit": 200, "offset": offset})
        begun, ended = min(run["start_time"] for run in runs), max(run["end_time"] or "" for run in runs)
        return {
            "database": "postgres" if connection else "sqlite",
            "runs": num_runs,
            "seconds": round(seconds(ended) - seconds(begun), 1),
            "completed": sum(run["state_type"] == "COMPLETED" for run in runs),
            "tasks": num_tasks(url),
            "artifacts": request_json(f"{url}/artifacts/count", body={}),
            "log_lines": num_log_lines(url),
            "refused": sum(one["refused"] for one in told),
            "errors": sorted({error for one in told for error in one["errors"]}),
            "slowest_answer_seconds": round(max(times), 1),
        }  # fmt: skip


def num_tasks(url: str) -> int:
    """That the server has as completed, which it learns from events."""
    return int(request_json(f"{url}/task_runs/count", body={"task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}))


def wait_for_events(url: str, num_runs: int) -> None:
    """Logs and tasks' ends are told beside the runs: give the server a while to take them in."""
    deadline = time.monotonic() + EVENTS_PATIENCE_SECONDS
    time.sleep(5)
    while num_tasks(url) < num_runs and time.monotonic() < deadline:
        time.sleep(2)


def seconds(stamp: str) -> float:
    """Since the epoch, of what the server calls a time."""
    return datetime.fromisoformat(stamp).timestamp()


def num_log_lines(url: str) -> int:
    """Lines of our own that the server keeps."""
    count, offset = 0, 0
    while lines := request_json(f"{url}/logs/filter", body={"limit": 200, "offset": offset}):
        count += sum(line["message"].startswith("run ") for line in lines)
        offset += len(lines)
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description="Many short flow runs at once.")
    parser.add_argument("--postgres", metavar="URL", help="of an empty database, as Prefect writes it")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--client", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client is not None:
        asyncio.run(all_at_once(*options.client))
        return 0
    figures = measure(options.postgres, options.runs, options.processes)
    print(json.dumps(figures))
    return int(any(figures[name] != options.runs for name in ("completed", "tasks", "artifacts", "log_lines")))


if __name__ == "__main__":
    sys.exit(main())
