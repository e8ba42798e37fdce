"""piti/full-train: all steps from the dataset to the report. Finished steps are skipped."""

from __future__ import annotations

from typing import get_args

from prefect import flow, get_run_logger

from flows.announcements import Announcer
from flows.cancellation import stop_jobs
from flows.cluster import patiently
from flows.evaluate import choose_and_evaluate
from flows.parameters import ConfigName, Overrides, StartFrom, StepName
from flows.preflight import preflight
from flows.prepare import prepare_data
from flows.train import train_stages
from flows.turns import turn
from piti.errors import PitiError, PreflightError
from piti.plan import Plan, Step


@flow(name="piti", on_cancellation=[stop_jobs], flow_run_name="full-train-{config}")
def full_train(config: ConfigName = "demo", overrides: Overrides = None, start_from: StartFrom = None) -> list[str]:
    """Prepare data, train every stage, evaluate the result. Returns the reports' URIs."""
    plan = preflight(config, overrides)
    if start_from is not None:
        require_done(plan, start_from)
    announcer = Announcer(plan, config, overrides)
    with turn(plan):
        trained = train_stages(plan, prepare_data(plan), announcer)
    _, reports = choose_and_evaluate(plan, "latest", after=[*trained])
    patiently(get_run_logger(), announcer.finish)  # the last checkpoint has its report
    return reports


def require_done(plan: Plan, start_from: StepName) -> None:
    """Raise PreflightError that names every step before `start_from` whose output is not there."""
    order = get_args(StepName)
    before = order[: order.index(start_from)]
    if start_from == "upsampler":  # its chain is its own: data, then the upsampler
        before = ("shard", "degrade")
    known: dict[str, Step] = {step.name: step for step in [*plan.preparation, *plan.training]}
    missing = [name for name in before if name in known and known[name].result() is None]
    if missing:
        raise PreflightError(
            [
                PitiError(
                    f"start_from is {start_from}, but {name} is not done ({known[name].output})", f"start from {name}"
                )
                for name in missing
            ]
        )
