"""Writes to storage beside the training loop. The loop does not wait for them, and their failure does not end it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger("piti")

RETRY_SECONDS = 5.0
CLOSE_SECONDS = 30.0  # for all that a run closes at its end


class Publisher:
    """A thread that executes writes. A failed write is logged, counted and tried again.

    A newer write replaces a waiting one of the same name, so give the same name only to writes of which the newest
    suffices.
    """

    def __init__(self) -> None:
        self.num_failed = 0
        self.last_error: Exception | None = None
        self._waiting: dict[str, Callable[[], None]] = {}
        self._running: str | None = None
        self._failed_in_a_row = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="piti-publisher", daemon=True)
        self._thread.start()

    def put(self, name: str, write: Callable[[], None]) -> None:
        """Queue `write()`. Returns at once."""
        with self._changed:
            self._waiting[name] = write
            self._changed.notify_all()

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until the queue is empty, a write fails, or the time is over. Returns whether all is written."""
        with self._changed:
            before = self.num_failed
            self._changed.wait_for(lambda: self._is_idle() or self.num_failed > before, timeout_seconds)
            return self._is_idle()

    def close(self, deadline: float | None = None) -> list[str]:
        """Flush, with two more tries for failed writes, and end. Returns the names of lost writes, which are also
        logged.

        `deadline`: of time.monotonic(), however storage is; several publishers may share it. None: in CLOSE_SECONDS.
        """
        if deadline is None:
            deadline = time.monotonic() + CLOSE_SECONDS
        for _ in range(3):
            if self.flush(max(0.0, deadline - time.monotonic())):
                break
        with self._changed:
            self._is_closed = True
            lost = list(dict.fromkeys([*([self._running] if self._running else []), *self._waiting]))
            self._waiting.clear()
            self._changed.notify_all()
        if lost:
            logger.warning("storage did not take %s: lost (%d writes failed in all)", ", ".join(lost), self.num_failed)
        return lost

    def _is_idle(self) -> bool:
        return not self._waiting and self._running is None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                name = next(iter(self._waiting))
                write = self._waiting.pop(name)
                self._running = name
            error: Exception | None = None
            try:
                write()
            except Exception as raised:  # noqa: BLE001 - whatever storage and its clients raise
                error = raised
            with self._changed:
                self._running = None
                if error is None:
                    self._recovered()
                else:
                    self._failed(name, write, error)
                self._changed.notify_all()
                if error is not None:
                    self._changed.wait_for(lambda: self._is_closed, RETRY_SECONDS)

    def _failed(self, name: str, write: Callable[[], None], error: Exception) -> None:
        self.num_failed += 1
        self.last_error = error
        self._failed_in_a_row += 1
        self._waiting.setdefault(name, write)
        if self._failed_in_a_row == 1:
            logger.warning("could not write %s (%s: %s); training goes on", name, type(error).__name__, error)

    def _recovered(self) -> None:
        if self._failed_in_a_row:
            logger.warning("storage answers again, after %d failed writes", self._failed_in_a_row)
        self._failed_in_a_row = 0
