"""The reason of a job's failure in one line: the error of the Ray task, and the remedy where one is known.

`piti.training.failures` handles failures of training workers.
"""

from __future__ import annotations

from piti.errors import first_line
from piti.training.failures import NODE_MEMORY_REMEDY, is_out_of_memory, lost_line

_BATCH_REMEDY = "lower sampling.batch_size"


def reason_of(error: BaseException) -> str:
    """One line: what a Ray task raised, or `error` itself, and its remedy where one is known."""
    from ray.exceptions import RayError, RayTaskError

    while isinstance(error, RayTaskError) and error.cause is not None and error.cause is not error:
        error = error.cause
    if isinstance(error, RayError):  # of a worker or node that died; the message has several lines
        return f"{lost_line(error)} - {NODE_MEMORY_REMEDY}" if is_out_of_memory(error) else lost_line(error)
    return f"{first_line(error)} - {_BATCH_REMEDY}" if is_out_of_memory(error) else first_line(error)
