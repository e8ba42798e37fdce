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
from piti.errors import AbandonedError, DataError, PreemptedError, StoppedError
from piti.plan import JobKind, Step

logger = logging.getLogger("piti")

SPEC_FILE = "spec.json"
PROGRESS_FILE = "progress.json"
ERROR_FILE = "error.json"
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
        self._folder, self._place = folder, storage.join(folder, "followers")

    def renew(self, who: str) -> None:
        """Record that `who` still waits."""
        storage.write_json(self._file(who), {"renewed": time.time_ns()})

    def leave(self, who: str) -> None:
        """Delete the record of `who`."""
        storage.remove(self._file(who))

    def names(self) -> list[str]:
        """Names of all recorded followers, whether they are alive or not."""
        return [name.removesuffix(".json") for name in storage.list_names(self._place)]

    def signs(self) -> dict[str, bytes]:
        """Each follower's last record, as it is stored. Compare records with earlier ones, not with this machine's
        clock: clocks differ."""
        signs = {}
        for who in self.names():
            with suppress(FileNotFoundError):  # it left just now
                signs[who] = storage.read_bytes(self._file(who))
        return signs

    def are_away(self) -> bool:
        """Whether the job's whole folder is missing, as where a mount is gone."""
        return not storage.exists(storage.join(self._folder, SPEC_FILE))

    def _file(self, who: str) -> str:
        return storage.join(self._place, f"{who}.json")


class StopRequest:
    """A request that a job end after a last checkpoint: the file `<folder>/stop.json`."""

    def __init__(self, folder: str) -> None:
        self._file = storage.join(folder, "stop.json")
        self._looked_seconds = float("-inf")
        self._reason: str | None = None
        self._is_damaged = False

    def make(self, reason: str) -> None:
        """Ask the job to end. A request that is there already keeps its reason; a damaged one is replaced."""
        request = {"reason": reason}
        if not storage.create_bytes(self._file, json.dumps(request).encode()):
            with suppress(FileNotFoundError):
                if self._stored() is None:
                    storage.write_json(self._file, request)

    def reason(self) -> str | None:
        """Why the job should end; None without a request that can be read. Storage is read every STOP_LOOK_SECONDS at
        most, so call it often."""
        if self._reason is None and time.monotonic() - self._looked_seconds >= STOP_LOOK_SECONDS:
            self._looked_seconds = time.monotonic()
            with storage.tolerated("cannot read whether this job was asked to stop"), suppress(FileNotFoundError):
                self._read()
        return self._reason

    def _read(self) -> None:
        self._reason = self._stored()
        if self._reason is None and not self._is_damaged:
            logger.warning("%s is damaged: this job goes on", self._file)
            self._is_damaged = True

    def _stored(self) -> str | None:
        """The reason in storage; None where the file is damaged. Raises FileNotFoundError where there is none."""
        try:
            return str(storage.read_json(self._file)["reason"])
        except (DataError, KeyError, TypeError):
            return None


class Lease:
    """Whether a job is still wanted. It is `expired` once its followers renewed nothing for `seconds` (None: never).

    A job that never had a follower, such as one started by hand, does not expire. While storage does not answer,
    followers cannot renew either: their silence counts from its first answer on.
    """

    def __init__(self, followers: Followers, seconds: float | None) -> None:
        self._followers, self._seconds = followers, seconds
        self._signs: dict[str, bytes] = {}
        self._looked_seconds = self._changed_seconds = float("-inf")

    def expired(self) -> bool:
        """Cheap to ask often: storage is looked at every few seconds."""
        now = time.monotonic()
        if self._seconds is None:
            return False
        if now - self._looked_seconds >= min(LEASE_LOOK_SECONDS, self._seconds / 4):
            signs, self._looked_seconds = self._look(), time.monotonic()
            storage_answered = signs is not None and self._looked_seconds - now < RENEW_SECONDS
            if signs is not None and signs != self._signs:
                self._signs, self._changed_seconds = signs, self._looked_seconds
            elif not storage_answered and self._changed_seconds > float("-inf"):
                self._changed_seconds = self._looked_seconds
        return time.monotonic() - self._changed_seconds > self._seconds and self._changed_seconds > float("-inf")

    def _look(self) -> dict[str, bytes] | None:
        """The followers' signs; None where storage does not answer."""
        with storage.tolerated("cannot read who follows this job"):
            signs = self._followers.signs()
            if signs or not self._signs or not self._followers.are_away():
                return signs
        return None


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
        storage.write_json(storage.join(self.spec.folder, PROGRESS_FILE), value)

    def waits(self, message: str) -> None:
        """Publish that the job waits, and what for. Its progress so far stays, whichever of its processes published it."""
        last = storage.read_json_if_there(storage.join(self.spec.folder, PROGRESS_FILE)) or {"done": 0, "total": 1}
        self.progress(last["done"], last["total"], message, force=True, picture=last.get("picture"))

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

    def preempted(self) -> PreemptedError:
        """The error with which a job ends whose machine is about to be taken away."""
        return PreemptedError(f"{self.spec.name}: a node that it runs on is about to go")

    def stop_reason(self) -> StoppedError | None:
        """The error with which this job should end after a last checkpoint; None: go on. Reads storage."""
        if (asked := self._stop_request.reason()) is not None:
            return StoppedError(f"{self.spec.name}: {asked}", "run again: it goes on where it was")
        return self.abandoned() if self.is_abandoned() else None

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
