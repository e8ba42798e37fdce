"""piti/prepare: dataset -> tars -> degraded companion tars."""

from __future__ import annotations

from typing import Any, NamedTuple

from prefect import flow

from flows import steps
from flows.cancellation import stop_jobs
from flows.parameters import ConfigName, Overrides
from flows.preflight import preflight
from piti.plan import Plan


class Prepared(NamedTuple):
    """Results of the data steps; `degraded` is None where pictures are degraded as they are read."""

    shards: Any
    degraded: Any


@flow(name="piti", on_cancellation=[stop_jobs], flow_run_name="prepare-{config}")
def prepare(config: ConfigName = "demo", overrides: Overrides = None) -> None:
    """Shard the dataset and precompute the degradations."""
    prepare_data(preflight(config, overrides))


def prepare_data(plan: Plan) -> Prepared:
    """Run both data steps in order and return their results."""
    shards = steps.shard(plan)
    return Prepared(shards, steps.degrade(plan, after=[shards]))
