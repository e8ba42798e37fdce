"""The reason that a person reads is the root cause, in one line: errors as Ray itself wraps them."""

from __future__ import annotations

import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError

from piti.jobs.failures import reason_of


def wrapped(error: Exception) -> Exception:
    """`error` as Ray raises it on the driver when a task raised it."""
    task_error = ray.exceptions.RayTaskError("task", "Traceback\n  line", error)
    return task_error.as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (ValueError("bad\nTraceback"), ["ValueError: bad"]),
        (wrapped(ValueError("bad")), ["ValueError: bad"]),
        (wrapped(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
         ["CUDA out of memory. Tried to allocate 2 GiB", "lower sampling.batch_size"]),
        (wrapped(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
         ["CUBLAS_STATUS_ALLOC_FAILED", "lower sampling.batch_size"]),
        (OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.0.0.7)"),
         ["10.0.0.7", "lower cluster.num_workers"]),
        (ActorDiedError(), ["ActorDiedError: The actor died unexpectedly"]),
        (RuntimeError(), ["RuntimeError"]),
    ],
)  # fmt: skip
def test_reason(error: Exception, parts: list[str]) -> None:
    reason = reason_of(error)
    assert "\n" not in reason
    assert "Traceback" not in reason
    for part in parts:
        assert part in reason
