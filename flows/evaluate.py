"""piti/evaluate: checkpoints -> pictures -> metrics -> report. Shards, degrades and trains nothing."""

from __future__ import annotations

import logging

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows import steps
from flows.cancellation import stop_jobs
from flows.cluster import StepError
from flows.parameters import Checkpoints, ConfigName, Overrides
from flows.preflight import preflight
from piti import storage
from piti.checkpoints import checkpoints_of
from piti.config.section import require_known_scheme
from piti.errors import CheckpointError, DataError, PitiError
from piti.plan import Plan, Step

logger = logging.getLogger("piti")


@flow(name="piti", on_cancellation=[stop_jobs], flow_run_name="evaluate-{config}")
def evaluate(
    config: ConfigName = "demo", overrides: Overrides = None, checkpoints: Checkpoints = "new"
) -> State | list[str]:
    """Evaluate base checkpoints; by default only those that have no report yet. Returns the reports' URIs."""
    plan = preflight(config, overrides, training=False)
    chosen = choose_checkpoints(plan, checkpoints)
    if not chosen:
        message = f"nothing new: every checkpoint in {plan.stage2.output} has its report"
        get_run_logger().info(message)
        return Completed(message=message)
    return evaluate_checkpoints(plan, chosen)


def choose_checkpoints(plan: Plan, wanted: str | list[str]) -> list[str]:
    """URIs of base checkpoints. Raises CheckpointError for one that does not exist, or if there are none at all."""
    if isinstance(wanted, list):
        for uri in wanted:
            _require_supported(uri)
            evaluation_steps(plan, uri)  # raises for what is no whole checkpoint
        return [storage.absolute(uri) for uri in wanted]
    found = checkpoints_of(plan.stage2.output)
    if not found:
        raise CheckpointError(
            f"config {plan.config.name} has no stage 2 checkpoint yet (looked in {plan.stage2.output})",
            "run piti/full-train or piti/train with the same config first",
        )
    if wanted == "all":
        return found
    if wanted == "latest":
        return found[-1:]
    return [uri for uri in found if _is_new(plan, uri)]


def _is_new(plan: Plan, uri: str) -> bool:
    """Whether a checkpoint has no report yet. One that was removed since it was found is not, and the log says so."""
    upsamplers = _upsamplers(plan)
    try:
        sample = plan.sample(uri, upsamplers[-1])
    except CheckpointError as error:
        if storage.exists(storage.join(uri, storage.MARKER)):
            raise
        logger.warning("left out: %s", error)
        return False
    return plan.score(sample).result() is None


def _require_supported(uri: str) -> None:
    try:
        require_known_scheme(uri)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {uri!r}: {error}", "copy it to one of these first") from error


def evaluation_steps(plan: Plan, checkpoint: str) -> tuple[Step, Step]:
    """Sampling and scoring of one base checkpoint, with the newest upsampler of the same config."""
    sample = plan.sample(storage.absolute(checkpoint), _upsamplers(plan)[-1])
    return sample, plan.score(sample)


def _upsamplers(plan: Plan) -> list[str]:
    upsamplers = checkpoints_of(plan.upsampler.output)
    if not upsamplers:
        raise CheckpointError(
            f"config {plan.config.name} has no upsampler checkpoint yet (looked in {plan.upsampler.output})",
            "run piti/train first",
        )
    return upsamplers


def evaluate_checkpoints(plan: Plan, checkpoints: list[str], after: steps.After = ()) -> list[str]:
    """Sample, score and report each. Returns the reports' URIs.

    A checkpoint that cannot be evaluated does not end the others: the log says why. Raises its error if it was the only
    one, or the last of which none could be. The run's table artifact `reports` lists the reports too: `piti run` reads
    it, since a flow's result stays in its process.
    """
    rows = []
    failure: PitiError | None = None
    for checkpoint in checkpoints:
        try:
            rows.append({"checkpoint": checkpoint, "report": _evaluate_checkpoint(plan, checkpoint, after)})
        except (CheckpointError, DataError, StepError) as error:
            logger.warning("%s is not evaluated: %s", checkpoint, error)
            failure = error
    if failure is not None and not rows:
        raise failure
    create_table_artifact(rows, key="reports", description=f"reports of {plan.config.name}")
    return [row["report"] for row in rows]


def _evaluate_checkpoint(plan: Plan, checkpoint: str, after: steps.After) -> str:
    name = storage.name(checkpoint)
    sample, score = evaluation_steps(plan, checkpoint)
    pictures = steps.sample(plan, sample, name, after=after)
    scores = steps.score(plan, score, name, after=[pictures])
    return steps.report(score, plan.config.name, name, after=[scores])
