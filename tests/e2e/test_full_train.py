"""`piti/full-train`, then what is asked of its output, on a real Prefect server and a real Ray cluster."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage.data import astronaut

from piti import storage
from piti.checkpoints import EMA_FILE
from piti.config.presets import load_config
from piti.models import build_model
from piti.models.pretrained import export_piti
from piti.plan import Plan
from tests.e2e.runs import FlowRun, Prefect, wait_for
from tests.e2e.tiny import tiny_overrides
from tests.running_stack import RunningStack

pytestmark = pytest.mark.integration

HEAVY = {"shard the dataset", "degrade pictures", "train pretrain", "train stage1", "train stage2", "train upsampler"}


@dataclass(frozen=True)
class Asked:
    """Runs over the output of `finished`, started at once, for they do not wait for one another."""

    again: FlowRun
    newcomer: FlowRun
    imported: FlowRun
    triggered: FlowRun
    study: FlowRun
    other_guidance: CompletedProcess[str]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Parameters of an evaluation on a machine that has files in the published layout and validation pictures, no more."""
    folder = tmp_path_factory.mktemp("imported")
    (folder / "pictures").mkdir()
    for number, picture in enumerate(np.split(astronaut()[:512, :512], 8)):
        Image.fromarray(picture).save(folder / "pictures" / f"{number}.png")
    source = {"kind": "paired", "images": "/nowhere", "validation_images": str(folder / "pictures")}
    overrides = tiny_overrides(folder / "root", data__source=source, cluster__num_workers=8)
    for name in ("data.source.train_crops", "data.source.validation_crops"):
        overrides.pop(name)
    models = load_config("demo-sketch", overrides).models
    for name in ("base", "upsampler"):
        export_piti(build_model(getattr(models, name)), str(folder / f"{name}.pt"))
    return {
        "overrides": overrides, "checkpoints": [str(folder / "base.pt")], "upsampler": str(folder / "upsampler.pt"),
    }  # fmt: skip


def add_checkpoint_of_another_run(root: Path) -> str:
    """As if another config had trained: the finished stage 2 with averaged weights that differ a little."""
    (trained,) = (found.parent for found in (root / "runs").glob("*/step-*/DONE.json") if "stage2" in found.read_text())
    added = root / "runs" / "another" / "step-00000009"
    shutil.copytree(trained, added)
    weights = load_file(added / EMA_FILE)
    save_file({name: value * 1.01 for name, value in weights.items()}, added / EMA_FILE)
    about = json.loads((added / storage.MARKER).read_text())
    about["sha256"][EMA_FILE] = storage.sha256_file(str(added / EMA_FILE))
    (added / storage.MARKER).write_text(json.dumps({**about, "step": 9}))
    return str(added)


@pytest.fixture(scope="module")
def asked(finished: FlowRun, prefect: Prefect, root: Path, stack: RunningStack, imported: dict[str, Any]) -> Asked:
    overrides = tiny_overrides(root)
    again = prefect.start("full-train", config="demo-sketch", overrides=overrides)
    add_checkpoint_of_another_run(root)
    newcomer = prefect.start("evaluate", config="demo-sketch", overrides=overrides)
    published = prefect.start("evaluate", config="demo-sketch", **imported)
    announced = tiny_overrides(root, evaluation__on_checkpoint="final", evaluation__grid_samples=3)
    prefect.start("train", config="demo-sketch", overrides=announced)
    other = json.dumps(tiny_overrides(root, sampling__guidance_scale=2.5))
    chosen = ("--param", f"overrides={other}", "--param", "checkpoints=latest")
    told = stack.piti("run", "evaluate", "--config", "demo-sketch", *chosen)
    variants = [{"name": "as configured"}, {"name": "stronger", "overrides": {"sampling.guidance_scale": 2.5}}]
    asked_for = {
        "name": "tiny",
        "question": "Which?",
        "config": "demo-sketch",
        "overrides": overrides,
        "variants": variants,
    }
    study = stack.home / "tiny.yaml"
    study.write_text(json.dumps({**asked_for, "axis": "sampling.guidance_scale"}))  # JSON is YAML, too
    compared = prefect.start("study", study=str(study))
    triggered = wait_for("the evaluation", lambda: prefect.run_with("evaluate", {"overrides": announced}), 480)
    runs = {"again": again, "newcomer": newcomer, "imported": published, "triggered": triggered, "study": compared}
    return Asked(**{name: prefect.wait(run) for name, run in runs.items()}, other_guidance=told)


def test_every_step_ran_and_left_a_report(finished: FlowRun, root: Path, prefect: Prefect) -> None:
    assert finished.state == "COMPLETED", finished.message
    assert {finished.tasks[name] for name in HEAVY} == {"Completed"}
    (report,) = (found.parent for found in (root / "reports").glob("*/report.html"))
    metrics = json.loads((report / "metrics.json").read_text())
    of_network = {f"{kind}_efficientnet_lite0" for kind in ("fd", "kd", "pd", "pd_diversity")}
    assert set(metrics["metrics"]) == of_network | {"edge_f1_canny"}
    assert metrics["num_samples"] == 8
    assert {"step", "checkpoint", "provenance"} <= set(metrics)
    told = (report / "report.html").read_text()
    assert "cannot be compared with published" in told
    assert len(re.findall(r'alt="pictures drawn in training: stage 2[^"]*"', told)) == 2, "at steps 2 and 4"
    kinds = [(artifact["type"], artifact["key"] or "") for artifact in prefect.artifacts(finished.id)]
    assert sum(kind == "progress" for kind, _ in kinds) == 9
    assert sum(key.endswith("-loss-curve") for _, key in kinds) == 4
    assert any("-stage2-samples-" in key for _, key in kinds), "seen while it trained"
    (page,) = [found for found in prefect.artifacts(finished.id) if (found["key"] or "").endswith("-report")]
    assert "data:image/png;base64," in page["data"]
    assert "| fd_efficientnet_lite0 |" in html.unescape(page["data"])
    (shown,) = [found for found in prefect.artifacts(finished.id) if (found["key"] or "").endswith("-report-link")]
    (address,) = re.findall(r"http://127[^)]*", shown["data"])
    assert prefect.page(address) == (report / "report.html").read_bytes(), "what the link in the UI opens"


def test_the_graph_of_the_run_follows_the_data(finished: FlowRun, prefect: Prefect) -> None:
    nodes = {node["id"]: node for _, node in prefect.request("GET", f"/flow_runs/{finished.id}/graph-v2")["nodes"]}
    short = {key: node["label"].removeprefix("train ").split()[0] for key, node in nodes.items()}
    arrows = {(short[parent["id"]], short[key]) for key, node in nodes.items() for parent in node["parents"]}
    assert arrows == {
        ("shard", "degrade"), ("shard", "pretrain"), ("shard", "stage1"), ("shard", "stage2"), ("shard", "upsampler"),
        ("degrade", "upsampler"), ("pretrain", "stage1"), ("stage1", "stage2"), ("stage2", "draw"),
        ("upsampler", "draw"), ("draw", "score"), ("score", "report"),
    }  # fmt: skip


def test_again_does_nothing_twice(asked: Asked, finished: FlowRun, prefect: Prefect, root: Path) -> None:
    run = asked.again
    assert run.state == "COMPLETED", run.message
    assert prefect.reports(run.id) == prefect.reports(finished.id)
    assert all(Path(report).is_file() for report in prefect.reports(run.id))
    assert {run.tasks[name] for name in HEAVY} == {"Cached"}
    assert {state for name, state in run.tasks.items() if name.startswith(("draw", "score", "report"))} == {"Cached"}
    jobs = Counter(name.split("-")[1] for name in storage.list_names(str(root / "jobs")))
    assert jobs == {
        **dict.fromkeys(("shard", "degrade", "pretrain", "stage1", "stage2", "upsampler"), 1),
        "sample": 3, "score": 3, "report": 4, "study": 1,
    }, "drawn and scored for two guidances and the newcomer, reported for another grid, too; all else once"  # fmt: skip


def test_of_all_checkpoints_only_the_new_one_is_drawn_and_scored(asked: Asked) -> None:
    run = asked.newcomer
    assert run.state == "COMPLETED", run.message
    steps = {name: state for name, state in run.tasks.items() if not name.startswith("preflight")}
    assert {name.split()[-1] for name in steps} == {"step-00000009"}
    assert {name.split()[0] for name in steps} == {"draw", "score", "report"}
    assert steps["score step-00000009"] == steps["draw final step-00000009"] == "Completed"


def test_evaluate_with_other_guidance_samples_and_scores_and_piti_run_names_the_report(
    asked: Asked, prefect: Prefect, root: Path
) -> None:
    told = asked.other_guidance
    assert told.returncode == 0, told.stderr
    run = prefect.inspect(re.findall(r"flow-run/([0-9a-f-]{36})", told.stdout)[0])
    assert {name.split()[0] for name in run.tasks} == {"preflight", "draw", "score", "report"}
    reports = [line.removeprefix("report:").strip() for line in told.stdout.splitlines() if line.startswith("report:")]
    assert len(reports) == 1
    assert Path(reports[0]).read_text().startswith("<!doctype html>")
    assert {state for name, state in run.tasks.items() if not name.startswith("preflight")} == {"Completed"}


def test_a_finished_training_makes_its_evaluation_run_by_itself(asked: Asked) -> None:
    """It was started by Prefect alone, for the checkpoint and the config of the training run, whose grid is another:
    only a report is written."""
    run = asked.triggered
    assert run.state == "COMPLETED", run.message
    assert run.tasks["report step-00000004"] == "Completed"
    states = {name.split()[0]: state for name, state in run.tasks.items()}
    assert states == {"preflight": "Completed", "draw": "Cached", "score": "Cached", "report": "Completed"}
    assert {name.split()[1] for name in run.tasks if name.startswith("draw")} == {
        "final", "base", "diversity", "stage1", "untrained",
    }  # fmt: skip


def test_a_study_compares_what_is_there_and_makes_nothing_twice(asked: Asked, prefect: Prefect, root: Path) -> None:
    """Two variants of guidance whose reports there are already: one job, which writes the page."""
    run = asked.study
    assert run.state == "COMPLETED", run.message
    states = {name: state for name, state in run.tasks.items() if not name.startswith(("preflight", "wait"))}
    assert states.pop("compare the variants") == "Completed"
    assert set(states.values()) == {"Cached"}
    (page,) = (root / "reports").glob("*/study.html")
    assert str(page) in prefect.reports(run.id)
    assert all(Path(report).is_file() for report in prefect.reports(run.id))
    shown = page.read_text()
    assert (
        shown.count("<figcaption>stronger</figcaption>") == shown.count("<figcaption>as configured</figcaption>") == 6
    )
    told = json.loads((page.parent / "study.json").read_text())
    assert [one["position"] for one in told["runs"]] == [1.3, 2.5]


def test_published_weights_need_no_training_and_no_training_data(asked: Asked, imported: dict[str, Any]) -> None:
    run, root = asked.imported, Path(imported["overrides"]["root"])
    assert run.state == "COMPLETED", run.message
    assert {name.split()[0] for name in run.tasks} == {"preflight", "shard", "draw", "score", "report"}
    assert Counter(name.split("-")[1] for name in storage.list_names(str(root / "jobs"))) == dict.fromkeys(
        ("validation", "sample", "score", "report"), 1
    )
    (report,) = (found for found in (root / "reports").iterdir() if found.is_dir())  # beside them: the leaderboard
    metrics = json.loads((report / "metrics.json").read_text())
    assert (metrics["checkpoint"], metrics["num_samples"]) == (imported["checkpoints"][0], 8)
    assert metrics["provenance"]["upsampler"]["uri"] == imported["upsampler"]
    assert metrics["provenance"]["runs"] == {}


def test_results_name_code_and_duration(finished: FlowRun, root: Path) -> None:
    plan = Plan(load_config("demo-sketch", tiny_overrides(root)))
    for step in [*plan.preparation, *plan.training]:
        result = step.require_result()
        assert result["fingerprint"] == step.fingerprint
        assert result["duration_seconds"] > 0
        assert result["code"]["torch"].startswith("2.13.0")
    assert not [name for name in storage.list_names(str(root)) if name.endswith(".tmp")]
