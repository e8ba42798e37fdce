"""`piti/full-train`, then what is asked of its output, on a real Prefect server and a real Ray cluster."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from piti import storage
from piti.config.presets import load_config
from piti.plan import Plan
from tests.e2e.runs import FlowRun, Prefect
from tests.e2e.tiny import tiny_overrides
from tests.running_stack import RunningStack

pytestmark = pytest.mark.integration

HEAVY = {"shard the dataset", "degrade pictures", "train pretrain", "train stage1", "train stage2", "train upsampler"}


@dataclass(frozen=True)
class Asked:
    """Runs over the output of `finished`, all started at once: they do not wait for one another."""

    again: FlowRun
    nothing_new: FlowRun
    other_guidance: CompletedProcess[str]


@pytest.fixture(scope="module")
def asked(finished: FlowRun, prefect: Prefect, root: Path, stack: RunningStack) -> Asked:
    overrides = tiny_overrides(root)
    again = prefect.start("full-train", config="demo-sketch", overrides=overrides)
    nothing_new = prefect.start("evaluate", config="demo-sketch", overrides=overrides)
    other = json.dumps(tiny_overrides(root, sampling__guidance_scale=2.5))
    told = stack.piti("run", "evaluate", "--config", "demo-sketch", "--param", f"overrides={other}")
    return Asked(prefect.wait(again), prefect.wait(nothing_new), told)


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
    assert sum(key.endswith("-loss-curve") for _, key in kinds) == 4
    (page,) = [found for found in prefect.artifacts(finished.id) if (found["key"] or "").endswith("-report")]
    assert "data:image/png;base64," in page["data"]
    assert "| fd_efficientnet_lite0 |" in page["data"]
    (shown,) = [found for found in prefect.artifacts(finished.id) if (found["key"] or "").endswith("-report-link")]
    (address,) = re.findall(r"http://127[^)]*", shown["data"])
    assert prefect.page(address) == (report / "report.html").read_bytes(), "what the link in the UI opens"


def test_the_graph_of_the_run_follows_the_data(finished: FlowRun, prefect: Prefect) -> None:
    nodes = {node["id"]: node for _, node in prefect.request("GET", f"/flow_runs/{finished.id}/graph-v2")["nodes"]}
    short = {key: node["label"].removeprefix("train ").split()[0] for key, node in nodes.items()}
    arrows = {(short[parent["id"]], short[key]) for key, node in nodes.items() for parent in node["parents"]}
    assert arrows == {
        ("shard", "degrade"), ("shard", "pretrain"), ("shard", "stage1"), ("shard", "stage2"), ("shard", "upsampler"),
        ("degrade", "upsampler"), ("pretrain", "stage1"), ("stage1", "stage2"), ("stage2", "sample"),
        ("upsampler", "sample"), ("sample", "score"), ("score", "report"),
    }  # fmt: skip


def test_again_does_nothing_twice(asked: Asked, root: Path) -> None:
    run = asked.again
    assert run.state == "COMPLETED", run.message
    assert {run.tasks[name] for name in HEAVY} == {"Cached"}
    assert {state for name, state in run.tasks.items() if name.startswith(("sample", "score"))} == {"Cached"}
    jobs = storage.list_names(str(root / "jobs"))
    assert len(jobs) == len(HEAVY) + 2 + 2, "sample and score ran for two guidances, everything else once"


def test_evaluate_with_nothing_new_says_so(asked: Asked) -> None:
    run = asked.nothing_new
    assert run.state == "COMPLETED"
    assert "nothing new" in run.message
    assert [name for name in run.tasks if not name.startswith("preflight")] == []


def test_evaluate_with_other_guidance_samples_and_scores_and_piti_run_names_the_report(
    asked: Asked, prefect: Prefect, root: Path
) -> None:
    told = asked.other_guidance
    assert told.returncode == 0, told.stderr
    run = prefect.inspect(re.findall(r"flow-run/([0-9a-f-]{36})", told.stdout)[0])
    assert {name.split()[0] for name in run.tasks} == {"preflight", "sample", "score", "report"}
    reports = [line.removeprefix("report:").strip() for line in told.stdout.splitlines() if line.startswith("report:")]
    assert len(reports) == 1
    assert Path(reports[0]).read_text().startswith("<!doctype html>")
    assert len(list((root / "reports").iterdir())) == 2


def test_results_name_code_and_duration(finished: FlowRun, root: Path) -> None:
    plan = Plan(load_config("demo-sketch", tiny_overrides(root)))
    for step in [*plan.preparation, *plan.training]:
        result = step.require_result()
        assert result["fingerprint"] == step.fingerprint
        assert result["duration_seconds"] > 0
        assert result["code"]["torch"].startswith("2.13.0")
    assert not [name for name in storage.list_names(str(root)) if name.endswith(".tmp")]
