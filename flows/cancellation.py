"""What happens when a flow run is cancelled: its Ray jobs are stopped, so that their resources are free again."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    ArtifactFilterType,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow

from flows.cluster import Cluster

logger = logging.getLogger("piti")


def stop_jobs(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """Stop every job that this flow run followed, unless another live flow run follows it too.

    The hook runs in the serving process, on a freshly loaded flow: all it has is the run's id. The progress
    artifacts of a run carry the ids of its jobs as keys.
    """
    with get_client(sync_client=True) as client:
        keys = _progress_keys(client, flow_run.id)
        mine = [key for key in keys if not _followed_by_others(client, key, flow_run.id)]
    cluster = Cluster()
    for key in mine:
        if cluster.job(key).stop():
            logger.info("stopped Ray job %s", key)


def _progress_keys(client: SyncPrefectClient, flow_run_id: UUID) -> list[str]:
    wanted = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]), type=ArtifactFilterType(any_=["progress"])
    )
    artifacts = client.read_artifacts(artifact_filter=wanted, limit=200)
    return sorted({artifact.key for artifact in artifacts if artifact.key and artifact.key.startswith("piti-")})


def _followed_by_others(client: SyncPrefectClient, key: str, flow_run_id: UUID) -> bool:
    artifacts = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])), limit=200)
    others = {artifact.flow_run_id for artifact in artifacts if artifact.flow_run_id} - {flow_run_id}
    states = (client.read_flow_run(other).state for other in others)
    return any(state is not None and state.is_running() for state in states)
