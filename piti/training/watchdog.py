"""Ends a worker that hangs, after logging its stacks, so that the run can be started again."""

from __future__ import annotations

import faulthandler
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable

from piti import storage

logger = logging.getLogger("piti")

START_SECONDS = 600.0  # at least this long until a first step: weights are fetched, networks compiled, storage is cold
LINGER_SECONDS = 10.0  # for the other workers' stacks: the end of one worker ends all
EXIT_CODE = 70


class Watchdog:
    """Ends this process where no step is `fed` for `seconds`; the stacks of all its threads go to the log before.

    Until steps follow each other, for `START_SECONDS` if that is longer. `last_words` is called with one line about
    what happened; if it fails or hangs, the process ends all the same. Where Python itself hangs (a call that holds the
    interpreter's lock), C code writes the stacks and ends the process.
    """

    def __init__(self, seconds: float, what: str, last_words: Callable[[str], None]) -> None:
        self._seconds, self._what, self._last_words = seconds, what, last_words
        self._is_closed = threading.Event()
        self._step: int | None = None
        self._limit_seconds, self._fed_seconds = max(seconds, START_SECONDS), time.monotonic()
        self._arm()
        threading.Thread(target=self._watch, name="piti-watchdog", daemon=True).start()

    def fed(self, step: int) -> None:
        """Record that so many steps are done. Cheap."""
        steps_follow = self._step is not None and step > self._step
        self._step, self._fed_seconds = step, time.monotonic()
        if steps_follow and self._limit_seconds != self._seconds:
            self._limit_seconds = self._seconds
            self._arm()  # no thread may get to run before a hang

    def close(self) -> None:
        """Stop watching."""
        self._is_closed.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._is_closed.wait(min(1.0, self._seconds / 4)):
            if self._silent_seconds() >= self._limit_seconds:
                self._end()
            self._arm()

    def _silent_seconds(self) -> float:
        return time.monotonic() - self._fed_seconds

    def _arm(self) -> None:
        """Schedule C code that ends the process later, in case that no Python thread runs any more."""
        faulthandler.dump_traceback_later(self._limit_seconds - self._silent_seconds() + 3 * LINGER_SECONDS, exit=True)

    def _end(self) -> None:
        last = "before its first step" if self._step is None else f"after step {self._step}"
        line = f"{self._what} made no step for {self._limit_seconds:g} s {last}"
        logger.error("%s; the stacks of its threads:", line)
        for part in stacks().splitlines():
            logger.error("%s", part)
        threading.Thread(target=self._last_words, args=(line,), daemon=True).start()
        time.sleep(LINGER_SECONDS)
        os._exit(EXIT_CODE)


def stacks() -> str:
    """The stacks of all threads of this process, the most recent call first."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def leave_stall(folder: str, attempt: str, rank: int, line: str) -> None:
    """Write a stalled worker's last words into the job's folder, for the driver."""
    storage.write_json(storage.join(folder, f"stall-{rank}.json"), {"attempt": attempt, "line": line})


def stalls_of(folder: str, attempt: str) -> list[str]:
    """The last words of the workers of an attempt that stalled."""
    names = [name for name in storage.list_names(folder) if name.startswith("stall-")]
    told = [storage.read_json(storage.join(folder, name)) for name in names]
    return [entry["line"] for entry in told if entry["attempt"] == attempt]
