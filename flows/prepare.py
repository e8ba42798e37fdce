"""piti/prepare: dataset -> tars -> degraded companion tars."""

from __future__ import annotations

from prefect import flow

from flows import steps
from flows.cancellation import stop_jobs
from flows.parameters import ConfigName, Overrides
from flows.preflight import preflight
from piti.plan import Plan


@flow(name="piti", on_cancellation=[stop_jobs], flow_run_name="prepare-{config}")
def prepare(config: ConfigName = "demo", overrides: Overrides = None) -> None:
    """Shard the dataset and precompute the degradations."""
    prepare_data(preflight(config, overrides))


def prepare_data(plan: Plan) -> None:
    """Both data steps, in order."""
    steps.shard(plan)
    steps.degrade(plan)
