"""A Ray job as an object: submit or re-attach, follow, stop. Speaks to the cluster's Jobs API only.

A job's id is `piti-<step>-<hash of its output>-<attempt>`, so that whoever wants a step's output finds the job
that is making it. What the job is told and what it tells lies in `<root>/jobs/<id>/` (piti.job).
"""

from __future__ import annotations

import asyncio
import logging
import queue
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import requests
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes

from piti import storage
from piti.config import Config
from piti.errors import PitiError, StackError, first_line
from piti.job import JobSpec
from piti.plan import Step
from piti.settings import settings

POLL_SECONDS = 0.5
LAST_LINES_SECONDS = 2.0
ALIVE = {JobStatus.PENDING, JobStatus.RUNNING}

Progress = dict[str, Any]

logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it tells of every log stream that ends


class StepError(PitiError):
    """A step's job failed for a reason that trying again would not change."""


class UnreachableError(Exception):
    """The cluster does not answer at the moment."""


@dataclass(frozen=True)
class Resources:
    """What a cluster has in all: CPU cores, GPUs."""

    cpus: float
    gpus: float


class Cluster:
    """The Ray cluster that jobs run on. Raises StackError if it cannot be reached."""

    def __init__(self, url: str | None = None) -> None:
        self.url = url or settings().ray_jobs_url
        try:
            self._client = JobSubmissionClient(self.url)
        except (ConnectionError, RuntimeError, requests.RequestException) as error:
            raise StackError(
                f"no Ray cluster answers at {self.url} ({first_line(error)})", "start one with `piti up`"
            ) from error

    def resources(self) -> Resources:
        """Totals over the nodes that are alive."""
        nodes = [node for node in list_nodes(address=self.url, detail=True) if node.state == "ALIVE"]
        totals = [node.resources_total or {} for node in nodes]
        return Resources(sum(total.get("CPU", 0.0) for total in totals), sum(total.get("GPU", 0.0) for total in totals))

    def job(self, submission_id: str) -> RayJob:
        return RayJob(self, submission_id)

    def jobs_for(self, step: Step, config: Config) -> list[RayJob]:
        """Every attempt at `step` so far, oldest first (the folders in storage are the memory of that)."""
        prefix = submission_prefix(step)
        names = storage.list_names(storage.join(config.root, "jobs"))
        attempts = sorted(int(entry.removeprefix(prefix)) for entry in names if entry.startswith(prefix))
        return [RayJob(self, f"{prefix}{attempt}") for attempt in attempts]

    def submit_or_attach(self, step: Step, config: Config) -> tuple[RayJob, bool]:
        """The job that makes `step`'s output, and whether it was running already."""
        attempts = self.jobs_for(step, config)
        if attempts and attempts[-1].status() in ALIVE:
            return attempts[-1], True
        number = 1 + (int(attempts[-1].id.rsplit("-", 1)[1]) if attempts else 0)
        job = RayJob(self, f"{submission_prefix(step)}{number}")
        return job, not job.submit(step, config)


def submission_prefix(step: Step) -> str:
    """Beginning of the ids of all jobs that make `step`'s output; the attempt's number follows."""
    return f"piti-{step.name}-{storage.sha256_bytes(step.output.encode())[:12]}-"


class RayJob:
    """One attempt at a step."""

    def __init__(self, cluster: Cluster, submission_id: str) -> None:
        self.id = submission_id
        self._cluster = cluster
        self._client = cluster._client

    def submit(self, step: Step, config: Config) -> bool:
        """Submit; False if someone else submitted the same attempt first."""
        folder = storage.join(config.root, "jobs", self.id)
        spec_uri = storage.join(folder, "spec.json")
        spec = JobSpec.for_step(step, config, folder)
        storage.write_json(spec_uri, spec.model_dump(mode="json"), private=True)
        command = [settings().job_python, "-m", "piti.jobs", step.kind, "--spec", spec_uri]
        try:
            self._client.submit_job(
                submission_id=self.id,
                entrypoint=shlex.join(command),
                runtime_env={"env_vars": settings().job_environment()},
                metadata={"step": step.name, "fingerprint": step.fingerprint, "config": config.name},
            )
        except RuntimeError:
            if self.status() is None:
                raise
            return False
        return True

    def status(self) -> JobStatus | None:
        """The job's status; None if the cluster does not know it (it was restarted, say). Raises UnreachableError."""
        try:
            return self._client.get_job_status(self.id)
        except (ConnectionError, requests.RequestException) as error:
            raise UnreachableError(first_line(error)) from error
        except RuntimeError as error:
            if "does not exist" in str(error) or "404" in str(error):
                return None
            raise UnreachableError(first_line(error)) from error

    def stop(self) -> bool:
        """Ask the job to end; False if it was not running."""
        if self.status() not in ALIVE:
            return False
        return bool(self._client.stop_job(self.id))

    def progress(self, root: str) -> Progress | None:
        return _read_json_if_there(storage.join(root, "jobs", self.id, "progress.json"))

    def failure(self, root: str) -> dict[str, Any] | None:
        """The reason the job itself gave for failing; None if it died without giving one."""
        return _read_json_if_there(storage.join(root, "jobs", self.id, "error.json"))

    def log_so_far(self) -> str:
        return str(self._client.get_job_logs(self.id))

    def follow(
        self, log: logging.Logger | logging.LoggerAdapter[Any], on_poll: Callable[[], None], seen: int = 0
    ) -> JobStatus | None:
        """Repeat the job's log lines (after `seen` characters) until it ends; `on_poll` is called in between.

        Returns the final status, None if the cluster forgot the job. A cluster that does not answer is waited for
        as long as `PITI_RAY_PATIENCE_SECONDS` allows, then StackError.
        """
        tail = _LogTail(self._client, self.id, seen)
        silent_since: float | None = None
        while True:
            for line in tail.lines():
                log.info(line)
            on_poll()
            try:
                status = self.status()
                silent_since = None
            except UnreachableError as error:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > settings().ray_patience_seconds:
                    raise StackError(
                        f"the Ray cluster stopped answering ({error})", "`piti up`, then run again"
                    ) from error
                status = JobStatus.RUNNING
            if status not in ALIVE:
                for line in tail.last_lines(LAST_LINES_SECONDS):
                    log.info(line)
                return status
            time.sleep(POLL_SECONDS)


class _LogTail:
    """A job's log, streamed in a thread so that the flow can poll in between; reconnects where it left off."""

    def __init__(self, client: JobSubmissionClient, job_id: str, seen: int) -> None:
        self._client, self._job_id, self._seen = client, job_id, seen
        self._pieces: queue.Queue[str] = queue.Queue()
        self._partial = ""
        self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._stream()), daemon=True, name="job-log")
        self._thread.start()

    async def _stream(self) -> None:
        skip = self._seen
        try:
            async for piece in self._client.tail_job_logs(self._job_id):
                fresh = piece[skip:]
                skip = max(0, skip - len(piece))
                self._seen += len(fresh)
                self._pieces.put(fresh)
        except Exception as error:  # noqa: BLE001 - whatever broke the stream, lines() opens it again
            logging.getLogger("piti").debug("log stream of %s ended: %s", self._job_id, error)

    def lines(self) -> Iterator[str]:
        """Whole lines that have arrived since the last call."""
        alive = self._thread.is_alive()
        yield from self._drain()
        if not alive:
            self._start()

    def last_lines(self, timeout_seconds: float) -> Iterator[str]:
        """What is left once the job has ended."""
        self._thread.join(timeout_seconds)
        yield from self._drain()
        if self._partial:
            yield self._partial

    def _drain(self) -> Iterator[str]:
        while not self._pieces.empty():
            *whole, self._partial = (self._partial + self._pieces.get()).split("\n")
            yield from (line for line in whole if line.strip())


def _read_json_if_there(uri: str) -> dict[str, Any] | None:
    try:
        return cast(dict[str, Any], storage.read_json(uri))
    except FileNotFoundError:
        return None
