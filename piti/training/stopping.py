"""Whether a run must end before its last step: it was stopped, it is abandoned, or its machine will be taken away."""

from __future__ import annotations

import time

from piti.errors import StoppedError
from piti.job import JobContext
from piti.training.workers import Workers

CHECK_SECONDS = 5.0


class StopSign:
    """Every worker asks after every step; all get the same answer at the same step.

    The workers check together, about every `CHECK_SECONDS`; the first worker decides after how many steps they check
    again.
    """

    def __init__(self, context: JobContext, workers: Workers, step: int) -> None:
        self._context = context
        self._workers = workers
        self._looked_step, self._looked_seconds = step, time.monotonic()
        self._num_steps = 1  # until the next look

    def after(self, step: int) -> StoppedError | None:
        """The error with which a run that took `step` steps should end, after a checkpoint; None: go on."""
        if step < self._looked_step + self._num_steps:
            return None
        is_preempted = self._context.is_preempted()  # all workers ask together
        reason = self._context.stop_reason(is_preempted) if self._workers.is_first else None
        seconds = (time.monotonic() - self._looked_seconds) / (step - self._looked_step)
        num_steps = max(1, min(2 * self._num_steps, int(CHECK_SECONDS / max(seconds, 1e-6))))
        agreed: tuple[StoppedError | None, int] = self._workers.agree((reason, num_steps))
        reason, self._num_steps = agreed
        self._looked_step, self._looked_seconds = step, time.monotonic()
        return reason
