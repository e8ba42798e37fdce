"""Running many independent Ray tasks: a bounded number at a time, results in the order they finish."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from piti.errors import PitiError

Result = TypeVar("Result")
_QUEUED_PER_CPU = 2


@contextmanager
def ray_connection() -> Iterator[None]:
    """Connect to the running cluster, and disconnect afterwards. An existing connection is used and stays."""
    if ray.is_initialized():
        yield
        return
    ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=True, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def run_tasks(
    function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]], num_gpus: float = 0.0
) -> Iterator[Result]:
    """`function(*arguments)` for each entry as a Ray task; results in the order they finish. An entry is taken from
    `arguments` when a CPU is free, so there may be many large ones.

    A task lost with its node is run again by Ray. A PitiError raised in a task is raised here as it was; remaining
    tasks are cancelled when this stops early for any reason.
    """
    task = ray.remote(function).options(num_cpus=1, num_gpus=num_gpus)
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    limit = max(1, int(resources.get("CPU", 1))) * _QUEUED_PER_CPU
    waiting = iter(arguments)
    running: list[Any] = []
    try:
        while True:
            running += [task.remote(*entry) for entry in islice(waiting, limit - len(running))]
            if not running:
                return
            done, running = ray.wait(running, num_returns=1)
            yield result_of(done[0])
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def result_of(reference: Any) -> Any:
    """What a Ray task returned. A PitiError is raised as the task raised it, anything else as Ray's RayTaskError."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, PitiError):
            raise error.cause from None
        raise
