"""Processes that outlive the command that started them: start, recognise, stop. Never touches a stranger.

A process is recognised by pid and creation time together (pids are used again), and its offspring by descent or,
where a parent has died in between, by a mark in the environment that only this stack's processes carry.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "PITI_STACK_ID"

# psutil computes the creation time from the boot time, which shifts when the clock is set.
_CREATION_TOLERANCE_SECONDS = 2.0


@dataclass(frozen=True)
class Identity:
    """A process, whatever its pid is used for later. `create_time` in seconds since the epoch."""

    pid: int
    create_time: float

    def find(self) -> psutil.Process | None:
        """The process itself, None if it has ended."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time) < _CREATION_TOLERANCE_SECONDS
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def start(command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path) -> Identity:
    """Start a process of its own session that lives on after us; its output goes to the end of `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True, close_fds=True,
        )  # fmt: skip
    try:
        created = psutil.Process(process.pid).create_time()
    except psutil.Error:
        created = 0.0  # it ended at once, whoever waits for it will see
    process.returncode = 0  # we shall not wait for it, and Popen must not complain about that
    return Identity(process.pid, created)


def family(identities: Iterable[Identity], stack_id: str) -> list[psutil.Process]:
    """The given processes that still live, all their descendants, and whatever else carries the stack's mark."""
    found: dict[int, psutil.Process] = {}
    for identity in identities:
        root = identity.find()
        if root is not None:
            found[root.pid] = root
    for process in psutil.process_iter():
        if process.pid not in found and _carries(process, stack_id):
            found[process.pid] = process
    for process in list(found.values()):
        try:
            found |= {child.pid: child for child in process.children(recursive=True)}
        except psutil.Error:
            continue
    ourselves = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [process for pid, process in found.items() if pid not in ourselves and lives(process)]


def _carries(process: psutil.Process, stack_id: str) -> bool:
    try:
        return bool(process.environ().get(MARK) == stack_id)
    except (psutil.Error, OSError):
        return False


def lives(process: psutil.Process) -> bool:
    """Whether a process still runs (one that has ended and is not yet buried does not)."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def terminate(processes: Iterable[psutil.Process], patience_seconds: float) -> list[psutil.Process]:
    """Ask processes to end (SIGTERM), and give those that are still there after `patience_seconds`."""
    return _signal(processes, psutil.Process.terminate, patience_seconds)


def kill(processes: Iterable[psutil.Process], patience_seconds: float = 5.0) -> list[psutil.Process]:
    """End processes (SIGKILL), and give those that are still there after `patience_seconds`."""
    return _signal(processes, psutil.Process.kill, patience_seconds)


def _signal(
    processes: Iterable[psutil.Process], action: Callable[[psutil.Process], None], patience_seconds: float
) -> list[psutil.Process]:
    living = [process for process in processes if lives(process)]
    for process in living:
        try:
            action(process)  # psutil refuses if the pid is someone else's by now
        except psutil.Error:
            continue
    return wait(living, patience_seconds)


def wait(processes: Iterable[psutil.Process], patience_seconds: float) -> list[psutil.Process]:
    """Wait for processes to end, and give those that are still there after `patience_seconds`."""
    _, left = psutil.wait_procs(list(processes), timeout=patience_seconds)
    return [process for process in left if lives(process)]
