"""A job's folder in storage: its specification, progress, stop request and followers."""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ConfigDict

from piti import storage
from piti.config import Config
from piti.errors import AbandonedError, PreemptedError, StoppedError, first_line
from piti.plan import JobKind, Step

logger = logging.getLogger("piti")

SPEC_FILE = "spec.json"
PROGRESS_INTERVAL_SECONDS = 1.0
LEASE_LOOK_SECONDS = 5.0
STOP_LOOK_SECONDS = 2.0
RENEW_SECONDS = 10.0


class JobSpec(BaseModel):
    """Everything a job needs, stored as `<folder>/spec.json`. The job writes progress.json and error.json into the same
    folder.

    `session` identifies the Ray cluster that the job was submitted to; a restarted cluster has another one.
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
    """Prefix of the ids of all jobs of the step `name` that write `output`. The attempt's number follows it."""
    return f"piti-{name}-{storage.sha256_bytes(output.encode())[:12]}-"


class Followers:
    """The runs that wait for a job. Each renews a file of its own in `<folder>/followers/`."""

    def __init__(self, folder: str) -> None:
        self._place = storage.join(folder, "followers")

    def renew(self, who: str) -> None:
        """Record that `who` still waits."""
        storage.write_json(self._file(who), {"renewed": time.time_ns()})

    def leave(self, who: str) -> None:
        """Delete the record of `who`."""
        storage.remove(self._file(who))

    def names(self) -> list[str]:
        """Names of all recorded followers, whether they are alive or not."""
        return [name.removesuffix(".json") for name in storage.list_names(self._place)]

    def signs(self) -> dict[str, Any]:
        """Each follower's last record. Compare records with earlier ones, not with this machine's clock: clocks
        differ."""
        signs = {}
        for who in self.names():
            with suppress(FileNotFoundError):  # it left just now
                signs[who] = storage.read_json(self._file(who))
        return signs

    def _file(self, who: str) -> str:
        return storage.join(self._place, f"{who}.json")


class StopRequest:
    """A request that a job end after a last checkpoint: the file `<folder>/stop.json`."""

    def __init__(self, folder: str) -> None:
        self._file = storage.join(folder, "stop.json")
        self._looked_seconds = float("-inf")
        self._reason: str | None = None

    def make(self, reason: str) -> None:
        """Ask the job to end. A request that is there already keeps its reason."""
        storage.create_bytes(self._file, json.dumps({"reason": reason}).encode())

    def reason(self) -> str | None:
        """Why the job should end; None without a request. Storage is read every STOP_LOOK_SECONDS at most, so call it
        often."""
        if self._reason is None and time.monotonic() - self._looked_seconds >= STOP_LOOK_SECONDS:
            self._looked_seconds = time.monotonic()
            try:
                self._reason = str(storage.read_json(self._file)["reason"])
            except FileNotFoundError:
                return None
            except Exception as error:
                if not isinstance(error, OSError) and not storage.is_client_error(error):
                    raise
                logger.warning("cannot read whether this job was asked to stop: %s", first_line(error))
        return self._reason


class Lease:
    """Whether a job is still wanted. It is `expired` once its followers renewed nothing for `seconds` (None: never).

    A job that never had a follower, such as one started by hand, does not expire.
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
                logger.warning("cannot read who follows this job: %s", first_line(error))
                return False  # the followers may be alive: storage did not answer
            if signs != self._signs:
                self._signs, self._changed_seconds = signs, now
        return now - self._changed_seconds > self._seconds and self._changed_seconds > float("-inf")


class JobContext:
    """What a running job uses to report progress and to learn that it should stop."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.config = spec.config
        self._last_progress_seconds = float("-inf")
        allowed = spec.config.cluster.abandoned_job_seconds
        self._stop_request = StopRequest(spec.folder)
        self._lease = Lease(Followers(spec.folder), None if allowed == "never" else allowed)

    def progress(
        self, done: float, total: float, message: str = "", force: bool = False, picture: str | None = None
    ) -> None:
        """Publish that `done` of `total` units are finished. Writes at most once a second unless `force`.

        `picture`: URI of a PNG to show beside the progress.
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
        """The error with which an abandoned job ends."""
        return AbandonedError(
            f"{self.spec.name}: nobody has followed this job for cluster.abandoned_job_seconds "
            f"({self.config.cluster.abandoned_job_seconds})",
            "run again: it goes on where it was",
        )

    def stop_reason(self, is_preempted: bool = False) -> StoppedError | None:
        """The error with which this job should end after a last checkpoint; None: go on."""
        if (asked := self._stop_request.reason()) is not None:
            return StoppedError(f"{self.spec.name}: {asked}", "run again: it goes on where it was")
        if self.is_abandoned():
            return self.abandoned()
        if is_preempted:
            return PreemptedError(f"{self.spec.name}: a node that it runs on is about to go")
        return None

    def is_preempted(self) -> bool:
        """Whether a machine of this job is about to be taken away. All workers must call it together."""
        return False

    def alive(self, step: int) -> None:
        """Report that the job is alive and has taken `step` steps."""

    def info(self, message: str) -> None:
        """Write a line to the job's log, which the flow's log repeats."""
        logger.info(message)


JobResult = dict[str, Any]
"""A job's JSON-able result, written as `DONE.json` in the step's output folder."""
