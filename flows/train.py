"""piti/train: prepared data -> checkpoints of every stage."""

from __future__ import annotations

from prefect import flow

from flows import steps
from flows.cancellation import stop_jobs
from flows.parameters import ConfigName, Overrides
from flows.preflight import fit_beside_each_other, preflight
from flows.prepare import prepare_data
from piti.plan import Plan


@flow(name="piti", on_cancellation=[stop_jobs], flow_run_name="train-{config}")
def train(config: ConfigName = "demo", overrides: Overrides = None) -> None:
    """Train pretraining (where needed), stage 1, stage 2 and the upsampler; data is prepared first where it is not."""
    plan = preflight(config, overrides)
    prepare_data(plan)
    train_stages(plan)


def train_stages(plan: Plan) -> None:
    """The base model's chain of stages, and the upsampler beside it where the cluster has room for both."""
    if fit_beside_each_other(plan.config):
        upsampler = steps.train.submit(plan, "upsampler")
        _train_base(plan)
        upsampler.result()
    else:
        _train_base(plan)
        steps.train(plan, "upsampler")


def _train_base(plan: Plan) -> None:
    steps.train(plan, "pretrain")
    steps.train(plan, "stage1")
    steps.train(plan, "stage2")
