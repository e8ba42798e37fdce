"""Driving the deployments from outside, and looking at what became of a run."""

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

FINAL_STATES = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True)
class FlowRun:
    """A flow run as the Prefect server tells it. `tasks` maps a task run's name to its state's name."""

    id: str
    state: str
    message: str
    tasks: dict[str, str]


class Prefect:
    """The server's API, as the UI uses it, and the `prefect` command, with the environment of a running stack."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = {**os.environ, **environment}
        user, _, password = environment.get("PREFECT_API_AUTH_STRING", "").partition(":")
        self._auth = (user, password) if user else None

    def start(self, deployment: str, **parameters: Any) -> str:
        """Ask for a run; its id."""
        found = self.request("GET", f"/deployments/name/piti/{deployment}")
        return str(
            self.request("POST", f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})["id"]
        )

    def wait(self, flow_run_id: str, timeout_seconds: float = 480) -> FlowRun:
        """A run once it has ended."""
        wait_for("the run's end", lambda: self.inspect(flow_run_id).state in FINAL_STATES, timeout_seconds)
        return self.inspect(flow_run_id)

    def run(self, deployment: str, **parameters: Any) -> FlowRun:
        """Start a deployment and wait for its end."""
        return self.wait(self.start(deployment, **parameters))

    def watch(self, deployment: str, **parameters: Any) -> FlowRun:
        """As `run`, with the command that a person types: `prefect deployment run --watch`."""
        arguments = [part for name, value in parameters.items() for part in ("-p", f"{name}={json.dumps(value)}")]
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "deployment", "run", f"piti/{deployment}", "--watch", *arguments],
            env=self.environment, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        match = re.search(r"UUID: ([0-9a-f-]{36})", done.stdout)
        assert match is not None, done.stdout + done.stderr
        run = self.inspect(match.group(1))
        assert done.returncode == (0 if run.state == "COMPLETED" else 1), done.stdout + done.stderr
        return run

    def run_with(self, deployment: str, parameters: dict[str, Any]) -> str | None:
        """The id of a run of a deployment that has these among its parameters, whoever asked for it."""
        found = self.request("GET", f"/deployments/name/piti/{deployment}")
        runs = self.request("POST", "/flow_runs/filter", {"deployments": {"id": {"any_": [found["id"]]}}})
        return next((run["id"] for run in runs if {**run["parameters"], **parameters} == run["parameters"]), None)

    def cancel(self, flow_run_id: str) -> None:
        """The button Cancel."""
        answer = self.request("POST", f"/flow_runs/{flow_run_id}/set_state", {"state": {"type": "CANCELLING"}})
        assert answer["status"] == "ACCEPT", answer

    def inspect(self, flow_run_id: str) -> FlowRun:
        run = self.request("GET", f"/flow_runs/{flow_run_id}")
        tasks = self.request("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run_id]}}})
        state = run["state"] or {"type": "PENDING", "message": None}
        states = {task["name"]: task["state"]["name"] for task in tasks if task["state"]}
        return FlowRun(flow_run_id, state["type"], state["message"] or "", states)

    def artifacts(self, flow_run_id: str) -> list[dict[str, Any]]:
        """Artifacts that a flow run made."""
        found: list[dict[str, Any]] = self.request(
            "POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}}
        )
        return found

    def reports(self, flow_run_id: str) -> set[str]:
        """What `piti run` names at a run's end."""
        tables = [found for found in self.artifacts(flow_run_id) if found["key"] == "reports"]
        return {row["report"] for table in tables for row in json.loads(table["data"])}

    def page(self, address: str) -> bytes:
        """What a signed-in browser shows."""
        response = httpx.get(address, auth=self._auth, timeout=30)
        response.raise_for_status()
        return response.content

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """What the server answers. One that is busy is asked again for a while, as Prefect's own clients do."""
        deadline = time.monotonic() + 60
        while True:
            url = self.environment["PREFECT_API_URL"] + path
            response = httpx.request(method, url, json=body, auth=self._auth, timeout=30)
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                break
            time.sleep(1)
        response.raise_for_status()
        return response.json() if response.content else None


def wait_for(what: str, condition: Callable[[], Any], timeout_seconds: float = 180, poll_seconds: float = 0.2) -> Any:
    """Poll until `condition` gives something true; its value. Fails naming `what` when time is up."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(poll_seconds)
    raise AssertionError(f"timed out after {timeout_seconds} s waiting for {what}")
