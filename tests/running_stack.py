"""A real stack, started and stopped with the command `piti` as a person does it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from piti.stack import Stack
from piti.stack.processes import family, kill, lives

PITI = Path(sys.executable).with_name("piti")


def run_piti(
    *arguments: str,
    environment: dict[str, str],
    program: Path = PITI,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command `piti` in a process of its own; `folder` None: in this process's working folder."""
    command = [str(program), *arguments]
    return subprocess.run(
        command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=500, check=False,
    )  # fmt: skip


@dataclass(frozen=True)
class RunningStack:
    """A stack that is up. `environment` is complete: subprocesses get it as it is."""

    home: Path
    environment: dict[str, str]
    program: Path = PITI
    folder: Path | None = None

    @classmethod
    def start(cls, home: Path, *options: str, program: Path = PITI, folder: Path | None = None) -> RunningStack:
        """`piti up` on free ports in `folder`, everything below `home`. `program`: which installation's `piti`."""
        # Wide enough that no table line is broken, whatever terminal the tests run in.
        environment = {
            **os.environ, "PITI_HOME": str(home), "COLUMNS": "250", "NO_COLOR": "1", "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "PITI_START_TIMEOUT_SECONDS": "450", "PITI_CONFIG_FOLDERS": os.pathsep.join([str(folder or Path.cwd()), str(home)]),
        }  # fmt: skip
        environment["PREFECT_HOME"] = str(home / "prefect")  # whose profiles `piti up` adds to
        answer = run_piti("up", "--free-ports", *options, environment=environment, program=program, folder=folder)
        assert answer.returncode == 0, answer.stderr + answer.stdout
        return cls(home, {**environment, **cls(home, environment).record.environment()}, program, folder)

    @property
    def record(self) -> Stack:
        """What the stack's record says now (services that were started again have other processes)."""
        return Stack.model_validate_json((self.home / "stack.json").read_text(encoding="utf-8"))

    @property
    def prefect_api_url(self) -> str:
        return self.record.ports.prefect_api_url

    @property
    def ray_url(self) -> str:
        return self.record.ports.ray_url

    def piti(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command `piti` against this stack."""
        return run_piti(*arguments, environment=self.environment, program=self.program, folder=self.folder)

    def up(self) -> subprocess.CompletedProcess[str]:
        """`piti up`, which brings back what died."""
        answer = self.piti("up")
        assert answer.returncode == 0, answer.stderr + answer.stdout
        return answer

    def processes(self) -> list[psutil.Process]:
        """Everything that belongs to the stack."""
        return family(self.record.processes.values(), self.record.id)

    def training_workers(self) -> list[psutil.Process]:
        """Ray Train's worker processes, each of which holds its CPU until it is gone."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill(self, service: str) -> None:
        """SIGKILL to a service and all that descends from it, as when its container is lost."""
        root = self.record.processes[service].find()
        assert root is not None, f"{service} is not running"
        left = kill([root, *root.children(recursive=True)])
        assert left == []

    def kill_serving_process(self) -> None:
        self.kill("serve")

    def stop(self) -> list[psutil.Process]:
        """`piti down`, if it is still up; gives the processes that are left (none, one hopes)."""
        if not (self.home / "stack.json").exists():
            return []
        processes = self.processes()
        answer = self.piti("down")
        assert answer.returncode == 0, answer.stderr
        return [process for process in processes if lives(process)]
