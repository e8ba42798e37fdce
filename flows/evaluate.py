"""piti/evaluate: any pair of networks -> pictures -> figures -> report. Degrades and trains nothing."""

from __future__ import annotations

import logging

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows import steps
from flows.cancellation import stop_jobs
from flows.parameters import Checkpoints, ConfigName, Overrides, Upsampler
from flows.preflight import preflight
from piti import storage
from piti.checkpoints import Claims, checkpoints_of
from piti.config import WeightsRef
from piti.errors import CheckpointError, PitiError, StackError
from piti.evaluation.evaluation_plan import EvaluationPlan
from piti.evaluation.targets import Network, Target, finished_bases, make_target
from piti.plan import Plan

logger = logging.getLogger("piti")


@flow(name="piti", on_cancellation=[stop_jobs], flow_run_name="evaluate-{config}")
def evaluate(
    config: ConfigName = "demo",
    overrides: Overrides = None,
    checkpoints: Checkpoints = "new",
    upsampler: Upsampler = None,
) -> State | list[str]:
    """Evaluate base networks, each with its upsampler; by default those that have no report yet. Returns the reports' URIs."""
    plan = preflight(config, overrides, training=False)
    chosen, reports = choose_and_evaluate(plan, checkpoints, upsampler)
    if not chosen:
        message = (
            f"nothing new: every finished checkpoint in {plan.config.root}/runs has its report, or the log says why not"
        )
        get_run_logger().info(message)
        return Completed(message=message)
    return reports


def choose_and_evaluate(
    plan: Plan, wanted: str | list[str], upsampler: str | None = None, after: steps.After = ()
) -> tuple[list[Target], list[str]]:
    """The chosen targets, and the reports' URIs. Training deletes no checkpoint that waits for its turn."""
    with Claims(str(flow_run.id)) as claims:
        targets = choose_targets(plan, wanted, claims, upsampler)
        return targets, evaluate_targets(plan, targets, claims, after) if targets else []


def choose_targets(plan: Plan, wanted: str | list[str], claims: Claims, upsampler: str | None = None) -> list[Target]:
    """What to evaluate; each is claimed.

    Raises CheckpointError for what was asked for by name and cannot be evaluated, or if there is nothing at all.

    `new`: every finished stage 2 checkpoint of every run under the root that has no report for this evaluation, those
    that disappear or cannot be evaluated left out with a word. `latest`, `all`: of this config.
    """
    if isinstance(wanted, list):
        targets = [_claimed(make_target(plan, uri, upsampler), claims) for uri in wanted]
        for target in targets:
            _check_files_fit(target)
        return targets
    if wanted == "new":
        return _new_targets(plan, claims, upsampler)
    found = checkpoints_of(plan.stage2.output)
    if not found:
        raise _no_checkpoint(plan, plan.stage2.output)
    uris = found[-1:] if wanted == "latest" else found
    return [_claimed(make_target(plan, uri, upsampler), claims) for uri in uris]


def _claimed(target: Target, claims: Claims) -> Target:
    claims.add(*target.uris)
    return target


def _new_targets(plan: Plan, claims: Claims, upsampler: str | None) -> list[Target]:
    targets: list[Target] = []
    num_reported, failure = 0, None
    for uri in finished_bases(plan.config.root):
        try:
            target = make_target(plan, uri, upsampler)
            if EvaluationPlan(plan, target).report.result() is None:
                targets.append(_claimed(target, claims))
            else:
                num_reported += 1
        except PitiError as error:
            logger.warning("%s is left out: %s", uri, error)
            failure = error
    if not targets and not num_reported:
        raise failure or _no_checkpoint(plan, storage.join(plan.config.root, "runs"))
    return targets


def _no_checkpoint(plan: Plan, place: str) -> CheckpointError:
    return CheckpointError(
        f"config {plan.config.name} has no stage 2 checkpoint yet (looked in {place})",
        "run piti/full-train or piti/train with the same config first, or name checkpoints or files of weights",
    )


def _check_files_fit(target: Target) -> None:
    """Raise CheckpointError where a file on this machine does not fit the config: found in seconds, before any job."""
    networks: tuple[tuple[str, Network], ...] = (("base", target.base), ("upsampler", target.upsampler))
    for name, network in networks:
        if network.checkpoint is None and storage.is_local(network.uri):
            from piti.models.pretrained import check_pretrained  # imports torch, which no other target needs

            check_pretrained(getattr(target.config.models, name), WeightsRef(path=network.uri), f"the {name} network")


def evaluate_targets(plan: Plan, targets: list[Target], claims: Claims, after: steps.After = ()) -> list[str]:
    """Draw, score and report each. Returns the reports' URIs.

    A target that cannot be evaluated does not end the others: the log says why. Raises its error if it was the only
    one, or the last of which none could be. The run's table artifact `reports` lists the reports too: `piti run` reads
    it, since a flow's result stays in its process.
    """
    rows = []
    failure: PitiError | None = None
    if plan.conditions.result() is None:
        after = [*after, steps.validation(plan, after=after)]
    for target in targets:
        claims.renew()
        try:
            report = evaluate_target(EvaluationPlan(plan, target), after)
            rows.append({"checkpoint": target.base.uri, "report": report})
        except StackError:  # no other could be evaluated either
            raise
        except PitiError as error:
            logger.warning("%s is not evaluated: %s", target.base.uri, error)
            failure = error
    if failure is not None and not rows:
        raise failure
    create_table_artifact(rows, key="reports", description=f"reports of {plan.config.name}")
    return [row["report"] for row in rows]


def evaluate_target(evaluation: EvaluationPlan, after: steps.After = ()) -> str:
    """The steps of one target, in order: picture sets, figures, report. The report's URI."""
    name = evaluation.target.name
    pictures = steps.draw_sets(evaluation, name, after)
    scores = steps.score(evaluation, name, after=pictures)
    steps.report(evaluation, name, after=[scores])
    return str(evaluation.report.require_result()["report"])
