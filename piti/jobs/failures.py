"""The reason of a job's failure in one line: the error of the Ray task, and the remedy where one is known.

`piti.training.failures` handles failures of training workers.
"""

from __future__ import annotations

from piti.errors import first_line

_LONGEST_REASON = 500
_GPU_MEMORY = "lower sampling.batch_size"
_NODE_MEMORY = "lower cluster.num_workers or cluster.loader_workers, or use nodes with more memory"


def reason_of(error: BaseException) -> str:
    """One line: what a Ray task raised, or `error` itself, and its remedy where one is known."""
    import torch
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

    while isinstance(error, RayTaskError) and error.cause is not None and error.cause is not error:
        error = error.cause
    if isinstance(error, OutOfMemoryError):
        return f"{_in_one_line(error)} - {_NODE_MEMORY}"
    if isinstance(error, torch.OutOfMemoryError):
        return f"{first_line(error)} - {_GPU_MEMORY}"
    if isinstance(error, RayError):  # of a worker or node that died; the message has several lines
        return _in_one_line(error)
    return first_line(error)


def _in_one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST_REASON]
