"""Whose turn it is to use the cluster: runs that train share it one after the other.

A concurrency limit of Prefect's, one for each cluster, counts them. It is made with one slot where there is none; what a
person sets in the UI (Concurrency) stays. A run holds its slot from the preparation of data to its last training stage,
however many jobs it has at once, so it never waits for itself. A run needs none where nothing is left to do, and none
where another run that trains the same has a job already: both wait for the same jobs then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.cancellation import PREFECT_AWAY, WANTED_INTERVAL_SECONDS, require_wanted
from flows.cluster import Cluster, UnreachableError
from piti.plan import Plan
from piti.settings import settings

LEASE_SECONDS = 60.0  # the least that Prefect allows: so long a killed run keeps its slot
POLL_SECONDS = 3.0
FOLLOWER_POLL_SECONDS = 1.0  # less, so that a run whose work goes on comes before those that wait
FORGOTTEN_SECONDS = 3 * LEASE_SECONDS  # slots are taken, and the cluster has done nothing of ours for so long
_JOIN_SECONDS = 5.0

logger = logging.getLogger("piti")


def limit_name() -> str:
    """Of the cluster that this process uses."""
    return f"piti training on {urlsplit(settings().ray_jobs_url).netloc}"


@contextmanager
def turn(plan: Plan) -> Iterator[None]:
    """Around the preparation and training of `plan`: begins once it is this run's turn."""
    if all(step.result() is not None for step in [*plan.preparation, *plan.training]):
        yield
        return
    slot = Slot(limit_name())
    if not slot.take() and not _is_made_by_another(plan):
        wait_for_turn(plan, slot)
    with slot.kept():
        yield


@task(name="turn", task_run_name="wait for the cluster", cache_policy=NO_CACHE)
def wait_for_turn(plan: Plan, slot: Slot) -> None:
    """Return once `slot` is taken, or once another run has a job for the same training. The log says who has the cluster.

    Raises StackError where this run was deleted or cancelled meanwhile.
    """
    log, who, told = get_run_logger(), str(flow_run.id), ""
    idle_since = asked_since = time.monotonic()
    while True:
        time.sleep(POLL_SECONDS)
        if time.monotonic() - asked_since > WANTED_INTERVAL_SECONDS:
            asked_since = time.monotonic()
            require_wanted(who)
        if slot.take():
            return
        if _is_made_by_another(plan):
            log.info("another run makes the same: following its jobs")
            return
        users = _users()
        if users is None or users:
            idle_since = time.monotonic()
        if time.monotonic() - idle_since > FORGOTTEN_SECONDS:
            log.warning("the runs that held the concurrency limit %r are gone: it is set free", slot.name)
            _set_free(slot.name)
        line = (
            f"waiting for {', '.join(users) if users else 'the run before this one'} (concurrency limit {slot.name!r})"
        )
        if line != told:
            log.info(line)
        told = line


class Slot:
    """A slot of the concurrency limit `name`, which this run takes and keeps."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lease: UUID | None = None
        self._is_over = threading.Event()

    def take(self) -> bool:
        """Take it if one is free. The limit is made where it is missing."""
        with get_client(sync_client=True) as client:
            _ensure_limit(client, self.name)
            try:
                answer = client.increment_concurrency_slots_with_lease(
                    names=[self.name], slots=1, mode="concurrency", lease_duration=LEASE_SECONDS
                )
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.LOCKED:
                    raise
                return False
        self._lease = UUID(answer.json()["lease_id"])
        return True

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep it meanwhile: renew its lease, and take one as soon as one is free where there is none, because another
        run had the jobs that this one follows, or the lease ended while the server was away. Given back at the end."""
        thread = threading.Thread(target=self._keep, daemon=True, name="turn")
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join(_JOIN_SECONDS)
            if self._lease is not None:
                with suppress(*PREFECT_AWAY), get_client(sync_client=True) as client:  # the lease ends by itself
                    client.release_concurrency_slots_with_lease(lease_id=self._lease)

    def _keep(self) -> None:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):  # it asks again anyway
            while not self._is_over.wait(FOLLOWER_POLL_SECONDS if self._lease is None else LEASE_SECONDS / 4):
                try:
                    if self._lease is None:
                        self.take()
                    else:
                        self._renew(self._lease)
                except PREFECT_AWAY as error:
                    logger.debug("the turn's lease is not renewed: %s", error)

    def _renew(self, lease: UUID) -> None:
        with get_client(sync_client=True) as client:
            try:
                client.renew_concurrency_lease(lease_id=lease, lease_duration=LEASE_SECONDS)
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.GONE:
                    raise
                self._lease = None
                logger.warning("the server has let the slot of %r lapse; this run takes the next one", self.name)


def _ensure_limit(client: SyncPrefectClient, name: str) -> None:
    with suppress(ObjectAlreadyExists):
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))


def _set_free(name: str) -> None:
    """As after a restart of a Prefect server, which forgets the leases of slots that it counts."""
    with get_client(sync_client=True) as client:
        client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(active_slots=0))


def _is_made_by_another(plan: Plan) -> bool:
    """Whether a run that trains the same has a job. One that trains something else may share jobs with `plan`, of data
    say, but not its turn."""
    try:
        return any(job.goal == plan.goal for job in Cluster().running_jobs())
    except UnreachableError:
        return False


def _users() -> list[str] | None:
    """What our jobs on the cluster make; None if the cluster does not answer."""
    try:
        return [job.title for job in Cluster().running_jobs()]
    except UnreachableError:
        return None
