"""Stops the Ray jobs of cancelled runs, unless another run waits for them.

A job that nobody stops, because nothing served the deployments when the run was cancelled or deleted, is stopped when
the serving process starts again, and otherwise ends by itself (piti.job.Lease).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.flows import Flow
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Running

from flows.cluster import Cluster, RayJob, storage_may_be_away
from piti.errors import PitiError, StackError
from piti.job import RENEW_SECONDS, Followers

logger = logging.getLogger("piti")

PREFECT_AWAY = (httpx.HTTPError, PrefectHTTPStatusError)
WANTED_INTERVAL_SECONDS = 15.0
_SILENCE_SECONDS = 2.5 * RENEW_SECONDS  # a follower that gives no sign for so long is dead


def stop_jobs(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """Stop every job that this run followed, unless another live run follows it too.

    Prefect's hook: it runs in the serving process once the run's own process is gone.
    """
    for job in Cluster().running_jobs():
        with _by_itself(job):
            if str(flow_run.id) in job.followers.names():
                give_up(job, str(flow_run.id))


def stop_unwanted_jobs() -> None:
    """Stop the jobs all of whose runs were cancelled or deleted while nothing served the deployments."""
    with get_client(sync_client=True) as client:
        for job in Cluster().running_jobs():
            with _by_itself(job):
                runs = {who: _run(client, who) for who in job.followers.names()}
                if runs and all(run is None or _is_cancelled(run) for run in runs.values()):
                    _stop_unwanted(client, job, runs)


def _stop_unwanted(client: SyncPrefectClient, job: RayJob, runs: dict[str, FlowRun | None]) -> None:
    _stop(job)
    for who, run in runs.items():
        if run is not None and run.state is not None and not run.state.is_final():
            client.set_flow_run_state(run.id, Cancelled(message="its jobs are stopped"), force=True)
        with storage_may_be_away(logger):
            job.followers.leave(who)


@contextmanager
def _by_itself(job: RayJob) -> Iterator[None]:
    """Around what is done for one job of many: trouble with it is logged, and the others are looked after.

    The cluster has jobs of other roots too, whose storage may be closed to this process.
    """
    try:
        with storage_may_be_away(logger):
            yield
    except PitiError as error:
        logger.warning("Ray job %s is not looked after: %s", job.id, error)


def is_wanted(client: SyncPrefectClient, who: str) -> bool:
    """Whether a run was neither cancelled nor deleted, and has not failed: then a step that still goes on beside the one
    that failed goes on for nobody. The run itself asks, so it is alive: one marked Crashed, because the server was away
    and missed its heartbeats, is Running again.
    """
    run = _run(client, who)
    if run is None or _is_cancelled(run):
        return False
    if run.state is not None and run.state.is_crashed():
        client.set_flow_run_state(run.id, Running(message="the server had missed its heartbeats"), force=True)
    return run.state is None or not run.state.is_failed()


def require_wanted(who: str) -> None:
    """Raise StackError where the run `who` was cancelled or deleted, while nothing was there to end its process, or has
    failed. Returns where the server is away."""
    wanted = True
    with (
        suppress(*PREFECT_AWAY),
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(sync_client=True) as client,
    ):
        wanted = is_wanted(client, who)
    if not wanted:
        raise StackError("this run was cancelled or deleted, or has failed")


def give_up(job: RayJob, who: str) -> None:
    """Remove the follower `who`, and stop the job if no other run follows it, as far as storage tells."""
    is_followed = False
    with storage_may_be_away(logger):
        job.followers.leave(who)
    with storage_may_be_away(logger):
        is_followed = _has_live_follower(job.followers)
    if is_followed:
        logger.info("Ray job %s goes on: another run waits for it", job.id)
    else:
        _stop(job)


def _stop(job: RayJob) -> None:
    if job.stop():
        logger.info("stopped Ray job %s", job.id)


def _has_live_follower(followers: Followers) -> bool:
    """Whether any follower gives a sign within the next seconds; at once where there is none."""
    before, deadline = followers.signs(), time.monotonic() + _SILENCE_SECONDS
    while before and time.monotonic() < deadline:
        time.sleep(1.0)
        if any(before.get(who) != sign for who, sign in followers.signs().items()):
            return True
    return False


def _run(client: SyncPrefectClient, who: str) -> FlowRun | None:
    """The flow run behind a follower; None if it was deleted."""
    try:
        return client.read_flow_run(UUID(who))
    except (ObjectNotFound, ValueError):
        return None


def _is_cancelled(run: FlowRun) -> bool:
    return run.state is not None and (run.state.is_cancelled() or run.state.is_cancelling())
