"""A Ray job as an object: submit or re-attach, follow, stop. Speaks to the cluster's Jobs API only.

A job's id is `piti-<step>-<hash of its output>-<attempt>`, so that whoever wants a step's output finds the job
that is making it. What the job is told and what it tells lies in `<root>/jobs/<id>/` (piti.job).

One attempt is one job: its spec.json is created once, and Ray takes each id once, so of two runs that want the same
output at the same moment one submits the job and the other attaches to it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from piti import storage
from piti.config import Config
from piti.errors import DataError, PitiError, StackError, first_line
from piti.job import ERROR_FILE, PROGRESS_FILE, RENEW_SECONDS, SPEC_FILE, Followers, JobSpec, StopRequest, job_prefix
from piti.plan import Step
from piti.settings import settings

POLL_SECONDS = 0.5
REQUEST_SECONDS = 60.0  # a machine that lost its power answers nothing, not even a refusal
LAST_LINES_SECONDS = 2.0
ALIVE = {JobStatus.PENDING, JobStatus.RUNNING}
_OWN_NODE_TYPE = re.compile(r"node_?[0-9A-Fa-f]{56}")  # the dashboard writes `node_4f8ac2...` as `node4F8Ac2...`

Progress = dict[str, Any]
Log = logging.Logger | logging.LoggerAdapter[Any]
Answer = TypeVar("Answer")

logger = logging.getLogger("piti")

logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it tells of every log stream that ends


class StepError(PitiError):
    """A step's job failed for a reason that trying again would not change."""


class UnreachableError(StackError):
    """The cluster does not answer at the moment; it may be back soon."""


@dataclass(frozen=True)
class Resources:
    """What a cluster has in all: CPU cores, GPUs."""

    cpus: float
    gpus: float


def patiently(log: Log, ask: Callable[[], Answer]) -> Answer:
    """What `ask()` gives. It is called again while the cluster does not answer, for PITI_RAY_PATIENCE_SECONDS, and while
    storage fails, for ten minutes."""
    since, is_told = time.monotonic(), False
    while True:
        try:
            return ask()
        except Exception as error:
            if isinstance(error, UnreachableError):
                problem, patience_seconds = error.problem, settings().ray_patience_seconds
            elif storage.is_failure(error):
                problem, patience_seconds = f"storage does not answer ({first_line(error)})", storage.PATIENCE_SECONDS
            else:
                raise
            if time.monotonic() - since > patience_seconds:
                raise
            if not is_told:
                log.warning("%s; waiting up to %.0f s for it", problem, patience_seconds)
            is_told = True
            time.sleep(POLL_SECONDS)


class _Client(JobSubmissionClient):
    """Ray's client, which would wait for an answer for ever."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        try:
            return super()._do_request(method, endpoint, **{"timeout": REQUEST_SECONDS, **options})
        except AuthenticationError as error:
            raise StackError(
                f"the Ray cluster at {self._address} does not accept our token",
                "PITI_RAY_TOKEN_FILE and RAY_AUTH_TOKEN_PATH name the file that holds the cluster's",
            ) from error


class Cluster:
    """The Ray cluster that jobs run on, in the life that it has now.

    Raises UnreachableError if it does not answer, StackError if it does not let us in.
    """

    def __init__(self, url: str | None = None) -> None:
        self.url = url or settings().ray_jobs_url
        try:
            self._client = _Client(self.url)
            self.session = str(self._client._do_request("GET", "/api/version").json()["session_name"])
        except (ConnectionError, RuntimeError, KeyError, ValueError, requests.RequestException) as error:
            raise _unreachable(self.url, error) from error

    def resources(self) -> Resources:
        """Totals over the nodes that are alive."""
        try:
            found = list_nodes(address=self.url, detail=True)
        except (ConnectionError, RuntimeError, RayStateApiException, requests.RequestException) as error:
            raise _unreachable(self.url, error) from error
        nodes = [node for node in found if node.state == "ALIVE"]
        totals = [node.resources_total or {} for node in nodes]
        return Resources(sum(total.get("CPU", 0.0) for total in totals), sum(total.get("GPU", 0.0) for total in totals))

    def grows(self) -> bool:
        """Whether an autoscaler adds nodes. Without one Ray names a type for each node, `node_<id>`, after the node.

        Raises UnreachableError.
        """
        try:
            response = self._client._do_request("GET", "/api/cluster_status")
            response.raise_for_status()
            answer = response.json()
        except (ConnectionError, RuntimeError, ValueError, requests.RequestException) as error:
            raise _unreachable(self.url, error) from error
        status = (answer.get("data") or {}).get("clusterStatus") or {}
        active = (status.get("autoscalerReport") or {}).get("activeNodes") or {}
        return any(not _OWN_NODE_TYPE.fullmatch(name) for name in active)

    def running_jobs(self) -> list[RayJob]:
        """This project's jobs that have not ended, whoever started them."""
        try:
            found = [(entry, entry.metadata or {}) for entry in self._client.list_jobs()]
        except (ConnectionError, RuntimeError, requests.RequestException) as error:
            raise _unreachable(self.url, error) from error
        return [
            RayJob(
                self,
                entry.submission_id,
                about["folder"],
                f"{about.get('step')} of {about.get('config')}",
                about.get("goal", ""),
            )
            for entry, about in found
            if about.get("folder") and entry.submission_id and entry.status in ALIVE
        ]

    def submit_or_attach(self, step: Step, config: Config, who: str, goal: str = "") -> tuple[RayJob, bool]:
        """The job that makes `step`'s output, and whether it was there already. `who` becomes its follower.

        `goal`: what the run that asks trains (Plan.goal); empty if nothing.

        The last attempt stays the one until it is over: between its claim and its submission anyone may submit it.
        """
        numbers = attempts(step, config)
        if numbers and not (last := self._attempt(step, config, numbers[-1])).is_over_or_about_to_be():
            return last, not last.submit(step, config, who, goal)
        job = self._attempt(step, config, 1 + (numbers[-1] if numbers else 0))
        return job, not job.submit(step, config, who, goal)

    def _attempt(self, step: Step, config: Config, number: int) -> RayJob:
        submission_id = f"{submission_prefix(step)}{number}"
        return RayJob(self, submission_id, storage.join(config.root, "jobs", submission_id))


def attempts(step: Step, config: Config) -> list[int]:
    """The numbers of the attempts at `step` so far (the folders in storage are the memory of that), ascending."""
    prefix = submission_prefix(step)
    names = storage.list_names(storage.join(config.root, "jobs"))
    numbers = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return sorted(int(number) for number in numbers if number.isascii() and number.isdecimal())


def submission_prefix(step: Step) -> str:
    """Beginning of the ids of all jobs that make `step`'s output; the attempt's number follows."""
    return job_prefix(step.name, step.output)


class RayJob:
    """One attempt at a step. `folder` holds what it is told and what it tells; `title` says of what, for people; `goal`
    is that of the run that submitted it."""

    def __init__(self, cluster: Cluster, submission_id: str, folder: str, title: str = "", goal: str = "") -> None:
        self.id = submission_id
        self.folder = folder
        self.title = title
        self.goal = goal
        self.followers = Followers(folder)
        self._cluster = cluster
        self._client = cluster._client

    def is_over(self) -> bool:
        """Whether this attempt has ended, or was made for a cluster that is gone."""
        status = self.status()
        if status is not None:
            return status not in ALIVE
        try:
            return bool(storage.read_json(self._spec_uri)["session"] != self._cluster.session)
        except FileNotFoundError:
            return False  # somebody is about to submit it
        except (DataError, KeyError, TypeError, NotADirectoryError):
            return True  # a stray file or folder, or one of an older version

    def is_over_or_about_to_be(self) -> bool:
        """As `is_over`; an attempt that was asked to end is waited for until it has."""
        while not (is_over := self.is_over()) and StopRequest(self.folder).reason() is not None:
            time.sleep(POLL_SECONDS)
        return is_over

    def submit(self, step: Step, config: Config, who: str, goal: str) -> bool:
        """Submit, unless it is submitted already; then False. `who` becomes its follower."""
        self.followers.renew(who)
        if self.status() is not None:
            return False
        spec = JobSpec.for_step(step, config, self.folder, self._cluster.session)
        # The spec of whoever claimed the attempt first stays.
        storage.create_bytes(self._spec_uri, spec.model_dump_json(indent=2).encode(), private=True)
        command = [settings().job_python, "-m", "piti.jobs", step.kind, "--spec", self._spec_uri]
        try:
            self._client.submit_job(
                submission_id=self.id,
                entrypoint=shlex.join(command),
                runtime_env={"env_vars": settings().job_environment()},
                metadata={
                    "step": step.name,
                    "fingerprint": step.fingerprint,
                    "config": config.name,
                    "folder": self.folder,
                    "goal": goal,
                },
            )
        except (ConnectionError, RuntimeError, requests.RequestException) as error:
            if self.status() is None:
                raise UnreachableError(f"the Ray cluster does not take {self.id} ({first_line(error)})") from error
            return False
        return True

    def status(self) -> JobStatus | None:
        """The job's status; None if the cluster does not know it (it was restarted, say). Raises UnreachableError."""
        try:
            return self._client.get_job_status(self.id)
        except (ConnectionError, requests.RequestException) as error:
            raise _unreachable(self._cluster.url, error) from error
        except RuntimeError as error:
            if "does not exist" in str(error) or "404" in str(error):
                return None
            raise _unreachable(self._cluster.url, error) from error

    def message(self) -> str:
        """What Ray says of the job's end, in one line; empty if it says nothing."""
        try:
            lines = (self._client.get_job_info(self.id).message or "").strip().splitlines()
        except (ConnectionError, RuntimeError, requests.RequestException):
            return ""
        return lines[0] if lines else ""

    def stop(self) -> bool:
        """Ask the job to end; False if it was not running. Raises UnreachableError.

        The request in storage tells the job why. Ray is told whether that can be written or not.
        """
        if self.status() not in ALIVE:
            return False
        with storage_may_be_away(logger):
            StopRequest(self.folder).make("its run was cancelled or deleted")
        try:
            return bool(self._client.stop_job(self.id))
        except (ConnectionError, RuntimeError, requests.RequestException) as error:
            raise _unreachable(self._cluster.url, error) from error

    def progress(self) -> Progress | None:
        return storage.read_json_if_there(storage.join(self.folder, PROGRESS_FILE))

    def failure(self) -> dict[str, Any] | None:
        """The reason the job itself gave for failing; None if it died without giving one."""
        return storage.read_json_if_there(storage.join(self.folder, ERROR_FILE))

    def wait_for_folder(self) -> None:
        """Return once what this job was told is there: at once, or when its mount is back. Raises AwayError."""
        storage.wait_until_there(self._spec_uri)

    @property
    def _spec_uri(self) -> str:
        return storage.join(self.folder, SPEC_FILE)

    @property
    def page(self) -> str:
        """Its page in Ray's dashboard."""
        return f"{self._cluster.url}/#/jobs/{self.id}"

    def log_so_far(self) -> str:
        """Raises UnreachableError."""
        try:
            return str(self._client.get_job_logs(self.id))
        except (ConnectionError, RuntimeError, requests.RequestException) as error:
            raise _unreachable(self._cluster.url, error) from error

    def follow(self, log: Log, on_poll: Callable[[], None], who: str, seen: int = 0) -> JobStatus | None:
        """Repeat the job's log lines (after `seen` characters) until it ends; `on_poll` is called in between.

        Meanwhile `who` stays its follower.

        Returns the final status, None if the cluster forgot the job. A cluster that does not answer is waited for
        as long as `PITI_RAY_PATIENCE_SECONDS` allows, then UnreachableError. Storage that is away is waited for.
        """
        tail = _LogTail(self._client, self.id, seen)
        silent_since: float | None = None
        renewed_seconds = float("-inf")
        while True:
            for line in tail.lines():
                log.info(line)
            with storage_may_be_away(log):
                if time.monotonic() - renewed_seconds > RENEW_SECONDS:
                    renewed_seconds = time.monotonic()
                    self.followers.renew(who)
                on_poll()
            try:
                status = self.status()
                if silent_since is not None:
                    log.info("the Ray cluster answers again")
                silent_since = None
            except UnreachableError as error:
                if silent_since is None:
                    log.warning("%s; waiting for it", error.problem)
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > settings().ray_patience_seconds:
                    raise
                status = JobStatus.RUNNING
            if status not in ALIVE:
                for line in tail.last_lines(LAST_LINES_SECONDS):
                    log.info(line)
                with storage_may_be_away(log):
                    self.followers.leave(who)
                return status
            time.sleep(POLL_SECONDS)


def _unreachable(url: str, error: Exception) -> UnreachableError:
    return UnreachableError(f"no Ray cluster answers at {url} ({first_line(error)})", "start one with `piti up`")


@contextmanager
def storage_may_be_away(log: Log) -> Iterator[None]:
    """Around what can be done later as well: storage that does not answer, is full, refuses us or needs a library that
    is not installed, ends nothing."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, DataError | ImportError) and not storage.is_failure(error):
            raise
        log.warning("storage does not answer: %s", first_line(error))


class _LogTail:
    """A job's log, streamed in a thread so that the flow can poll in between; reconnects where it left off."""

    def __init__(self, client: _Client, job_id: str, seen: int) -> None:
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
            logger.debug("log stream of %s ended: %s", self._job_id, error)

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
