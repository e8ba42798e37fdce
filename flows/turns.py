"""Whose turn it is to use the cluster: runs that train share it one after the other.

A concurrency limit of Prefect's, one for each cluster, counts them. It is made with one slot where there is none; what a
person sets in the UI (Concurrency) stays. A run holds its slot from the preparation of data to its last training stage,
however many jobs it has at once, so it never waits for itself. A run needs none where nothing is left to do, and none
where another run has a job for it already: both wait for the same job then.
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
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError

from flows.cluster import Cluster, UnreachableError, submission_prefix
from piti.plan import Plan
from piti.settings import settings

LEASE_SECONDS = 60.0  # the least that Prefect allows: so long a killed run keeps its slot
POLL_SECONDS = 3.0
FORGOTTEN_SECONDS = 3 * LEASE_SECONDS  # slots are taken, and the cluster has done nothing of ours for so long
_AWAY = (httpx.HTTPError, PrefectHTTPStatusError)


def limit_name() -> str:
    """Of the cluster that this process uses."""
    return f"piti training on {urlsplit(settings().ray_jobs_url).netloc}"


@contextmanager
def turn(plan: Plan) -> Iterator[None]:
    """Around the preparation and training of `plan`: begins once it is this run's turn."""
    slot = None
    if any(step.result() is None for step in [*plan.preparation, *plan.training]):
        slot = Slot.taken(limit_name())
        if slot is None and not _is_made_by_another(plan):
            slot = wait_for_turn(plan)
    try:
        yield
    finally:
        if slot is not None:
            slot.release()


@task(name="turn", task_run_name="wait for the cluster", cache_policy=NO_CACHE)
def wait_for_turn(plan: Plan) -> Slot | None:
    """A slot once one is free; None once another run has a job for `plan`. The log says who has the cluster."""
    log, name, told, idle_since = get_run_logger(), limit_name(), "", time.monotonic()
    while True:
        time.sleep(POLL_SECONDS)
        if (slot := Slot.taken(name)) is not None:
            return slot
        if _is_made_by_another(plan):
            log.info("another run makes the same: following its jobs")
            return None
        users = _users()
        if users is None or users:
            idle_since = time.monotonic()
        if time.monotonic() - idle_since > FORGOTTEN_SECONDS:
            log.warning("the runs that held the concurrency limit %r are gone: it is set free", name)
            _set_free(name)
        line = f"waiting for {', '.join(users) if users else 'the run before this one'} (concurrency limit {name!r})"
        if line != told:
            log.info(line)
        told = line


class Slot:
    """A taken slot, kept by renewing its lease beside the run."""

    def __init__(self, lease: UUID) -> None:
        self._lease = lease
        self._is_released = threading.Event()
        threading.Thread(target=self._renew, daemon=True, name="turn").start()

    @classmethod
    def taken(cls, name: str) -> Slot | None:
        """A slot of the limit `name`, which is made where it is missing; None if all are taken."""
        with get_client(sync_client=True) as client:
            _ensure_limit(client, name)
            try:
                answer = client.increment_concurrency_slots_with_lease(
                    names=[name], slots=1, mode="concurrency", lease_duration=LEASE_SECONDS
                )
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.LOCKED:
                    raise
                return None
        return cls(UUID(answer.json()["lease_id"]))

    def release(self) -> None:
        """Give it back."""
        self._is_released.set()
        with suppress(*_AWAY), get_client(sync_client=True) as client:  # the lease ends by itself
            client.release_concurrency_slots_with_lease(lease_id=self._lease)

    def _renew(self) -> None:
        while not self._is_released.wait(LEASE_SECONDS / 4):
            try:
                with get_client(sync_client=True) as client:
                    client.renew_concurrency_lease(lease_id=self._lease, lease_duration=LEASE_SECONDS)
            except _AWAY as error:
                logging.getLogger("piti").debug("the turn's lease is not renewed: %s", error)


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
    """Whether a job that makes an output of `plan` is there."""
    prefixes = tuple(submission_prefix(step) for step in [*plan.preparation, *plan.training])
    try:
        return any(job.id.startswith(prefixes) for job in Cluster().running_jobs())
    except UnreachableError:
        return False


def _users() -> list[str] | None:
    """What our jobs on the cluster make; None if the cluster does not answer."""
    try:
        return [job.title for job in Cluster().running_jobs()]
    except UnreachableError:
        return None
