"""piti/study: variants of one config -> every variant's report -> one page that compares them."""

from __future__ import annotations

import json
import shlex
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from flows import steps
from flows.cancellation import stop_jobs
from flows.evaluate import choose_and_evaluate
from flows.parameters import AnotherConfig, Overrides, StudyName
from flows.preflight import preflight
from flows.prepare import prepare_data
from flows.train import train_stages
from flows.turns import turn
from piti import storage
from piti.config.study import StudiedRun, StudyConfig, position_on, read_study
from piti.errors import PitiError, PreflightError
from piti.evaluation.evaluation_plan import EvaluationPlan
from piti.plan import Plan, Step
from piti.settings import settings as machine_settings


@flow(name="piti", on_cancellation=[stop_jobs], flow_run_name="study-{study}")
def study(study: StudyName, config: AnotherConfig = None, overrides: Overrides = None) -> str:
    """Train and evaluate every variant of a study, each shared step once, and compare them on one page. Returns its URI."""
    asked = read_study(study, machine_settings().allowed_folders())
    plans = plan_variants(asked, config, overrides)
    evaluations = [evaluate_variant(plan, asked) for plan in plans]
    command = shlex.join(
        ["prefect", "deployment", "run", "piti/study", "-p", f"study={study}"]
        + (["-p", f"config={config}"] if config else [])
        + (["-p", f"overrides={json.dumps(overrides)}"] if overrides else [])
    )
    plan, step, about = study_step(asked, plans, evaluations, command)
    steps.study(plan, step, about)
    page = str(step.require_result()["page"])
    create_table_artifact([{"study": asked.name, "report": page}], key="reports", description=f"study {asked.name}")
    return page


def plan_variants(asked: StudyConfig, config: str | None, overrides: Overrides) -> list[Plan]:
    """A plan for each run, all looked at before any begins. Raises PreflightError with the problems of all."""
    plans, problems = [], []
    for variant, _, changed in asked.runs():
        try:
            plans.append(
                preflight(config or asked.config, {**changed, **(overrides or {})}, training=asked.checkpoint is None)
            )
        except PreflightError as error:
            problems += [PitiError(f"variant {variant.name}: {problem}") for problem in error.problems]
    if problems:
        raise PreflightError(problems)
    return plans


def evaluate_variant(plan: Plan, asked: StudyConfig) -> EvaluationPlan:
    """Train what is not trained yet, unless the study names a checkpoint, and evaluate."""
    if asked.checkpoint is None:
        with turn(plan):
            trained = train_stages(plan, prepare_data(plan))
        targets, _ = choose_and_evaluate(plan, "latest", after=[*trained])
    else:
        targets, _ = choose_and_evaluate(plan, [asked.checkpoint], asked.upsampler)
    return EvaluationPlan(plan, targets[0])


def study_step(
    asked: StudyConfig, plans: list[Plan], evaluations: list[EvaluationPlan], command: str
) -> tuple[Plan, Step, dict[str, Any]]:
    """The step that writes the page, under the baseline's plan, and what its job is told (study.json)."""
    runs: list[StudiedRun] = []
    for (variant, seed, _), plan, evaluation in zip(asked.runs(), plans, evaluations, strict=True):
        runs.append(
            {
                "variant": variant.name, "seed": seed, "overrides": {**variant.overrides},
                "position": position_on(plan.config, asked.axis), "report": evaluation.report.output,
                "pictures": evaluation.sets["final"].folder, "sample": evaluation.sample.output,
            }
        )  # fmt: skip
    about = {
        "name": asked.name, "question": asked.question, "baseline": asked.compared_to, "axis": asked.axis,
        "runs": runs, "command": command,
    }  # fmt: skip
    first = next(number for number, run in enumerate(runs) if run["variant"] == asked.compared_to)
    step = plans[first].step("study", "study", "reports", about, dict(evaluations[first].report.inputs))
    get_run_logger().info("%d runs of %d variants are compared", len(runs), len(asked.variants))
    step.inputs["study"] = storage.join(step.output, "variants.json")
    return plans[first], step, about
