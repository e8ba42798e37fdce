"""Fingerprints: what changes an output changes its fingerprint and those after it, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piti import storage
from piti.checkpoints import checkpoints_of
from piti.config.presets import load_config
from piti.errors import CheckpointError, DataError
from piti.plan import Plan


def prints(overrides: dict[str, Any] | None = None) -> dict[str, str]:
    plan = Plan(load_config("demo-sketch", overrides))
    return {step.name: step.fingerprint for step in [*plan.preparation, *plan.training]}


def changed(overrides: dict[str, Any]) -> set[str]:
    before, after = prints(), prints(overrides)
    return {name for name in before if before[name] != after.get(name)}


ALL = {"shard", "degrade", "pretrain", "stage1", "stage2", "upsampler"}


@pytest.mark.parametrize(
    ("overrides", "affected"),
    [
        ({}, set()),
        ({"root": "/elsewhere", "cluster.num_workers": 1, "cluster.max_failures": 9}, set()),
        ({"training.stage2.checkpoint_every_steps": 7, "training.stage2.log_every_steps": 1}, set()),
        ({"sampling.guidance_scale": 3.0, "evaluation.grid_samples": 2}, set()),
        ({"seed": 1}, ALL),
        ({"data.samples_per_shard": 64}, ALL),
        ({"degradation.variants": 3}, {"degrade", "upsampler"}),
        ({"training.stage1.batch_size": 32}, {"stage1", "stage2"}),
        ({"training.stage2.phases.0.steps": 3}, {"stage2"}),
        ({"models.upsampler.dropout": 0.1}, {"upsampler"}),
        ({"models.base.encoder_layers": 1}, {"pretrain", "stage1", "stage2"}),
    ],
)
def test_a_change_reaches_exactly_what_it_can_change(overrides: dict[str, Any], affected: set[str]) -> None:
    assert changed(overrides) == affected


def test_a_pretrained_base_replaces_pretraining() -> None:
    assert set(prints({"pretrained.base.path": "/weights/base.pt"})) == ALL - {"pretrain"}


def test_pictures_degraded_as_they_are_read_need_no_step() -> None:
    online = {"degradation.variants": 0}
    assert set(prints(online)) == ALL - {"degrade"}
    plan = Plan(load_config("demo-sketch", online))
    assert plan.degrade is None
    assert "degraded" not in plan.upsampler.inputs
    assert prints({**online, "degradation.recipe": "full"})["upsampler"] != prints(online)["upsampler"]


def write_checkpoint(uri: str, digest: str) -> str:
    storage.write_json(storage.join(uri, storage.MARKER), {"format": 1, "sha256": {"ema.safetensors": digest}})
    return uri


def test_evaluation_follows_the_checkpoint_and_the_sampler(tmp_path: Path) -> None:
    base, upsampler = write_checkpoint(str(tmp_path / "a"), "1"), write_checkpoint(str(tmp_path / "b"), "2")

    def both(overrides: dict[str, Any] | None = None) -> tuple[str, str]:
        plan = Plan(load_config("demo-sketch", overrides))
        sample = plan.sample(base, upsampler)
        return sample.fingerprint, plan.score(sample).fingerprint

    first = both()
    assert both({"sampling.batch_size": 3}) == first
    scored_anew = both({"evaluation.grid_samples": 3})
    assert scored_anew[0] == first[0]
    assert scored_anew[1] != first[1]
    assert both({"sampling.guidance_scale": 2.5})[0] != first[0]
    write_checkpoint(base, "other weights under the same name")
    assert both()[0] != first[0]


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    write_checkpoint(str(tmp_path / "step-00000100"), "1")
    write_checkpoint(str(tmp_path / "step-00000020"), "1")
    (tmp_path / "step-00000300").mkdir()
    (tmp_path / "step-00000300" / "model.safetensors").write_bytes(b"half")
    assert [storage.name(uri) for uri in checkpoints_of(str(tmp_path))] == ["step-00000020", "step-00000100"]
    with pytest.raises(CheckpointError, match="not a finished checkpoint"):
        Plan(load_config("demo-sketch")).sample(str(tmp_path / "step-00000300"), str(tmp_path / "step-00000100"))


def test_a_step_that_is_not_done_says_so(tmp_path: Path) -> None:
    step = Plan(load_config("demo-sketch", {"root": str(tmp_path)})).shard
    assert step.result() is None
    with pytest.raises(DataError, match="shard is not done"):
        step.require_result()
    storage.write_json(step.marker, {"shards": 3})
    assert step.require_result() == {"shards": 3}
