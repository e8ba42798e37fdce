"""`piti run`: start a deployment and follow it. The exit code tells how the run ended."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import uuid
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import typer
import yaml
from rich.console import Console
from rich.text import Text

from piti.cli.config import parse_settings
from piti.cli.progress import RunProgress
from piti.credentials import holds_credentials
from piti.errors import PitiError, StackError
from piti.stack.prefect_api import DEFAULT_API_URL, local_api_url, prefect_json, require_prefect, served_deployments

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
_PAGE = 200  # entries that Prefect gives at once
_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
FINAL_STATES = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_COLORS = {"COMPLETED": "green", "FAILED": "red", "CRASHED": "red", "CANCELLED": "yellow", "RUNNING": "blue"}

Answer = TypeVar("Answer")

_console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)


def register(app: typer.Typer) -> None:
    app.command()(run)


def run(
    deployment: Annotated[str, typer.Argument(help="full-train, prepare, train, evaluate or study.")],
    config: Annotated[
        str, typer.Option("--config", "-c", help="A preset's name, or the path of a YAML file.")
    ] = "demo",
    assignments: Annotated[list[str] | None, typer.Option("--set", help="A config override: dotted.key=value.")] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="Another parameter: name=value.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow the run to its end.")] = True,
) -> None:
    """Start a deployment and follow it. Exits with 1 unless it completes. (`prefect deployment run` works as well.)"""
    api = api_url()
    given = {"config": _reachable(config), **parse_settings(parameters or [])}
    if assignments:
        given["overrides"] = parse_settings(assignments)
    flow_run = create_flow_run(api, deployment.removeprefix("piti/"), given)
    page = f"{api.removesuffix('/api')}/runs/flow-run/{flow_run}"
    _console.print(f"{deployment} started: {page}")
    if not wait:
        return
    try:
        reports = Follower(api, flow_run).follow()
    except KeyboardInterrupt:
        _console.print(f"the run goes on without this command; stop it with: prefect flow-run cancel {flow_run}")
        raise
    _console.print(f"run:    {page}")
    for report in reports:
        _console.print(f"report: {report}")


def api_url() -> str:
    """The server to use: PREFECT_API_URL, else the local stack's, else the default. Raises StackError."""
    url = (os.environ.get("PREFECT_API_URL") or local_api_url() or DEFAULT_API_URL).rstrip("/")
    if holds_credentials(url):
        raise StackError(
            "PREFECT_API_URL holds a user's password or token", "PREFECT_API_AUTH_STRING takes user:password"
        )
    require_prefect(url)
    return url


def create_flow_run(api: str, deployment: str, parameters: dict[str, Any]) -> str:
    """Start a run of a deployment and return its id. Raises PitiError for an unknown deployment or wrong parameters,
    StackError if the server stays busy or away.
    """
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}, "idempotency_key": uuid.uuid4().hex}
    try:
        found = _patiently(lambda: prefect_json(api, f"deployments/name/piti/{quote(deployment, safe='')}"))
        made = _patiently(lambda: prefect_json(api, f"deployments/{found['id']}/create_flow_run", body))
        return str(made["id"])
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND:
            known = ", ".join(sorted(served_deployments(api))) or "none"
            raise PitiError(f"there is no deployment {deployment!r}", f"the server knows: {known}") from error
        if error.code in _BUSY or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise StackError(f"the Prefect server fails ({error})", "look at its log, and run again") from error
        answer = yaml.safe_load(error.read())
        detail = answer.get("detail", answer) if isinstance(answer, dict) else answer
        raise PitiError(f"{deployment} does not accept these parameters: {detail}") from error
    except OSError as error:
        raise StackError(f"the Prefect server does not answer ({error})", "run again") from error


def _patiently(ask: Callable[[], Answer]) -> Answer:
    """What `ask` gives. A busy or silent server is asked again for a while, as Prefect's own clients do. Raises OSError."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except OSError as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code not in _BUSY
            if final or time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


class Follower:
    """Prints the state and log of a flow run until it ends."""

    def __init__(self, api: str, flow_run: str) -> None:
        self._api = api
        self._id = flow_run
        self._shown: dict[str, str] = {}

    def follow(self) -> list[str]:
        """Follow the run to its end. Returns the URIs of its reports, empty where the server cannot be asked for them any
        more. Raises PitiError unless the run completes.
        """
        silent_since: float | None = None
        with RunProgress(_console) as progress:
            while True:
                try:
                    state = self._poll(progress)
                    silent_since = None
                except OSError as error:
                    if isinstance(error, urllib.error.HTTPError) and error.code == HTTPStatus.NOT_FOUND:
                        raise PitiError("the server does not know the run any more: it was deleted") from error
                    silent_since = silent_since or time.monotonic()
                    if time.monotonic() - silent_since > PATIENCE_SECONDS:
                        raise StackError(f"the Prefect server stopped answering ({error})", "`piti up`") from error
                    state = {"type": "UNKNOWN"}
                if state["type"] in FINAL_STATES:
                    break
                time.sleep(POLL_SECONDS)
        message = state.get("message") or ""
        if state["type"] != "COMPLETED":
            raise PitiError(f"the run is {state['name'].lower()}: {message}")
        _console.print(Text(f"completed{': ' if message else ''}{message}", style="green"))
        try:
            return _patiently(self._reports)
        except OSError as error:
            _console.print(f"the Prefect server does not tell the reports ({error}); they are on the run's page")
            return []

    def _poll(self, progress: RunProgress) -> dict[str, Any]:
        tasks = self._ask("task_runs")
        tasks.sort(key=lambda task: task["expected_start_time"] or "")
        for task in tasks:
            state = task["state"] or {}
            name = state.get("name", "")
            if name != self._shown.get(task["id"]) and state.get("type") in _COLORS:
                self._shown[task["id"]] = name
                seconds = f"  {task['total_run_time']:.0f} s" if state["type"] in FINAL_STATES else ""
                when = time.strftime("%H:%M:%S")
                _console.print(
                    f"{when}  {task['name']:<28} ", Text(name, style=_COLORS[state["type"]]), seconds, sep=""
                )
        types = [(task["state"] or {}).get("type") for task in tasks]
        running = {task["id"] for task, kind in zip(tasks, types, strict=True) if kind == "RUNNING"}
        artifacts = self._ask("artifacts", {"artifacts": {"type": {"any_": ["progress"]}}})
        progress.show(types.count("COMPLETED"), running, artifacts)
        run: dict[str, Any] = prefect_json(self._api, f"flow_runs/{self._id}")
        return run["state"] or {"type": "PENDING"}

    def _reports(self) -> list[str]:
        """The column `report` of the run's table artifacts `reports` (flows/evaluate.py, flows/study.py), oldest first."""
        kind = {"type": {"any_": ["table"]}, "key": {"any_": ["reports"]}}
        tables = sorted(self._ask("artifacts", {"artifacts": kind}), key=lambda table: str(table["created"]))
        return [row["report"] for table in tables for row in json.loads(table["data"])]

    def _ask(self, what: str, query: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """All of the run's `task_runs` or `artifacts` that fit `query`, in no particular order. Raises OSError."""
        query = {**(query or {}), "flow_runs": {"id": {"any_": [self._id]}}, "sort": "ID_DESC"}
        found: dict[str, dict[str, Any]] = {}
        offset = 0
        while True:
            page = prefect_json(self._api, f"{what}/filter", {**query, "offset": offset})
            found |= {entry["id"]: entry for entry in page}  # one that was made meanwhile moves others to the next page
            offset += len(page)
            if len(page) < _PAGE:
                return list(found.values())


def _reachable(config: str) -> str:
    """A config file's path for the serving process, which runs in another folder."""
    is_local_file = ("/" in config or config.endswith((".yaml", ".yml"))) and "://" not in config
    return str(Path(config).absolute()) if is_local_file else config
