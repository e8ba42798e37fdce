"""Processes that outlive the command that started them: start, recognise, stop. Never touches a stranger.

A process is recognised by its pid and the kernel's record of when it was started, counted since boot: pids are used
again, and the wall clock may be set. Its offspring is recognised by descent or, where a parent has died in between, by
a mark in the environment that only this stack's processes carry.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "PITI_STACK_ID"

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Identity:
    """A process, whatever its pid is used for later. `started_ticks`: clock ticks from boot number `boot` to its start."""

    pid: int
    boot: str
    started_ticks: int

    @classmethod
    def of(cls, pid: int) -> Identity:
        """Identity of the process that has this pid now. Raises OSError if none has."""
        return cls(pid, _boot(), _started_ticks(pid))

    def find(self) -> psutil.Process | None:
        """The process itself, None if it has ended."""
        try:
            same = self.boot == _boot() and self.started_ticks == _started_ticks(self.pid)
            process = psutil.Process(self.pid)
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (psutil.Error, OSError):
            return None

    def started_at(self) -> float:
        """When it was started, in seconds since the epoch by the clock as it is set now."""
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + self.started_ticks / _TICKS_PER_SECOND


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _started_ticks(pid: int) -> int:
    """Field 22 of /proc/<pid>/stat; the name in field 2 may hold spaces and brackets."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(stat.rpartition(")")[2].split()[19])


def start(
    command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path, umask: int | None = None
) -> Identity:
    """Start a process of its own session that lives on after us; its output goes to the end of `log` (mode 600).

    `umask` None: ours. Raises OSError if the log cannot be written or the command cannot be run.
    """
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        os.fchmod(output.fileno(), 0o600)
        process = subprocess.Popen(
            command, env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True, close_fds=True, umask=-1 if umask is None else umask,
        )  # fmt: skip
    identity = Identity.of(process.pid)  # the kernel keeps the record of an ended child until it is waited for
    process.returncode = 0  # we shall not wait for it, and Popen must not complain about that
    return identity


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
