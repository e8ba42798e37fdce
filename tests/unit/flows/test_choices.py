"""What the flows decide without any server: which checkpoints to evaluate, where a run may begin."""

from __future__ import annotations

from pathlib import Path

import pytest

import flows.evaluate as evaluate
from flows.cluster import submission_prefix
from flows.evaluate import choose_checkpoints, evaluation_steps
from flows.full_train import require_done
from flows.preflight import wanted_resources
from piti import storage
from piti.checkpoints import FORMAT, checkpoints_of
from piti.config.presets import load_config
from piti.errors import CheckpointError, DataError, PreflightError
from piti.plan import Plan
from piti.weights import weights_problems


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(load_config("demo-sketch", {"root": str(tmp_path)}))


def add_checkpoint(run: str, step: int) -> str:
    uri = storage.join(run, f"step-{step:08d}")
    storage.write_json(
        storage.join(uri, storage.MARKER),
        {"format": FORMAT, "sha256": {"ema.safetensors": f"{run}{step}"}, "step": step},
    )
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


def test_a_checkpoint_that_disappears_is_left_out(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training may prune a checkpoint between its being found and its being looked at."""
    there = add_checkpoint(plan.stage2.output, 20)
    add_checkpoint(plan.upsampler.output, 5)
    gone = storage.join(plan.stage2.output, "step-00000010")
    monkeypatch.setattr(
        evaluate, "checkpoints_of", lambda run: [gone, there] if run == plan.stage2.output else checkpoints_of(run)
    )
    assert choose_checkpoints(plan, "new") == [there]


def test_one_that_fails_does_not_end_the_others(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[object] = []

    def evaluated(plan: Plan, checkpoint: str, after: object) -> str:
        if checkpoint == "bad":
            raise DataError("bad is damaged")
        return f"report of {checkpoint}"

    monkeypatch.setattr(evaluate, "_evaluate_checkpoint", evaluated)
    monkeypatch.setattr(evaluate, "create_table_artifact", lambda rows, **_: tables.append(rows))
    assert evaluate.evaluate_checkpoints(plan, ["a", "bad", "b"]) == ["report of a", "report of b"]
    assert tables == [[{"checkpoint": one, "report": f"report of {one}"} for one in ("a", "b")]]
    with pytest.raises(DataError, match="bad is damaged"):
        evaluate.evaluate_checkpoints(plan, ["bad"])


def test_evaluation_asks_for_no_training_weights_and_one_worker() -> None:
    config = load_config("demo-sketch", {"allow_stand_in_networks": False, "cluster.num_workers": 2})
    asked = " ".join(map(str, weights_problems(config, training=False)))
    assert "evaluation.inception is not set" in asked
    assert "vgg19" not in asked
    assert wanted_resources(config, training=False).cpus == config.cluster.cpus_per_worker
    assert wanted_resources(config).cpus == 2 * config.cluster.cpus_per_worker


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
    with pytest.raises(CheckpointError, match="/nowhere is not a finished checkpoint"):
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
