"""piti/train: prepared data -> checkpoints of every stage."""

from __future__ import annotations

from typing import Any, NamedTuple

from prefect import flow, get_run_logger

from flows import steps
from flows.announcements import Announcer
from flows.cancellation import stop_jobs
from flows.cluster import patiently
from flows.parameters import ConfigName, Overrides
from flows.preflight import fit_beside_each_other, preflight
from flows.prepare import Prepared, prepare_data
from flows.turns import turn
from piti.plan import Plan


class Trained(NamedTuple):
    """Results of stage 2 and of the upsampler."""

    stage2: Any
    upsampler: Any


@flow(name="piti", on_cancellation=[stop_jobs], flow_run_name="train-{config}")
def train(config: ConfigName = "demo", overrides: Overrides = None) -> None:
    """Train pretraining (where needed), stage 1, stage 2 and the upsampler; data is prepared first where it is not."""
    plan = preflight(config, overrides)
    announcer = Announcer(plan, config, overrides)
    with turn(plan):
        train_stages(plan, prepare_data(plan), announcer)
    patiently(get_run_logger(), announcer.finish)


def train_stages(plan: Plan, data: Prepared, announcer: Announcer | None = None) -> Trained:
    """The base model's chain of stages, and the upsampler beside it where the cluster has room for both. Their results.

    `announcer` tells of checkpoints of stage 2 as they are finished.
    """
    if fit_beside_each_other(plan.config):
        upsampler = steps.train.submit(plan, "upsampler", after=[*data])
        return Trained(_train_base(plan, data, announcer), upsampler.result())
    return Trained(_train_base(plan, data, announcer), steps.train(plan, "upsampler", after=[*data]))


def _train_base(plan: Plan, data: Prepared, announcer: Announcer | None) -> Any:
    pretrained = steps.train(plan, "pretrain", after=[data.shards])
    stage1 = steps.train(plan, "stage1", after=[data.shards, pretrained])
    return steps.train(plan, "stage2", after=[data.shards, stage1], announcer=announcer)
