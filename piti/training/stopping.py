"""Whether a run must end before its last step: it was stopped, it is abandoned, or its machine will be taken away."""

from __future__ import annotations

import logging
import threading
import time

from piti.errors import StoppedError, first_line
from piti.job import STOP_LOOK_SECONDS, JobContext
from piti.training.workers import Workers

logger = logging.getLogger("piti")

CHECK_SECONDS = 5.0


class StopSign:
    """Every worker asks after every step; all get the same answer at the same step.

    The workers check together, about every `CHECK_SECONDS`; the first worker decides after how many steps they check
    again. A thread of the first worker reads storage, so that no step waits for it.
    """

    def __init__(self, context: JobContext, workers: Workers, step: int) -> None:
        self._context = context
        self._workers = workers
        self._looked_step, self._looked_seconds = step, time.monotonic()
        self._num_steps = 1  # until the next check
        self._reason: StoppedError | None = None  # as storage had it at the last look
        self._is_closed = threading.Event()
        if workers.is_first:
            threading.Thread(target=self._watch, name="piti-stop-sign", daemon=True).start()

    def after(self, step: int) -> StoppedError | None:
        """The error with which a run that took `step` steps should end, after a checkpoint; None: go on."""
        if step < self._looked_step + self._num_steps:
            return None
        is_preempted = self._context.is_preempted()  # all workers ask together
        reason = self._reason or (self._context.preempted() if is_preempted else None)
        seconds = (time.monotonic() - self._looked_seconds) / (step - self._looked_step)
        num_steps = max(1, min(2 * self._num_steps, int(CHECK_SECONDS / max(seconds, 1e-6))))
        agreed: tuple[StoppedError | None, int] = self._workers.agree((reason, num_steps))
        reason, self._num_steps = agreed
        self._looked_step, self._looked_seconds = step, time.monotonic()
        return reason

    def close(self) -> None:
        """End the thread."""
        self._is_closed.set()

    def _watch(self) -> None:
        while self._reason is None and not self._is_closed.is_set():
            self._look()
            self._is_closed.wait(STOP_LOOK_SECONDS)

    def _look(self) -> None:
        try:
            self._reason = self._context.stop_reason()
        except Exception as error:  # noqa: BLE001 - whatever storage raises: the next look may succeed
            logger.warning("cannot read whether this job should end: %s", first_line(error))
