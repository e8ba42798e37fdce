"""Why a job failed, in one line for a person: the error at the root, and what to do where that is known."""

from __future__ import annotations

from piti.errors import first_line

_LONGEST_REASON = 500
_GPU_MEMORY = "lower training.<stage>.microbatch_size or sampling.batch_size, or set activation_checkpointing"
_NODE_MEMORY = "lower cluster.num_workers or cluster.loader_workers, or use nodes with more memory"


def reason_of(error: BaseException) -> str:
    """One line: the root cause of `error` and, where one is known, its remedy."""
    import torch
    from ray.exceptions import OutOfMemoryError, RayError

    root = root_cause(error)
    if isinstance(root, OutOfMemoryError):
        return f"{_in_one_line(root)} - {_NODE_MEMORY}"
    if isinstance(root, torch.OutOfMemoryError):
        return f"{first_line(root)} - {_GPU_MEMORY}"
    if isinstance(root, RayError):  # a worker or a node that died: its id, place and exit stand on lines of their own
        return _in_one_line(root)
    return first_line(root)


def root_cause(error: BaseException) -> BaseException:
    """What was raised first: in a Ray task, or by a worker of Ray Train."""
    from ray.exceptions import RayTaskError
    from ray.train.v2.api.exceptions import WorkerGroupError

    while True:
        inner: BaseException | None = None
        if isinstance(error, WorkerGroupError):
            inner = next(iter(error.worker_failures.values()), None)
        elif isinstance(error, RayTaskError):
            inner = error.cause
        if inner is None or inner is error:
            return error
        error = inner


def _in_one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST_REASON]
