"""Fingerprints: what changes an output changes its fingerprint and those after it, and nothing else does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from piti import storage
from piti.config.presets import load_config
from piti.errors import DataError
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


def test_another_detector_is_other_data_wherever_it_lies(tmp_path: Path) -> None:
    """A file without a pin counts by its content: replaced, it would have left old sketches in place."""
    weights = tmp_path / "hed.pytorch"
    hed = {"data.sketch": {"detector": "hed", "weights": {"path": str(weights)}}}
    weights.write_bytes(b"one")
    first = prints(hed)
    weights.write_bytes(b"another")
    assert {name for name, of_another in prints(hed).items() if first[name] != of_another} == ALL


def test_a_pretrained_base_replaces_pretraining() -> None:
    assert set(prints({"pretrained.base.path": "/weights/base.pt"})) == ALL - {"pretrain"}


def test_pictures_degraded_as_they_are_read_need_no_step() -> None:
    online = {"degradation.variants": 0}
    assert set(prints(online)) == ALL - {"degrade"}
    plan = Plan(load_config("demo-sketch", online))
    assert plan.degrade is None
    assert "degraded" not in plan.upsampler.inputs
    assert prints({**online, "degradation.recipe": "full"})["upsampler"] != prints(online)["upsampler"]


def test_the_validation_split_needs_no_training_data(tmp_path: Path) -> None:
    """What only training sees changes nothing, and where the whole dataset is sharded, that is what evaluation reads."""
    for name in ("train", "validation"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((8, 8, 3), np.uint8))
    folders = {name: str(tmp_path / f"{name}-pictures") for name in ("train", "validation")}
    for name, folder in folders.items():
        Path(folder).mkdir()
        (tmp_path / f"{name}.png").rename(Path(folder) / "picture.png")
    source = {"kind": "paired", "images": folders["train"], "validation_images": folders["validation"]}
    overrides = {"root": str(tmp_path / "root"), "data.source": source}
    plan = Plan(load_config("demo-sketch", overrides))
    assert Plan(load_config("demo-sketch", {**overrides, "data.max_samples": 3})).validation == plan.validation
    assert plan.conditions == plan.validation
    storage.write_json(plan.shard.marker, {})
    assert plan.conditions == plan.shard
    shutil.rmtree(folders["train"])
    here = Plan(load_config("demo-sketch", overrides))
    assert here.conditions == here.validation == plan.validation
    (Path(folders["validation"]) / "picture.png").write_bytes(b"another")
    assert Plan(load_config("demo-sketch", overrides)).validation != plan.validation


def test_a_step_that_is_not_done_says_so(tmp_path: Path) -> None:
    step = Plan(load_config("demo-sketch", {"root": str(tmp_path)})).shard
    assert step.result() is None
    with pytest.raises(DataError, match="shard is not done"):
        step.require_result()
    storage.write_json(step.marker, {"shards": 3})
    assert step.require_result() == {"shards": 3}
