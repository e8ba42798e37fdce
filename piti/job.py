"""What a job is told (JobSpec) and how it tells others (JobContext): progress, result, reason of failure."""

from __future__ import annotations

import logging
import time
from typing import Any

from pydantic import BaseModel, ConfigDict

from piti import storage
from piti.config import Config
from piti.plan import JobKind, Step

logger = logging.getLogger("piti")

PROGRESS_INTERVAL_SECONDS = 1.0


class JobSpec(BaseModel):
    """Everything a job needs. It lies at `<folder>/spec.json`; progress.json and error.json appear beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: JobKind
    name: str
    fingerprint: str
    output: str
    inputs: dict[str, str]
    folder: str
    config: Config

    @classmethod
    def for_step(cls, step: Step, config: Config, folder: str) -> JobSpec:
        return cls(
            kind=step.kind, name=step.name, fingerprint=step.fingerprint, output=step.output,
            inputs=step.inputs, folder=folder, config=config,
        )  # fmt: skip


class JobContext:
    """A running job's connection to the outside."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.config = spec.config
        self._last_progress_seconds = float("-inf")

    def progress(self, done: float, total: float, message: str = "", force: bool = False) -> None:
        """Publish how far the job is (`done` of `total` units); cheap to call often, at most one write a second."""
        now = time.monotonic()
        if not force and done < total and now - self._last_progress_seconds < PROGRESS_INTERVAL_SECONDS:
            return
        self._last_progress_seconds = now
        value = {"done": float(done), "total": float(total), "message": message, "time": time.time()}
        storage.write_json(storage.join(self.spec.folder, "progress.json"), value)

    def info(self, message: str) -> None:
        """A line for the job's log, which the flow's log repeats."""
        logger.info(message)


JobResult = dict[str, Any]
"""A job's JSON-able result, written as `DONE.json` in the step's output folder."""
