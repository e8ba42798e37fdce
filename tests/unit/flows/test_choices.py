"""What the flows decide without any server: which checkpoints to evaluate, where a run may begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.cluster import submission_prefix
from flows.evaluate import choose_checkpoints, evaluation_steps
from flows.full_train import require_done
from piti import storage
from piti.config.presets import load_config
from piti.errors import CheckpointError, PreflightError
from piti.plan import Plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(load_config("demo-sketch", {"root": str(tmp_path)}))


def add_checkpoint(run: str, step: int) -> str:
    uri = storage.join(run, f"step-{step:08d}")
    storage.write_json(storage.join(uri, storage.MARKER), {"sha256": {"ema.safetensors": f"{run}{step}"}, "step": step})
    return uri


def test_no_checkpoint_at_all_names_what_to_run(plan: Plan) -> None:
    with pytest.raises(CheckpointError, match="run piti/full-train"):
        choose_checkpoints(plan, "new")


def test_no_upsampler_yet(plan: Plan) -> None:
    add_checkpoint(plan.stage2.output, 10)
    with pytest.raises(CheckpointError, match="no upsampler checkpoint yet"):
        choose_checkpoints(plan, "new")


def test_new_means_without_a_report(plan: Plan) -> None:
    first, second = (add_checkpoint(plan.stage2.output, step) for step in (10, 20))
    add_checkpoint(plan.upsampler.output, 5)
    assert choose_checkpoints(plan, "new") == [first, second]
    storage.write_json(evaluation_steps(plan, first)[1].marker, {"metrics": {}})
    assert choose_checkpoints(plan, "new") == [second]
    assert choose_checkpoints(plan, "latest") == [second]
    assert choose_checkpoints(plan, "all") == [first, second]
    storage.write_json(evaluation_steps(plan, second)[1].marker, {"metrics": {}})
    assert choose_checkpoints(plan, "new") == []


def test_a_new_upsampler_makes_every_checkpoint_new(plan: Plan) -> None:
    base = add_checkpoint(plan.stage2.output, 10)
    add_checkpoint(plan.upsampler.output, 5)
    storage.write_json(evaluation_steps(plan, base)[1].marker, {"metrics": {}})
    add_checkpoint(plan.upsampler.output, 6)
    assert choose_checkpoints(plan, "new") == [base]


def test_uris_are_checked(plan: Plan, tmp_path: Path) -> None:
    add_checkpoint(plan.upsampler.output, 5)
    mine = add_checkpoint(str(tmp_path / "elsewhere"), 1)
    assert choose_checkpoints(plan, [mine]) == [mine]
    with pytest.raises(CheckpointError, match="/nowhere is no whole checkpoint"):
        choose_checkpoints(plan, [mine, "/nowhere"])


def test_start_from_needs_what_comes_before(plan: Plan) -> None:
    for step in (plan.shard, plan.degrade):
        storage.write_json(step.marker, {})
    require_done(plan, "pretrain")
    require_done(plan, "upsampler")
    with pytest.raises(PreflightError) as caught:
        require_done(plan, "stage2")
    assert "pretrain is not done" in str(caught.value)
    assert "stage1 is not done" in str(caught.value)


def test_jobs_of_different_outputs_never_share_an_id(tmp_path: Path) -> None:
    here, there = (Plan(load_config("demo-sketch", {"root": str(tmp_path / name)})) for name in ("a", "b"))
    assert here.shard.fingerprint == there.shard.fingerprint
    assert submission_prefix(here.shard) != submission_prefix(there.shard)
    assert submission_prefix(here.shard) != submission_prefix(here.degrade)
