"""The tasks: one a step. Each is skipped (state `Cached`) where its output is already there.

`after` holds what the steps before this one returned. Prefect draws the run's graph from it.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed
from ray.job_submission import JobStatus

from flows.announcements import Announcer
from flows.cancellation import PREFECT_AWAY, WANTED_INTERVAL_SECONDS, give_up, require_wanted
from flows.cluster import Cluster, Progress, RayJob, StepError, patiently, storage_may_be_away
from flows.markdown import link_target, plain
from piti import storage
from piti.checkpoints import checkpoints_of
from piti.config import Config, Stage
from piti.errors import StackError, first_line
from piti.evaluation.evaluation_plan import EvaluationPlan
from piti.evaluation.picture_sets import PICTURES
from piti.plan import Plan, Step
from piti.stack import reports

After = Sequence[Any]
ARTIFACT_INTERVAL_SECONDS = 3.0
PREFECT_POLL_SECONDS = 5.0


class Output:
    """A step's output. A plain object, since Prefect would search dicts and dataclasses for more arrows of the
    graph."""

    def __init__(self, step: Step) -> None:
        self.uri = step.output


@task(name="shard", task_run_name="shard the dataset", cache_policy=NO_CACHE)
def shard(plan: Plan, after: After = ()) -> State | Output:
    """Dataset -> WebDataset tars and their manifest."""
    return run_step(plan.shard, plan.config, plan.goal)


@task(name="degrade", task_run_name="degrade pictures", cache_policy=NO_CACHE)
def degrade(plan: Plan, after: After = ()) -> State | Output:
    """Tars -> companion tars with low-resolution variants (BSR, L0 smoothing)."""
    if plan.degrade is None:
        return Completed(name="Skipped", message="pictures are degraded as they are read (degradation.variants is 0)")
    return run_step(plan.degrade, plan.config, plan.goal)


@task(name="train", task_run_name="train {stage}", cache_policy=NO_CACHE)
def train(plan: Plan, stage: Stage, after: After = (), announcer: Announcer | None = None) -> State | Output:
    """Tars -> checkpoints of one training stage, with its loss curve as an artifact."""
    step = plan.train(stage)
    if step is None:
        return Completed(name="Skipped", message="a pretrained base is configured")
    outcome = run_step(step, plan.config, plan.goal, announcer)
    with storage_may_be_away(get_run_logger()):
        _show_curve(step, plan.config.name)
    return outcome


@task(name="validation", task_run_name="shard the validation split", cache_policy=NO_CACHE)
def validation(plan: Plan, after: After = ()) -> State | Output:
    """The validation split -> tars: all that evaluation reads of a dataset that is not sharded here."""
    return run_step(plan.validation, plan.config)


def draw_sets(evaluation: EvaluationPlan, checkpoint_name: str, after: After = ()) -> list[Any]:
    """Every picture set of a target, a task each. One job draws all that is missing: the first such task waits for it."""
    missing = [name for name, planned in evaluation.sets.items() if not planned.is_done()]
    if missing:
        storage.remove(evaluation.sample.marker)  # of a job whose pictures were lost since, or are too few
    return [draw(evaluation, name, checkpoint_name, name in missing, after=after) for name in evaluation.sets]


@task(name="draw", task_run_name="draw {picture_set} {checkpoint_name}", cache_policy=NO_CACHE)
def draw(
    evaluation: EvaluationPlan, picture_set: str, checkpoint_name: str, is_missing: bool, after: After = ()
) -> State | Output:
    """Conditions of the validation split -> generated pictures of one set."""
    step = evaluation.sample
    if is_missing:
        run_step(step, evaluation.target.config)
        return Output(step)
    return Completed(name="Cached", message="already drawn", data=Output(step))


@task(name="score", task_run_name="score {checkpoint_name}", cache_policy=NO_CACHE)
def score(evaluation: EvaluationPlan, checkpoint_name: str, after: After = ()) -> State | Output:
    """Generated pictures -> FID, KID, LPIPS, ..."""
    return run_step(evaluation.score, evaluation.target.config)


@task(name="report", task_run_name="report {checkpoint_name}", cache_policy=NO_CACHE)
def report(evaluation: EvaluationPlan, checkpoint_name: str, after: After = ()) -> State | Output:
    """Figures and pictures -> report.html, shown where the UI shows it."""
    made = run_step(evaluation.report, evaluation.target.config)
    _show_report(evaluation.report, evaluation.target.config.name, checkpoint_name)
    return made


def _show_report(step: Step, config_name: str, checkpoint_name: str) -> None:
    """Put metrics and sample grid of an evaluation where the UI shows them."""
    result = patiently(get_run_logger(), step.require_result)
    picture = _picture(storage.join(step.output, "grid.png"), "condition, generated, ground truth")
    rows = [_metric_row(name, metric) for name, metric in result["metrics"].items()]
    heading = ["| figure | value | 95 % interval | network, resize | comparable | note |", "|---|---|---|---|---|---|"]
    table = "\n".join([*heading, *rows])
    comparable = "" if result.get("comparable") else "\n**Not all figures are comparable with published ones.**\n"
    name_shown, report_shown = plain(checkpoint_name), plain(result["report"])
    folder, _, name = step.output.rpartition("/")
    board = link_target(reports.link(folder, storage.name(result["leaderboard"])))
    end = f"Whole report: {report_shown}\n\n[All evaluations below this root]({board})"
    create_markdown_artifact(
        f"# Evaluation of {name_shown}\n\n{table}\n{comparable}\n{picture}\n\n{end}",
        key=_key(config_name, checkpoint_name, "report"),
        description=f"evaluation of {plain(result['checkpoint'])}",
    )
    link = reports.link(folder, f"{name}/{storage.name(result['report'])}")
    create_link_artifact(
        link_target(link), link_text=f"report of {name_shown}", key=_key(config_name, checkpoint_name, "report-link")
    )
    get_run_logger().info("report: %s", result["report"])


@task(name="study", task_run_name="compare the variants", cache_policy=NO_CACHE)
def study(plan: Plan, step: Step, about: dict[str, Any], after: After = ()) -> State | Output:
    """Reports of variants -> one page, with a link in the UI."""
    if step.result() is None:
        storage.write_json(step.inputs["study"], about)
    made = run_step(step, plan.config)
    page = str(step.require_result()["page"])
    folder, _, name = step.output.rpartition("/")
    link = reports.link(folder, f"{name}/{storage.name(page)}")
    create_link_artifact(link_target(link), link_text=f"study {plain(about['name'])}", key=_key("study", about["name"]))
    get_run_logger().info("study: %s", page)
    return made


def run_step(step: Step, config: Config, goal: str = "", announcer: Announcer | None = None) -> State | Output:
    """Make `step`'s output exist: find it, wait for the job that is making it, or submit one.

    A job that died without saying why (a killed driver, a lost node or head) is started again, and resumes, up to
    `cluster.max_attempts` times without progress. A cluster or storage that is away is waited for. Raises StepError with
    the job's own reason, StackError if the cluster is gone, AwayError or storage's own error if that is.

    `goal`: what the run trains (Plan.goal); empty if nothing.
    """
    logger, who = get_run_logger(), str(flow_run.id)
    if (shards := step.inputs.get("shards")) is not None:  # the step before this one made them
        storage.wait_until_there(shards)
    if patiently(logger, step.result) is not None:
        return Completed(name="Cached", message=f"already done: {step.output}", data=Output(step))
    reason, attempt, parts = "", 0, patiently(logger, partial(_whole_parts, step))
    while attempt < config.cluster.max_attempts:
        attempt += 1
        job, attached, seen = patiently(logger, lambda: _start(step, config, who, goal))
        logger.info("%s Ray job %s (%s)", "attached to" if attached else "submitted", job.id, job.page)
        status = _follow(job, step, config, who, seen, announcer)
        job.wait_for_folder()
        if patiently(logger, step.result) is not None:
            return Output(step)
        previous, reason = reason, patiently(logger, partial(_failure, job, step, status))
        before, parts = parts, patiently(logger, partial(_whole_parts, step))
        if parts != before:
            attempt = 1
        elif reason == previous:
            raise StepError(f"{reason} (twice in a row)", f"see the log above or {job.page}")
        logger.warning("attempt %d of %d: %s", attempt, config.cluster.max_attempts, reason)
    raise StepError(
        f"{reason} ({config.cluster.max_attempts} attempts)", "run again to continue from the last checkpoint"
    )


def _start(step: Step, config: Config, who: str, goal: str) -> tuple[RayJob, bool, int]:
    """The job that makes `step`'s output, whether it was there already, and how much of its log is old then."""
    job, attached = Cluster().submit_or_attach(step, config, who, goal)
    return job, attached, len(job.log_so_far()) if attached else 0


def _whole_parts(step: Step) -> list[str]:
    """What a step has finished so far: checkpoints or tars. It changes with progress."""
    if step.kind == "train":
        return checkpoints_of(step.output)
    folders = [step.output, *(uri for role, uri in step.inputs.items() if role.startswith(PICTURES))]
    return [name for folder in folders for name in storage.list_names(folder) if name.endswith(".tar")]


def _follow(
    job: RayJob, step: Step, config: Config, who: str, seen: int, announcer: Announcer | None
) -> JobStatus | None:
    description = f"{step.name} of {config.name}"
    artifact: UUID | None = None
    last: Progress = {}
    updated_seconds, asked_seconds = 0.0, time.monotonic()

    def show(force: bool = False) -> None:
        nonlocal artifact, last, updated_seconds, asked_seconds
        if not force and time.monotonic() - updated_seconds < ARTIFACT_INTERVAL_SECONDS:
            return
        updated_seconds = time.monotonic()
        if time.monotonic() - asked_seconds > WANTED_INTERVAL_SECONDS:
            asked_seconds = time.monotonic()
            _give_up_unless_wanted(job, who)
            if announcer is not None:
                announcer.look()
        progress = job.progress()
        with suppress(*PREFECT_AWAY), temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):  # shown later, then
            if artifact is None:
                key = _key(config.name, step.name, "progress")
                artifact = cast(UUID, create_progress_artifact(progress=0.0, key=key, description=description))
            if progress is not None and progress != last:
                percent = 100.0 * progress["done"] / max(progress["total"], 1e-9)
                update_progress_artifact(
                    artifact, progress=round(percent, 1), description=f"{description}: {progress['message']}"
                )
                if (picture := progress.get("picture")) and picture != last.get("picture"):
                    _show_samples(step, config.name, picture)
                last = progress

    status = job.follow(get_run_logger(), show, who, seen)
    with storage_may_be_away(get_run_logger()):
        show(force=True)
    _wait_for_prefect()
    return status


def _give_up_unless_wanted(job: RayJob, who: str) -> None:
    """As `require_wanted`; the job is given up where it raises."""
    try:
        require_wanted(who)
    except StackError:
        give_up(job, who)
        raise


def _wait_for_prefect() -> None:
    """Until the server answers, so that it learns of what comes next: task states are sent once and not asked for."""
    with get_client(sync_client=True) as client:
        while (problem := client.api_healthcheck()) is not None:
            get_run_logger().warning("the Prefect server is away (%s); waiting for it", first_line(problem))
            time.sleep(PREFECT_POLL_SECONDS)


def _failure(job: RayJob, step: Step, status: JobStatus | None) -> str:
    """Why the job ended without a result. Raises where another attempt would end the same way."""
    failure = job.failure()
    if failure is not None and not failure["retryable"]:
        raise StepError(f"{step.name} failed: {failure['reason']}")
    if status == JobStatus.STOPPED:
        raise StackError(
            f"{step.name}'s job {job.id} was stopped from outside", "run again to continue from where it was"
        )
    if failure is not None:
        return f"{step.name} failed: {failure['reason']}"
    if status is None:
        return f"the cluster lost {step.name}'s job {job.id}"
    said = job.message()
    return f"{step.name}'s job {job.id} ended as {status.value} without a result{f': {said}' if said else ''}"


def _key(*parts: str) -> str:
    """An artifact's key, which the UI shows as its name: Prefect admits a-z, 0-9 and -. The same key again is its next version."""
    return re.sub("[^a-z0-9-]+", "-", "-".join(parts).lower())


def _show_curve(step: Step, config_name: str) -> None:
    curve = _picture(storage.join(step.output, "curve.png"), f"loss curve of {step.name}")
    if curve:
        key = _key(config_name, step.name, "loss-curve")
        create_markdown_artifact(f"# {step.name}\n\n{curve}", key=key, description=f"loss curve of {step.name}")


def _show_samples(step: Step, config_name: str, picture: str) -> None:
    """Pictures that a training run draws now and then; the artifact's older versions are its history, and only its."""
    title = f"{step.name} of {config_name}, {storage.name(picture).removesuffix('.png')}"
    if markdown := _picture(picture, title):
        create_markdown_artifact(
            f"# {plain(title)}\n\n{markdown}",
            key=_key(config_name, step.name, "samples", step.fingerprint[:12]),
            description=f"pictures that {step.name} of {config_name} draws while it trains",
        )


def _picture(uri: str, title: str) -> str:
    """Markdown for a PNG in storage, carried inside the text; empty if there is none."""
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError:
        return ""
    return f"![{plain(title)}](data:image/png;base64,{base64.b64encode(content).decode()})"


def _metric_row(name: str, metric: dict[str, Any]) -> str:
    def number(key: str) -> str:
        return f"{metric[key]:.4g}"

    interval = "none" if metric["low"] is None else f"{number('low')} .. {number('high')}"
    network = metric.get("network") or {"name": "none", "resize": "none", "comparable": True, "weights_sha256": ""}
    measured = plain(f"{network['name']}, {network['resize']}, {network['weights_sha256'][:12]}")
    comparable = "yes" if network["comparable"] else "only with itself"
    return f"| {plain(name)} | {number('value')} | {interval} | {measured} | {comparable} | {plain(metric.get('note', ''))} |"
