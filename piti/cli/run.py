"""`piti run`: start a deployment and follow it. The exit code tells how the run ended."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import uuid
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
import yaml
from rich.console import Console
from rich.text import Text

from piti.cli.config import parse_settings
from piti.cli.progress import RunProgress
from piti.errors import PitiError, StackError
from piti.stack.prefect_api import DEFAULT_API_URL, local_api_url, prefect_json, require_prefect, served_deployments

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
FINAL_STATES = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_COLORS = {"COMPLETED": "green", "FAILED": "red", "CRASHED": "red", "CANCELLED": "yellow", "RUNNING": "blue"}

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
    require_prefect(url)
    return url


def create_flow_run(api: str, deployment: str, parameters: dict[str, Any]) -> str:
    """Start a run of a deployment and return its id. Raises PitiError for an unknown deployment or wrong parameters,
    StackError if the server stays busy or away.
    """
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}, "idempotency_key": uuid.uuid4().hex}
    try:
        found = _ask_patiently(api, f"deployments/name/piti/{quote(deployment, safe='')}")
        return str(_ask_patiently(api, f"deployments/{found['id']}/create_flow_run", body)["id"])
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


def _ask_patiently(api: str, path: str, body: Any = None) -> Any:
    """As `prefect_json`, but a busy or silent server is asked again for a while, as Prefect's own clients do."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return prefect_json(api, path, body)
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
        """Follow the run to its end. Returns the URIs of its reports. Raises PitiError unless the run completes."""
        silent_since: float | None = None
        with RunProgress(_console) as progress:
            while True:
                try:
                    state = self._poll(progress)
                    silent_since = None
                except OSError as error:
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
        return self._reports()

    def _poll(self, progress: RunProgress) -> dict[str, Any]:
        tasks = self._ask("task_runs", {"sort": "EXPECTED_START_TIME_ASC"})
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
        artifacts = self._ask("artifacts", {"artifacts": {"type": {"any_": ["progress"]}}, "sort": "CREATED_DESC"})
        progress.show(types.count("COMPLETED"), running, artifacts)
        run: dict[str, Any] = prefect_json(self._api, f"flow_runs/{self._id}")
        return run["state"] or {"type": "PENDING"}

    def _reports(self) -> list[str]:
        """The column `report` of the run's table artifacts `reports` (flows/evaluate.py, flows/study.py), oldest first."""
        kind = {"type": {"any_": ["table"]}, "key": {"any_": ["reports"]}}
        tables = self._ask("artifacts", {"artifacts": kind, "sort": "CREATED_DESC"})
        return [row["report"] for table in reversed(tables) for row in json.loads(table["data"])]

    def _ask(self, what: str, query: dict[str, Any]) -> list[dict[str, Any]]:
        query = {**query, "flow_runs": {"id": {"any_": [self._id]}}}
        found: list[dict[str, Any]] = prefect_json(self._api, f"{what}/filter", query)
        return found


def _reachable(config: str) -> str:
    """A config file's path for the serving process, which runs in another folder."""
    is_local_file = ("/" in config or config.endswith((".yaml", ".yml"))) and "://" not in config
    return str(Path(config).absolute()) if is_local_file else config
