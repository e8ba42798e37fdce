"""`piti runs` on runs that were really trained: what it lists, tells and compares is what they left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from piti import storage
from piti.cli import app
from piti.runs import WORKERS_FILE
from piti.training.loop import train
from piti.training.metrics import read_metrics
from piti.training.workers import Workers

ATTEMPT = "piti-pretrain-{}-1"


def piti(*arguments: str) -> str:
    answer = CliRunner(env={"COLUMNS": "300"}).invoke(app, list(arguments))
    assert answer.exit_code == 0, answer.output
    return answer.output


def trained(pipeline: Any, name: str, **options: Any) -> tuple[str, str]:
    """Root and URI of a finished run, with the files that its job leaves."""
    context = pipeline.context("pretrain", run=name, **options)
    root = context.config.root
    folder = storage.join(root, "jobs", ATTEMPT.format(name))
    storage.write_json(storage.join(folder, "spec.json"), context.spec.model_dump(mode="json"))
    places = [{"host": "node[7]", "device": "H100"}] * 2
    about = {"attempt": "x", "began": 1.7e9, "workers": places}
    storage.write_json(storage.join(context.spec.output, WORKERS_FILE), about)
    result = train(context, Workers())
    code = {"code": {"commit": f"commit-of-{name}"}, "name": "pretrain", "fingerprint": context.spec.fingerprint}
    storage.write_json(storage.join(context.spec.output, storage.MARKER), {**result, **code})
    return root, context.spec.output


def test_runs_are_listed_told_and_compared(pipeline: Any) -> None:
    root, one = trained(pipeline, "one")
    _, other = trained(pipeline, "other", seed=7, training__pretrain__phases=[{"steps": 2, "learning_rate": 1e-3}])
    listed = json.loads(piti("runs", "ls", root, "--json"))
    assert {(run["run"], run["step"], run["total_steps"], run["state"]) for run in listed} == {
        ("one", 6, 6, "finished"), ("other", 2, 2, "finished"),
    }  # fmt: skip
    told = json.loads(piti("runs", "show", one, "--json"))
    last = [record for record in read_metrics(one) if record["split"] == "train"][-1]
    assert told["losses"]["train"]["loss"] == last["loss"]
    assert told["full_config"]["training"]["pretrain"]["batch_size"] == 4
    table = piti("runs", "ls", root)
    assert "6 of 6" in table
    assert "2 x H100 on node[7]" in table, "square brackets are not markup"
    assert f"{last['loss']:.4g}" in table

    found = json.loads(piti("runs", "diff", one, other, "--json"))
    assert found["config.seed"] == [0, 7]
    assert found["config.training.pretrain.phases.0.steps"] == [6, 2]
    assert found["code.commit"] == ["commit-of-one", "commit-of-other"]
    assert not any("batch_size" in name for name in found), "what is equal is not listed"
    assert "differ in nothing" in piti("runs", "diff", one, one)


def test_a_failed_run_says_why_and_a_folder_without_one_is_an_error(pipeline: Any) -> None:
    context = pipeline.context("pretrain", run="broken")
    folder = storage.join(context.config.root, "jobs", ATTEMPT.format("broken"))
    storage.write_json(storage.join(folder, "spec.json"), context.spec.model_dump(mode="json"))
    storage.write_json(storage.join(folder, "error.json"), {"reason": "out of [GPU] memory", "retryable": True})
    storage.write_json(storage.join(context.spec.output, WORKERS_FILE), {"attempt": "x", "began": 1.0, "workers": []})
    assert "failed: out of [GPU] memory" in piti("runs", "ls", context.config.root)
    cancelled = {"reason": "its run was cancelled", "retryable": True, "stopped": True}
    storage.write_json(storage.join(folder, "error.json"), cancelled)
    assert "stopped: its run was cancelled" in piti("runs", "ls", context.config.root)
    answer = CliRunner().invoke(app, ["runs", "show", "/nowhere/runs/x"])
    assert answer.exit_code == 1
    assert "there is no training run at /nowhere/runs/x" in answer.stderr


def test_strays_among_the_jobs_are_left_out_with_a_word(pipeline: Any, caplog: pytest.LogCaptureFixture) -> None:
    context = pipeline.context("pretrain", run="alone")
    jobs, spec = storage.join(context.config.root, "jobs"), context.spec.model_dump_json().encode()
    storage.write_json(storage.join(context.spec.output, WORKERS_FILE), {"attempt": "x", "began": 1.0, "workers": []})
    whole = ATTEMPT.format("alone")
    strays = {
        f"{whole} (copy)": spec, "piti-stage1-old": spec, "piti-stage1-x-2": b"{}", "piti-stage1-x-3": b"{", "piti-stage1-x-4": b"[]",
    }  # fmt: skip
    for name, content in {whole: spec, **strays}.items():
        storage.write_bytes(storage.join(jobs, name, "spec.json"), content)
    storage.write_bytes(storage.join(jobs, "piti-stage1-x-5"), b"a file")
    (run,) = json.loads(piti("runs", "ls", context.config.root, "--json"))
    assert run["attempts"] == [whole]
    assert json.loads(piti("runs", "show", context.spec.output, "--json"))["attempts"] == [whole]
    told = " ".join(record.getMessage() for record in caplog.records)
    assert all(name in told for name in strays)


DAMAGE = {
    "metrics.jsonl": [b'{"step": 1, "split": "tr', b"[1]\n", b"{}\n", b"\xff\xfe\n"],
    WORKERS_FILE: [b"{", b"[1]"],
    storage.MARKER: [b"{", b"[1]"],
}


@pytest.mark.parametrize(("file", "content"), [(file, content) for file in DAMAGE for content in DAMAGE[file]])
def test_a_run_with_a_damaged_file_hides_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, content: bytes
) -> None:
    root, record = str(tmp_path), b'{"step": 1, "split": "train", "loss": 1.0}\n'
    for name in ("good", "bad"):
        storage.write_bytes(storage.join(root, "runs", name, "metrics.jsonl"), record)
    damaged = storage.join(root, "runs", "bad", file)
    storage.write_bytes(damaged, content)
    assert [run["run"] for run in json.loads(piti("runs", "ls", root, "--json"))] == ["good"]
    assert damaged in caplog.text
    answer = CliRunner().invoke(app, ["runs", "show", storage.join(root, "runs", "bad")])
    assert answer.exit_code == 1
    assert damaged in answer.stderr
    assert "delete" in answer.stderr


@pytest.mark.parametrize("command", ["ls", "show", "diff"])
def test_help(command: str) -> None:
    assert "--json" in piti("runs", command, "--help")
