"""The driver of a training job while its workers train: it says what they wait for, and passes SIGTERM on to them."""

from __future__ import annotations

import logging
import signal
import threading
import time
import uuid
from types import FrameType, TracebackType
from typing import Any, Self

from piti import storage
from piti.config import ClusterConfig, Stage
from piti.errors import StoppedError, first_line
from piti.job import JobContext, StopRequest
from piti.runs import WORKERS_FILE
from piti.training.watchdog import stalls_of

logger = logging.getLogger("piti")

_LOOK_SECONDS = 2.0
_QUIET_SECONDS = 10.0  # starting takes some time anyway
_REPEAT_SECONDS = 60.0
_WHY = "it was told to end (SIGTERM: its run was cancelled, or its job stopped)"


class Driver:
    """A context for the time in which workers train. Needs a connection to Ray, whose SIGTERM handler it replaces.

    SIGTERM: workers that train write a last checkpoint and end; where none trains yet, StoppedError is raised at once.
    """

    def __init__(self, context: JobContext, stage: Stage) -> None:
        self._context, self._stage = context, stage
        self._attempt = ""
        self._has_begun = True
        self._has_asked = False
        self._began_waiting_seconds = 0.0
        self._said_seconds = float("-inf")
        self._is_told, self._is_over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._look, name="piti-driver", daemon=True)

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, self._told)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_over.set()
        signal.signal(signal.SIGTERM, self._before)

    def attempt(self) -> str:
        """The name of a new start of workers, who put it into workers.json when they begin."""
        if self._is_told.is_set():
            raise self._stopped()
        self._attempt, self._has_begun = uuid.uuid4().hex, False
        self._began_waiting_seconds = time.monotonic()
        return self._attempt

    def stalls(self) -> list[str]:
        """What workers of this attempt said who made no step for too long."""
        return stalls_of(self._context.spec.folder, self._attempt)

    def _told(self, number: int, frame: FrameType | None) -> None:
        self._is_told.set()
        if not self._has_begun:
            raise self._stopped()

    def _stopped(self) -> StoppedError:
        return StoppedError(f"{self._context.spec.name}: {_WHY}", "run again: it goes on where it was")

    def _look(self) -> None:
        while not self._is_over.wait(_LOOK_SECONDS):
            try:
                self._look_once()
            except Exception as error:  # noqa: BLE001 - whatever storage or Ray raise: the next look may succeed
                logger.warning("%s: %s", self._context.spec.name, first_line(error))

    def _look_once(self) -> None:
        if self._is_told.is_set() and not self._has_asked:
            StopRequest(self._context.spec.folder).make(_WHY)
            self._has_asked = True
        self._has_begun = self._has_begun or self._begun()
        waited_seconds = time.monotonic() - self._began_waiting_seconds
        if self._has_begun or waited_seconds < _QUIET_SECONDS or (waits_for := self._waits_for()) is None:
            return
        self._context.waits(waits_for)
        if time.monotonic() - self._said_seconds >= _REPEAT_SECONDS:
            self._context.info(f"{self._context.spec.name}: {waits_for}")
            self._said_seconds = time.monotonic()

    def _begun(self) -> bool:
        try:
            return bool(
                storage.read_json(storage.join(self._context.spec.output, WORKERS_FILE))["attempt"] == self._attempt
            )
        except FileNotFoundError:
            return False

    def _waits_for(self) -> str | None:
        """What the workers lack; None where they have it and are about to begin."""
        import ray
        from ray.util import placement_group_table

        workers, cluster = self._context.config.workers(self._stage), self._context.config.cluster
        free: dict[str, Any] = ray.available_resources()  # type: ignore[no-untyped-call]
        if workers.min == workers.max:  # Ray Train asks for all of them at once, and waits
            states = {entry["state"] for entry in placement_group_table().values()}
            if not states & {"PENDING", "RESCHEDULING"}:
                return None
        elif min(free.get(name, 0) // each for name, each in resources_of(cluster).items()) >= workers.min:
            return None
        return waiting_message(workers.min, resources_of(cluster), free)


def resources_of(cluster: ClusterConfig) -> dict[str, float]:
    """What each worker holds, by Ray's names."""
    return {"CPU": cluster.cpus_per_worker, **({"GPU": 1} if cluster.use_gpu else {})}


def waiting_message(num_workers: int, each: dict[str, float], free: dict[str, float]) -> str:
    """`waits for 8 workers with 6 CPUs, 1 GPU each; free are 12 CPUs, 2 GPUs`, say."""

    def named(amounts: dict[str, float]) -> str:
        return ", ".join(f"{amounts.get(name, 0):g} {name}{'s' if amounts.get(name, 0) != 1 else ''}" for name in each)

    return f"waits for {num_workers} workers with {named(each)} each; free are {named(free)}"
