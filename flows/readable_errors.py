"""One line for a problem that a person can fix: in the logs of a run, a PitiError comes without its traceback."""

from __future__ import annotations

import logging

from piti.errors import PitiError

_RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


class WithoutTraceback(logging.Filter):
    """Drops the traceback of a PitiError; everything else keeps its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], PitiError):
            record.exc_info = None
            record.exc_text = None
        return True


def install() -> None:
    """Make Prefect's run loggers readable in this process; installing twice changes nothing."""
    for name in _RUN_LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(known, WithoutTraceback) for known in logger.filters):
            logger.addFilter(WithoutTraceback())
