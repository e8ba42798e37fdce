"""What integration and end-to-end tests share: one real stack, on free ports, for the whole session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from piti.stack import Stack
from piti.stack.processes import family, lives


@dataclass(frozen=True)
class RunningStack:
    """A stack that is up. `environment` is complete: pass it to subprocesses as it is."""

    home: Path
    environment: dict[str, str]

    @property
    def record(self) -> Stack:
        """What the stack's record says now (services that were started again have other processes)."""
        return Stack.model_validate_json((self.home / "stack.json").read_text())

    @property
    def prefect_api_url(self) -> str:
        return self.record.ports.prefect_api_url

    @property
    def ray_url(self) -> str:
        return self.record.ports.ray_url

    def processes(self) -> list[psutil.Process]:
        """Everything that belongs to the stack."""
        record = self.record
        return family(record.processes.values(), record.id)

    def stop(self) -> list[psutil.Process]:
        """`piti down`, if it is still up; gives the processes that are left (none, one hopes)."""
        if not (self.home / "stack.json").exists():
            return []
        processes = self.processes()
        answer = self.piti("down")
        assert answer.returncode == 0, answer.stderr
        return [process for process in processes if lives(process)]

    def piti(self, *arguments: str, timeout_seconds: float = 240.0) -> subprocess.CompletedProcess[str]:
        """Run the command `piti` against this stack."""
        return run_piti(*arguments, environment=self.environment, timeout_seconds=timeout_seconds)


# A plain function would not be importable by tests (import mode importlib), so they get it through a fixture.
def run_piti(
    *arguments: str, environment: dict[str, str], timeout_seconds: float = 240.0
) -> subprocess.CompletedProcess[str]:
    """Run the command `piti` in its own process, as a user does."""
    command = [str(Path(sys.executable).with_name("piti")), *arguments]
    return subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="session")
def start_stack() -> Iterator[Callable[[Path], RunningStack]]:
    """`piti up` on free ports with everything below a folder. Nothing of it is left after the session."""
    started: list[RunningStack] = []

    def start(home: Path, *options: str) -> RunningStack:
        environment = {**os.environ, "PITI_HOME": str(home), "COLUMNS": "200"}
        answer = run_piti("up", "--free-ports", *options, environment=environment)
        assert answer.returncode == 0, answer.stderr + answer.stdout
        stack = RunningStack(home, environment)
        started.append(RunningStack(home, {**environment, **stack.record.environment()}))
        return started[-1]

    yield start
    left = [process for stack in started for process in stack.stop()]
    assert left == [], "`piti down` left processes of a stack behind"


@pytest.fixture(scope="session")
def stack(start_stack: Callable[[Path], RunningStack], tmp_path_factory: pytest.TempPathFactory) -> RunningStack:
    """A real Prefect server, Ray head and serving process that all tests share."""
    return start_stack(tmp_path_factory.mktemp("stack"))
