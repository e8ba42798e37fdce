"""Driving the deployments as a person does, with `prefect deployment run`, and looking at what became of a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class FlowRun:
    """A flow run as the Prefect server tells it."""

    id: str
    state: str
    message: str
    tasks: dict[str, str]


class Prefect:
    """The `prefect` command and the server's API, with the environment of a running stack."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = {**os.environ, **environment}
        self._api = self.environment["PREFECT_API_URL"]

    def start(self, deployment: str, *options: str, **parameters: Any) -> subprocess.CompletedProcess[str]:
        """`prefect deployment run piti/<deployment>`, to the end if `--watch` is among the options."""
        arguments = [part for name, value in parameters.items() for part in ("-p", f"{name}={json.dumps(value)}")]
        return self.command("deployment", "run", f"piti/{deployment}", *options, *arguments)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            env=self.environment, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip

    def run(self, deployment: str, **parameters: Any) -> FlowRun:
        """Start a deployment and wait for its end."""
        done = self.start(deployment, "--watch", **parameters)
        run = self.inspect(run_id(done.stdout))
        expected = 0 if run.state == "COMPLETED" else 1
        assert done.returncode == expected, done.stdout + done.stderr
        return run

    def inspect(self, flow_run_id: str) -> FlowRun:
        run = self._request("GET", f"/flow_runs/{flow_run_id}")
        wanted = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
        tasks = self._request("POST", "/task_runs/filter", wanted)
        states = {task["name"]: task["state"]["name"] for task in tasks}
        return FlowRun(flow_run_id, run["state"]["type"], run["state"]["message"] or "", states)

    def artifacts(self, flow_run_id: str) -> list[dict[str, Any]]:
        """Artifacts that a flow run made."""
        found: list[dict[str, Any]] = self._request(
            "POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}}
        )
        return found

    def _request(self, method: str, path: str, body: Any = None) -> Any:
        user, _, password = self.environment["PREFECT_API_AUTH_STRING"].partition(":")
        response = httpx.request(method, self._api + path, json=body, timeout=30, auth=(user, password))
        response.raise_for_status()
        return response.json()


def run_id(output: str) -> str:
    """The flow run's id in what `prefect deployment run` printed."""
    match = re.search(r"UUID: ([0-9a-f-]{36})", output)
    assert match is not None, output
    return match.group(1)


def wait_for(what: str, condition: Callable[[], Any], timeout_seconds: float = 180) -> Any:
    """Poll until `condition` gives something true; its value. Fails naming `what` when time is up."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError(f"timed out after {timeout_seconds} s waiting for {what}")
