"""`prefect deployment run piti/full-train`, then `piti/evaluate`, on a real Prefect server and a real Ray cluster."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from piti import storage
from piti.config.presets import load_config
from piti.plan import Plan
from tests.e2e.runs import FlowRun, Prefect
from tests.e2e.tiny import tiny_overrides
from tests.running_stack import RunningStack

pytestmark = pytest.mark.integration

HEAVY = {"shard the dataset", "degrade pictures", "train pretrain", "train stage1", "train stage2", "train upsampler"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("full-train")


@pytest.fixture(scope="module")
def prefect(stack: RunningStack) -> Prefect:
    return Prefect(stack.environment)


@pytest.fixture(scope="module")
def finished(prefect: Prefect, root: Path) -> FlowRun:
    """One full run that the tests of this file look at."""
    return prefect.run("full-train", config="demo-sketch", overrides=tiny_overrides(root))


def test_every_step_ran_and_left_a_report(finished: FlowRun, root: Path, prefect: Prefect) -> None:
    assert finished.state == "COMPLETED", finished.message
    assert {finished.tasks[name] for name in HEAVY} == {"Completed"}
    (report,) = (root / "reports").iterdir()
    metrics = json.loads((report / "metrics.json").read_text())
    assert {f"{kind}_efficientnet_lite0" for kind in ("fd", "kd", "pd", "pd_diversity")} == set(metrics["metrics"])
    assert metrics["num_samples"] == 8
    assert {"step", "checkpoint", "provenance"} <= set(metrics)
    assert "cannot be compared with published" in (report / "report.html").read_text()
    kinds = [(artifact["type"], artifact["key"] or "") for artifact in prefect.artifacts(finished.id)]
    assert sum(kind == "progress" for kind, _ in kinds) == 8
    assert sum(key.startswith("curve-") for _, key in kinds) == 4
    (page,) = [found for found in prefect.artifacts(finished.id) if (found["key"] or "").startswith("report-")]
    assert "data:image/png;base64," in page["data"]
    assert "| fd_efficientnet_lite0 |" in page["data"]
    assert any(key.startswith("link-") for _, key in kinds)


def test_again_does_nothing_twice(finished: FlowRun, root: Path, prefect: Prefect) -> None:
    before = time.monotonic()
    run = prefect.run("full-train", config="demo-sketch", overrides=tiny_overrides(root))
    assert run.state == "COMPLETED", run.message
    assert {run.tasks[name] for name in HEAVY} == {"Cached"}
    assert {state for name, state in run.tasks.items() if name.startswith(("sample", "score"))} == {"Cached"}
    assert time.monotonic() - before < 60


def test_evaluate_with_nothing_new_says_so(finished: FlowRun, root: Path, prefect: Prefect) -> None:
    run = prefect.run("evaluate", config="demo-sketch", overrides=tiny_overrides(root))
    assert run.state == "COMPLETED"
    assert "nothing new" in run.message
    assert [name for name in run.tasks if not name.startswith("preflight")] == []


def test_evaluate_with_other_guidance_only_samples_and_scores(finished: FlowRun, root: Path, prefect: Prefect) -> None:
    run = prefect.run("evaluate", config="demo-sketch", overrides=tiny_overrides(root, sampling__guidance_scale=2.5))
    assert run.state == "COMPLETED", run.message
    assert {name.split()[0] for name in run.tasks} == {"preflight", "sample", "score", "report"}
    assert len(list((root / "reports").iterdir())) == 2


def test_piti_run_tells_where_the_report_is(finished: FlowRun, root: Path, stack: RunningStack) -> None:
    told = stack.piti(
        "run", "evaluate", "--param", f"overrides={json.dumps(tiny_overrides(root))}", "--param", "checkpoints=latest"
    )
    assert told.returncode == 0, told.stderr
    reports = [line.removeprefix("report:").strip() for line in told.stdout.splitlines() if line.startswith("report:")]
    assert len(reports) == 1
    assert Path(reports[0]).read_text().startswith("<!doctype html>")


def test_evaluating_an_unknown_checkpoint_fails_in_one_line(finished: FlowRun, root: Path, prefect: Prefect) -> None:
    run = prefect.run(
        "evaluate", config="demo-sketch", overrides=tiny_overrides(root), checkpoints=["/nowhere/step-00000001"]
    )
    assert run.state == "FAILED"
    assert "/nowhere/step-00000001 is no whole checkpoint" in run.message


def test_results_name_code_and_duration(finished: FlowRun, root: Path) -> None:
    plan = Plan(load_config("demo-sketch", tiny_overrides(root)))
    for step in [*plan.preparation, *plan.training]:
        result = step.require_result()
        assert result["fingerprint"] == step.fingerprint
        assert result["duration_seconds"] > 0
        assert result["code"]["torch"].startswith("2.13.0")
    assert not [name for name in storage.list_names(str(root)) if name.endswith(".tmp")]
