"""`piti/full-train`, then what is asked of its output, on a real Prefect server and a real Ray cluster."""

from __future__ import annotations

import json
import re
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
def asked(finished: FlowRun, prefect: Prefect, root: Path) -> dict[str, FlowRun]:
    """Runs over the output of `finished`, all started at once: they do not wait for one another."""
    overrides = tiny_overrides(root)
    started = {
        "again": prefect.start("full-train", config="demo-sketch", overrides=overrides),
        "nothing new": prefect.start("evaluate", config="demo-sketch", overrides=overrides),
        "other guidance": prefect.start(
            "evaluate", config="demo-sketch", overrides=tiny_overrides(root, sampling__guidance_scale=2.5)
        ),
        "unknown": prefect.start(
            "evaluate", config="demo-sketch", overrides=overrides, checkpoints=["/nowhere/step-00000001"]
        ),
        "refused": prefect.start("train", config="demo-sketch", overrides=IMPOSSIBLE | {"root": str(root / "refused")}),
    }
    return {name: prefect.wait(flow_run) for name, flow_run in started.items()}


IMPOSSIBLE = {
    "cluster.num_workers": 8,
    "sampling.base_respacing": "fast",
    "data.source": {"kind": "paired", "images": "/nowhere"},
}


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


def test_again_does_nothing_twice(asked: dict[str, FlowRun], root: Path) -> None:
    run = asked["again"]
    assert run.state == "COMPLETED", run.message
    assert {run.tasks[name] for name in HEAVY} == {"Cached"}
    assert {state for name, state in run.tasks.items() if name.startswith(("sample", "score"))} == {"Cached"}
    jobs = storage.list_names(str(root / "jobs"))
    assert len(jobs) == len(HEAVY) + 2 + 2, "sample and score ran for two guidances, everything else once"


def test_evaluate_with_nothing_new_says_so(asked: dict[str, FlowRun]) -> None:
    run = asked["nothing new"]
    assert run.state == "COMPLETED"
    assert "nothing new" in run.message
    assert [name for name in run.tasks if not name.startswith("preflight")] == []


def test_evaluate_with_other_guidance_only_samples_and_scores(asked: dict[str, FlowRun], root: Path) -> None:
    run = asked["other guidance"]
    assert run.state == "COMPLETED", run.message
    assert {name.split()[0] for name in run.tasks} == {"preflight", "sample", "score", "report"}
    assert len(list((root / "reports").iterdir())) == 2


def test_evaluating_an_unknown_checkpoint_fails_in_one_line(asked: dict[str, FlowRun]) -> None:
    run = asked["unknown"]
    assert run.state == "FAILED"
    assert "/nowhere/step-00000001 is not a finished checkpoint" in run.message


def test_bad_input_is_one_clear_line_with_everything_that_is_wrong(asked: dict[str, FlowRun], root: Path) -> None:
    """Each problem by itself, and those that a config's form has: tests/unit/flows/test_preflight.py."""
    run = asked["refused"]
    assert run.state == "FAILED"
    for part in ("preflight found", "/nowhere", "cannot read the respacing 'fast'", "training wants 8 CPUs"):
        assert part in run.message
    assert "\n" not in run.message
    assert not (root / "refused").exists(), "nothing half-written is left behind"


def test_piti_run_tells_where_the_report_is(finished: FlowRun, root: Path, stack: RunningStack) -> None:
    told = stack.piti(
        "run", "evaluate", "--config", "demo-sketch",
        "--param", f"overrides={json.dumps(tiny_overrides(root))}", "--param", "checkpoints=latest",
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    reports = [line.removeprefix("report:").strip() for line in told.stdout.splitlines() if line.startswith("report:")]
    assert len(reports) == 1
    assert Path(reports[0]).read_text().startswith("<!doctype html>")


def test_results_name_code_and_duration(finished: FlowRun, root: Path) -> None:
    plan = Plan(load_config("demo-sketch", tiny_overrides(root)))
    for step in [*plan.preparation, *plan.training]:
        result = step.require_result()
        assert result["fingerprint"] == step.fingerprint
        assert result["duration_seconds"] > 0
        assert result["code"]["torch"].startswith("2.13.0")
    assert not [name for name in storage.list_names(str(root)) if name.endswith(".tmp")]
