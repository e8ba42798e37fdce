"""What a job is told (JobSpec), how it tells others (JobContext), and how it knows that someone listens (Followers)."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ConfigDict

from piti import storage
from piti.config import Config
from piti.errors import AbandonedError, StoppedError, first_line
from piti.plan import JobKind, Step

logger = logging.getLogger("piti")

PROGRESS_INTERVAL_SECONDS = 1.0
LEASE_LOOK_SECONDS = 5.0
RENEW_SECONDS = 10.0


class JobSpec(BaseModel):
    """Everything a job needs. It lies at `<folder>/spec.json`; progress.json and error.json appear beside it.

    `session` names the life of the Ray cluster that the job was made for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: JobKind
    name: str
    fingerprint: str
    output: str
    inputs: dict[str, str]
    folder: str
    config: Config
    session: str = ""

    @classmethod
    def for_step(cls, step: Step, config: Config, folder: str, session: str = "") -> JobSpec:
        return cls(
            kind=step.kind, name=step.name, fingerprint=step.fingerprint, output=step.output,
            inputs=step.inputs, folder=folder, config=config, session=session,
        )  # fmt: skip


def job_prefix(name: str, output: str) -> str:
    """Beginning of the ids of all jobs of the step `name` that make `output`; the attempt's number follows."""
    return f"piti-{name}-{storage.sha256_bytes(output.encode())[:12]}-"


class Followers:
    """Who waits for a job: each renews a file of its own in `<folder>/followers/`."""

    def __init__(self, folder: str) -> None:
        self._place = storage.join(folder, "followers")

    def renew(self, who: str) -> None:
        """Say that `who` still waits."""
        storage.write_json(self._file(who), {"renewed": time.time_ns()})

    def leave(self, who: str) -> None:
        """Say that `who` waits no longer."""
        storage.remove(self._file(who))

    def names(self) -> list[str]:
        """Everyone who waits, or did when they were last heard of."""
        return [name.removesuffix(".json") for name in storage.list_names(self._place)]

    def signs(self) -> dict[str, Any]:
        """Each follower's last sign of life. Whether one changes says more than what it is: clocks differ."""
        signs = {}
        for who in self.names():
            with suppress(FileNotFoundError):  # it left just now
                signs[who] = storage.read_json(self._file(who))
        return signs

    def _file(self, who: str) -> str:
        return storage.join(self._place, f"{who}.json")


class Lease:
    """Whether a job is still wanted: `expired` once its followers gave no sign for `seconds` (None: never).

    A job that never had a follower, as one that a person starts by hand, is wanted.
    """

    def __init__(self, followers: Followers, seconds: float | None) -> None:
        self._followers, self._seconds = followers, seconds
        self._signs: dict[str, Any] = {}
        self._looked_seconds = self._changed_seconds = float("-inf")

    def expired(self) -> bool:
        """Cheap to ask often: storage is looked at every few seconds."""
        now = time.monotonic()
        if self._seconds is None:
            return False
        if now - self._looked_seconds >= min(LEASE_LOOK_SECONDS, self._seconds / 4):
            self._looked_seconds = now
            try:
                signs = self._followers.signs()
            except Exception as error:
                if not isinstance(error, OSError) and not storage.is_client_error(error):
                    raise
                logger.warning("cannot see who follows this job: %s", first_line(error))
                return False  # storage that is away says nothing about followers
            if signs != self._signs:
                self._signs, self._changed_seconds = signs, now
        return now - self._changed_seconds > self._seconds and self._changed_seconds > float("-inf")


class JobContext:
    """A running job's connection to the outside."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.config = spec.config
        self._last_progress_seconds = float("-inf")
        allowed = spec.config.cluster.abandoned_job_seconds
        self._lease = Lease(Followers(spec.folder), None if allowed == "never" else allowed)

    def progress(
        self, done: float, total: float, message: str = "", force: bool = False, picture: str | None = None
    ) -> None:
        """Publish how far the job is (`done` of `total` units); cheap to call often, at most one write a second.

        `picture`: URI of a PNG that shows how it is doing.
        """
        now = time.monotonic()
        if not force and done < total and now - self._last_progress_seconds < PROGRESS_INTERVAL_SECONDS:
            return
        self._last_progress_seconds = now
        value = {"done": float(done), "total": float(total), "message": message, "time": time.time()}
        value |= {"picture": picture} if picture else {}
        storage.write_json(storage.join(self.spec.folder, "progress.json"), value)

    def is_abandoned(self) -> bool:
        """Whether nobody has followed this job for `cluster.abandoned_job_seconds`."""
        return self._lease.expired()

    def abandoned(self) -> AbandonedError:
        """The error that such a job ends with."""
        return AbandonedError(
            f"{self.spec.name}: nobody has followed this job for cluster.abandoned_job_seconds "
            f"({self.config.cluster.abandoned_job_seconds})",
            "run again: it goes on where it was",
        )

    def stop_reason(self) -> StoppedError | None:
        """What this job should end with, after a last checkpoint; None: go on."""
        return self.abandoned() if self.is_abandoned() else None

    def info(self, message: str) -> None:
        """A line for the job's log, which the flow's log repeats."""
        logger.info(message)


JobResult = dict[str, Any]
"""A job's JSON-able result, written as `DONE.json` in the step's output folder."""
